//! Jobs whose processes know the server.

use std::process::Command;

use super::process::*;
use super::server::{Answer, Post, TrainerServer};

fn obsdiff(folder: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    command.args(args).current_dir(folder);
    command
}

/// The job came to its end, and went there without a step back.
fn assert_told(posts: &[Post]) {
    let percents: Vec<u64> = posts.iter().map(Post::percent).collect();
    assert_eq!(percents.last(), Some(&100), "{percents:?}");
    assert!(
        percents.is_sorted() && percents.iter().filter(|percent| **percent == 100).count() == 1,
        "{percents:?}"
    );
    for post in posts {
        assert_eq!(post.header("authorization"), Some("Bearer the-first-token"));
    }
    let last = &posts.last().unwrap().status;
    assert_eq!(last["metrics"][0], serde_json::json!({ "name": "packages", "value": "2" }));
    assert_eq!(last["metrics"][1], serde_json::json!({ "name": "packages_committed", "value": "2" }));
    for pair in posts.windows(2) {
        let between = pair[1].at - pair[0].at;
        assert!(between.as_secs_f64() > 4.0, "{between:?} from one to the next");
    }
}

#[test]
fn one_of_the_workers_posts_where_the_coordinator_cannot() {
    let (server, folder) = (TrainerServer::start(), setting(16));
    let mut coordinator = Coordinator::start(folder.path());
    let args = ["worker", "--coordinator", &coordinator.url, "--quiet"];
    let mut workers = [(); 2].map(|()| Process::spawn(server.named_to(&mut obsdiff(folder.path(), &args))));
    for worker in &mut workers {
        let (code, said) = worker.verdict();
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("Kubeflow") && !said.contains("the-first-token"), "{said}");
    }
    let posts = server.rest();
    assert_told(&posts);
    let names = |post: &Post| {
        post.status["metrics"].as_array().unwrap().iter().map(|m| m["name"].clone()).collect::<Vec<_>>()
    };
    assert!(
        names(posts.last().unwrap()).contains(&"sparsity_ratio".into()),
        "{:?}",
        names(posts.last().unwrap())
    );
    assert!(coordinator.process.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_coordinator_that_is_told_of_the_server_posts_alone() {
    let (server, folder) = (TrainerServer::start(), setting(2));
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let mut coordinator = Process::spawn(server.named_to(&mut obsdiff(folder.path(), &args)));
    let line = coordinator.line(|line| line.contains("listening on ")).unwrap();
    let url = format!("http://{}", line.strip_prefix("listening on ").unwrap());
    let args = ["worker", "--coordinator", &url, "--quiet"];
    let mut worker = Process::spawn(server.named_to(&mut obsdiff(folder.path(), &args)));
    assert_eq!(worker.verdict().0, Some(0));
    assert_eq!(coordinator.verdict().0, Some(0));
    assert_told(&server.rest());
}

#[test]
fn a_run_posts_too_and_a_server_that_hangs_changes_nothing_of_it() {
    let (server, folder) = (TrainerServer::start(), setting(2));
    let args = ["run", "job.toml", "--quiet"];
    let run = || Process::spawn(server.named_to(&mut obsdiff(folder.path(), &args)));
    assert_eq!(run().verdict().0, Some(0));
    assert_told(&server.rest());
    let first = result(folder.path());
    std::fs::remove_dir_all(folder.path().join("out")).unwrap();
    server.answer(Answer::Nothing);
    let (code, said) = run().verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_same(&result(folder.path()), &first);
    let words = "Kubeflow Trainer does not take the job's progress, which goes on: ";
    assert_eq!(said.matches(words).count(), 1, "{said}");
    assert!(!said.contains("the-first-token"), "{said}");
}

#[test]
fn a_job_whose_output_is_written_is_posted_as_done_by_whoever_removes_its_state() {
    let (server, folder) = (TrainerServer::start(), setting(2));
    let path = |name: &str| folder.path().join(name);
    let copy = |from: &str, to: &str| {
        let copied = Command::new("cp").arg("-r").args([path(from), path(to)]).status().unwrap();
        assert!(copied.success());
    };
    let mut coordinator = Coordinator::start(folder.path());
    coordinator.process.kill();
    copy("out.state", "begun");
    assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
    let first = result(folder.path());
    let listened = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    for args in [&listened[..], &["run", "job.toml", "--quiet"]] {
        // As if the process that wrote the output had been killed while it removed the state.
        copy("begun", "out.state");
        let (code, said) = Process::spawn(server.named_to(&mut obsdiff(folder.path(), args))).verdict();
        assert_eq!(code, Some(0), "{said}");
        assert_told(&server.rest());
        assert_same(&result(folder.path()), &first);
    }
}

#[test]
fn whoever_starts_again_after_the_state_is_removed_posts_that_the_job_is_done() {
    let (server, folder) = (TrainerServer::start(), setting(2));
    assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
    let listened = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let again = |args: &[&str]| Process::spawn(server.named_to(&mut obsdiff(folder.path(), args))).verdict();
    for args in [&listened[..], &["run", "job.toml", "--quiet"]] {
        let (code, said) = again(args);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("the job is done already, and its result is in out"), "{said}");
        assert_told(&server.rest());
    }
    // The output of another job is not this job's.
    let (code, said) = again(&[&listened[..], &["--set", "calibration.seed=1"]].concat());
    assert_eq!(code, Some(2), "{said}");
    assert!(server.rest().is_empty());
}

#[test]
fn a_server_that_cannot_be_used_is_told_once_and_the_job_goes_on() {
    let (server, folder) = (TrainerServer::start(), setting(2));
    let mut command = obsdiff(folder.path(), &["run", "job.toml", "--quiet"]);
    let url = server.url().replace("https://localhost", "http://trainer.kubeflow.svc");
    server.named_to(&mut command).env("KUBEFLOW_TRAINER_SERVER_URL", url);
    let (code, said) = Process::spawn(&mut command).verdict();
    assert_eq!(code, Some(0), "{said}");
    let words = "the job's progress is not sent to Kubeflow Trainer: KUBEFLOW_TRAINER_SERVER_URL: is http://trainer.kubeflow.svc";
    assert_eq!(said.matches(words).count(), 1, "{said}");
    assert!(server.rest().is_empty());
}

//! What a new user starts with: a job for a pipeline, completions and manual pages.

use std::fs;

use crate::{asset, obsdiff, pipeline, printed, text};

#[test]
fn a_new_job_is_one_that_can_be_planned() {
    for name in ["shapes-sd3", "shapes-flux"] {
        let dir = tempfile::tempdir().unwrap();
        let model = asset(name);
        let said = printed(dir.path(), &["init", model.to_str().unwrap()]);
        assert!(said.ends_with("next:\n  obsdiff plan job.toml\n  obsdiff run job.toml\n"), "{said}");
        let job = fs::read_to_string(dir.path().join("job.toml")).unwrap();
        assert!(job.starts_with("# Prunes half of the weights of a "), "{job}");
        assert!(job.contains(&format!("path = \"{name}-pruned\"")), "{job}");
        let prompts = fs::read_to_string(dir.path().join("prompts.txt")).unwrap();
        let distinct: std::collections::HashSet<&str> = prompts.lines().collect();
        assert_eq!(distinct.len(), 108);
        let plan = printed(dir.path(), &["plan", "job.toml", "--memory", "64GiB"]);
        assert!(plan.contains("calibration  100 prompts x 25 steps"), "{plan}");
        // The first example of `plan --help`.
        printed(dir.path(), &["plan", "job.toml", "--memory", "64GiB", "--set", "packages.memory=16GiB"]);
        // What is there is never written over.
        let again = obsdiff(dir.path(), &["init", model.to_str().unwrap()], &[]);
        assert_eq!(again.status.code(), Some(2));
        assert!(text(&again.stderr).contains("job.toml: exists already"), "{}", text(&again.stderr));
    }
}

#[test]
fn a_new_job_takes_the_prompts_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, model) = (dir.path(), pipeline());
    fs::write(folder.join("own.txt"), "a\n\nb\nc\nd\ne\nf\ng\nh\ni\nj\n").unwrap();
    let said =
        printed(folder, &["init", model.to_str().unwrap(), "--prompts", "own.txt", "--out", "own.toml"]);
    assert!(!said.contains("sample prompts") && !folder.join("prompts.txt").exists(), "{said}");
    let plan = printed(folder, &["plan", "own.toml", "--memory", "64GiB"]);
    assert!(plan.contains("calibration  2 prompts x 25 steps"), "{plan}");
    for (prompts, problem) in [("none.txt", "none.txt: "), ("own.csv", "own.csv: is no .txt file")] {
        let output = obsdiff(folder, &["init", model.to_str().unwrap(), "--prompts", prompts], &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(problem), "{}", text(&output.stderr));
        assert!(!folder.join("job.toml").exists());
    }
    let model = model.to_str().unwrap();
    fs::rename(folder.join("own.txt"), folder.join("prompts.txt")).unwrap();
    let said = printed(folder, &["init", model, "--out", "beside.toml"]);
    assert!(said.starts_with("prompts.txt: was there already; the job takes its prompts\n"), "{said}");
    fs::remove_file(folder.join("prompts.txt")).unwrap();
    let output = obsdiff(folder, &["init", "nothing"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!folder.join("prompts.txt").exists(), "prompts are left without a job");
}

#[test]
fn the_commands_that_a_new_job_names_can_be_given_to_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, model) = (dir.path(), pipeline());
    let name = "d \"q\" $x/job.toml";
    fs::create_dir(folder.join("d \"q\" $x")).unwrap();
    let said = printed(folder, &["init", model.to_str().unwrap(), "--out", name]);
    let quoted = "'d \"q\" $x/job.toml'";
    let next = format!("next:\n  obsdiff plan {quoted}\n  obsdiff run {quoted}\n");
    assert!(said.ends_with(&next), "{said}");
    std::os::unix::fs::symlink(model, folder.join("a b")).unwrap();
    let refused = text(&obsdiff(folder, &["plan", "a b"], &[]).stderr);
    assert!(refused.contains("`obsdiff init 'a b'` writes one for it"), "{refused}");
}

#[test]
fn shells_and_man_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(dir.path(), &["completions", shell]);
        for word in ["coordinator", "inspect", "log-format"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    printed(dir.path(), &["man", "pages"]);
    let page = |name: &str| fs::read_to_string(dir.path().join("pages").join(name)).unwrap();
    assert!(page("obsdiff.1").contains("Exit codes:"));
    assert!(page("obsdiff-run.1").contains("baseline"));
}

#[test]
fn a_log_as_json_is_an_object_a_line_from_progress_to_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = crate::job(dir.path());
    let job = ["run", file.to_str().unwrap(), "--log-format", "json", "--set", "calibration.count=2"];
    let short =
        ["--set", "calibration.steps=2", "--set", "evaluation.count=0", "--set", "sparsity.method=magnitude"];
    let more = ["--set", "sparsity.refine=0", "--set", "sparsity.allocation="];
    let lines = |args: &[&str]| -> Vec<serde_json::Value> {
        let output = obsdiff(&asset("."), args, &[]);
        text(&output.stderr).lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    let printed = lines(&[&job[..], &short, &more].concat());
    let message = |line: &serde_json::Value| line["message"].as_str().unwrap().to_owned();
    assert!(printed.iter().any(|line| message(line).starts_with("package 1/1: ")), "{printed:?}");
    assert!(printed.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
    // The same again: that the job is done is an object, and so is the error of another job with that output.
    let printed = lines(&[&job[..], &short, &more].concat());
    assert!(message(printed.last().unwrap()).starts_with("the job is done already"), "{printed:?}");
    let printed = lines(&[&job[..], &short, &more, &["--set", "calibration.seed=1"]].concat());
    let error = printed.last().unwrap();
    assert_eq!((&error["level"], &error["exit_code"]), (&"ERROR".into(), &2.into()), "{error}");
    assert!(lines(&[&job[..], &["--quiet"]].concat()).iter().all(|line| line["level"] != "INFO"));
}

//! Stores that know who asks as nobody: each place of a job is named at once, with what to check.

use std::fs;
use std::path::Path;
use std::process::Command;

use obsdiff_tests::copy_folder;

use crate::hosts::Host;
use crate::output::{files, until_listening};
use crate::process::{ASSETS, Process, setting, undisturbed};
use crate::s3::Later;
use crate::store::StoreServer;

const RUN: &[&str] = &["run", "job.toml", "--quiet"];

/// A job with these keys of its output.
fn job(keys: &str) -> tempfile::TempDir {
    let folder = setting(16);
    let job = folder.path().join("job.toml");
    let words = fs::read_to_string(&job).unwrap();
    fs::write(job, words.replace("path = \"out\"", keys)).unwrap();
    folder
}

/// How many objects of encoded prompts, which a worker begins with, there are.
fn encoded(folder: &Path) -> usize {
    fs::read_dir(folder.join("state/conditioning")).unwrap().count()
}

#[test]
fn a_right_on_the_output_that_is_missing_ends_a_run_before_any_work() {
    let (folder, server) = (job("path = \"s3://bucket/some/out\"\nstate = \"state\""), StoreServer::new());
    let place = server.folder.path().join("bucket/some/out");
    for (changes, what, right) in [(0, "written", "s3:PutObject"), (1, "removed", "s3:DeleteObject")] {
        server.server().pass("some/out/", changes, Later::Denied);
        let (code, said) = server.start(folder.path(), RUN).verdict();
        assert_eq!(code, Some(3), "{said}");
        let says =
            format!("s3://bucket/some/out: obsdiff-probe.json may not be {what} with these credentials: ");
        assert!(said.contains(&says) && said.contains(&format!("the right {right} there")), "{said}");
        assert!(!folder.path().join("state").exists(), "the job has begun: {said}");
        assert_eq!(place.join("obsdiff-probe.json").exists(), changes == 1);
    }
    // What it could not remove is no obstacle, and goes; what others have put there is one.
    server.server().pass_all();
    let (code, said) = server.start(folder.path(), RUN).verdict();
    assert_eq!(code, Some(0), "{said}");
    let written = files(&place);
    assert!(written.contains_key("model_index.json") && !written.contains_key("obsdiff-probe.json"));
    fs::remove_dir_all(&place).unwrap();
    fs::create_dir(&place).unwrap();
    fs::write(place.join("obsdiff-probe.json"), "mine").unwrap();
    let (code, said) = server.start(folder.path(), RUN).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("which holds obsdiff-probe.json, which the job did not write"), "{said}");
    assert_eq!(files(&place)["obsdiff-probe.json"], b"mine");
}

#[test]
fn a_worker_that_may_not_write_the_output_leaves_before_any_work_and_another_one_writes_it() {
    let (folder, server) = (job("path = \"s3://bucket/some/out\"\nstate = \"state\""), StoreServer::new());
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let mut coordinator = server.start(folder.path(), &args);
    let url = until_listening(&mut coordinator);
    server.server().pass("some/out/", 0, Later::Denied);
    let worker = ["worker", "--coordinator", &url, "--quiet"];
    let (code, said) = server.start(folder.path(), &worker).verdict();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("obsdiff-probe.json may not be written with these credentials"), "{said}");
    assert_eq!(encoded(folder.path()), 0, "it has worked: {said}");
    server.server().pass_all();
    let (code, said) = server.start(folder.path(), &worker).verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(coordinator.verdict().0, Some(0));
    let weights = &files(&server.folder.path().join("bucket/some/out"))["transformer/diffusion_pytorch_model.safetensors"];
    assert!(*weights == undisturbed(16)[0]);
}

#[test]
fn a_worker_that_loses_a_right_says_what_it_waits_for_and_goes_on_when_it_is_back() {
    let (folder, server) = (job("path = \"out\"\nstate = \"s3://bucket/some/state\""), StoreServer::new());
    let (mut coordinator, mut worker, mut watch) = server.job(folder.path());
    server.server().pass("some/state/parts/", 0, Later::Denied);
    let says = "may not be written with these credentials: ";
    let line = watch.line(|line| line.contains(" failed 1 time: ") && line.contains(says));
    let line = line.expect("nothing is reported");
    assert!(line.contains("s3://bucket/some/state: parts/") && line.contains("s3:PutObject"), "{line}");
    server.server().pass_all();
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = worker.verdict();
    assert_eq!(code, Some(0), "{said}");
    let own = said.lines().find(|line| line.contains("this worker waits until it can do this"));
    let own = own.unwrap_or_else(|| panic!("the worker does not say it: {said}"));
    assert!(own.contains(says) && own.contains("s3:PutObject"), "{own}");
}

#[test]
fn a_folder_that_cannot_be_written_is_found_before_any_work_where_it_is() {
    if !crate::hosts::available() {
        return;
    }
    let (host, folder) = (Host::new(), job("path = \"disk/out\"\nstate = \"state\""));
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    host.run(&format!("mount -t tmpfs -o size=64m,ro tmpfs {}", disk.display()));
    let start =
        |args: &[&str]| Process::spawn(host.command(folder.path(), env!("CARGO_BIN_EXE_obsdiff")).args(args));
    let (code, said) = start(RUN).verdict();
    assert_eq!(code, Some(2), "{said}");
    let says = "output.path: is disk/out, but nothing can be written to disk: Read-only file system";
    assert!(said.contains(says), "{said}");

    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let mut coordinator = start(&args);
    let url = until_listening(&mut coordinator);
    let (code, said) = start(&["worker", "--coordinator", &url, "--quiet"]).verdict();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("disk/.out.obsdiff-1: Read-only file system"), "{said}");
    coordinator.kill();
    assert_eq!(encoded(folder.path()), 0, "it has worked");
}

#[test]
fn wrong_credentials_end_a_job_at_once_whatever_they_are_for() {
    let server = StoreServer::new();
    let source = Path::new(ASSETS).join("shapes-sd3");
    copy_folder(&source, &server.folder.path().join("bucket/model"));
    let local = format!("path = {source:?}");
    for (url, from, to) in [
        ("s3://bucket/model", &*local, "path = \"s3://bucket/model\""),
        ("s3://bucket/out", "path = \"out\"", "path = \"s3://bucket/out\"\nstate = \"state\""),
        ("s3://bucket/state", "path = \"out\"", "path = \"out\"\nstate = \"s3://bucket/state\""),
    ] {
        let folder = setting(2);
        let job = folder.path().join("job.toml");
        let words = fs::read_to_string(&job).unwrap();
        assert!(words.contains(from), "{from} is not in {words}");
        fs::write(&job, words.replace(from, to)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        command
            .args(["run", "job.toml", "--quiet", "--cache", "cache"])
            .envs(server.server().options())
            .env("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
            .current_dir(folder.path());
        let (code, said) = Process::spawn(&mut command).verdict();
        assert_eq!(code, Some(3), "{url}: {said}");
        assert!(said.contains(url) && said.contains("with these credentials: "), "{url}: {said}");
        assert!(said.contains("check AWS_ACCESS_KEY_ID") && !said.contains("trying again"), "{url}: {said}");
        assert!(!folder.path().join("out").exists() && !folder.path().join("state").exists(), "{url}");
    }
}

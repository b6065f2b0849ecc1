//! A job done by processes that come and go: whatever happens to them, the result is that of one undisturbed process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

mod process;

use process::*;

#[test]
fn a_coordinator_and_a_worker_do_what_one_process_does() {
    let folder = setting(16);
    let (mut coordinator, url) = coordinator(folder.path());
    let mut worker = worker(folder.path(), &url);
    assert!(worker.end().success());
    assert!(coordinator.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_worker_that_is_killed_is_replaced_by_another() {
    for moment in [FIRST, BETWEEN, SECOND] {
        let folder = setting(16);
        let (mut coordinator, url) = coordinator(folder.path());
        let mut first = worker(folder.path(), &url);
        until(folder.path(), &url, moment);
        first.kill();
        let mut second = worker(folder.path(), &url);
        assert!(second.end().success());
        assert!(coordinator.end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn a_worker_that_stands_by_takes_the_place_of_one_that_is_killed() {
    let folder = setting(16);
    let (mut coordinator, url) = coordinator(folder.path());
    let mut first = worker(folder.path(), &url);
    until(folder.path(), &url, FIRST);
    let mut second = worker(folder.path(), &url);
    until(folder.path(), &url, BETWEEN);
    first.kill();
    assert!(second.end().success());
    assert!(coordinator.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_coordinator_that_is_killed_goes_on_and_its_worker_comes_back() {
    for moment in [FIRST, BETWEEN, SECOND] {
        let folder = setting(16);
        let (mut first, url) = coordinator(folder.path());
        let mut worker = worker(folder.path(), &url);
        until(folder.path(), &url, moment);
        first.kill();
        let address = url.strip_prefix("http://").unwrap();
        let args = ["coordinator", "job.toml", "--quiet", "--listen", address];
        let mut second = Process::start(folder.path(), &args);
        assert!(worker.end().success());
        assert!(second.end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn a_coordinator_that_is_killed_when_all_is_written_ends_well_when_it_is_started_again() {
    let folder = setting(16);
    let (mut first, url) = coordinator(folder.path());
    let mut worker = worker(folder.path(), &url);
    until(folder.path(), &url, |line| line.starts_with("over: done"));
    first.kill();
    assert!(worker.end().success());
    assert!(folder.path().join("out.state").exists(), "the state is removed before workers are told");
    let mut second = Process::start(folder.path(), &["coordinator", "job.toml", "--listen", "127.0.0.1:0"]);
    let (code, said) = second.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_undisturbed(folder.path());
}

#[test]
fn a_worker_that_is_asked_to_stop_leaves_in_good_order_and_so_does_the_coordinator() {
    let folder = setting(16);
    let (mut first, url) = coordinator(folder.path());
    let mut drained = worker(folder.path(), &url);
    until(folder.path(), &url, FIRST);
    let begun = Instant::now();
    drained.terminate();
    assert!(drained.end().success());
    first.terminate();
    assert!(first.end().success());
    assert!(begun.elapsed() < Duration::from_secs(10));
    let (mut second, url) = coordinator(folder.path());
    assert!(worker(folder.path(), &url).end().success());
    assert!(second.end().success());
    assert_undisturbed(folder.path());
}

/// Kills a run as soon as a package is finished.
fn kill_a_run_that_has_finished(folder: &Path, package: u32) {
    let mut run = Process::start(folder, &["run", "job.toml", "--quiet"]);
    let manifest = folder.join(format!("out.state/packages/{package:05}.json"));
    let begun = Instant::now();
    while !manifest.exists() && begun.elapsed() < LONG {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    run.kill();
    assert!(manifest.exists() && !folder.join("out").exists());
}

#[test]
fn a_run_that_is_killed_goes_on_from_the_last_finished_package() {
    let folder = setting(16);
    kill_a_run_that_has_finished(folder.path(), 0);
    let changed = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(["run", "job.toml", "--quiet", "--set", "sparsity.ratio=0.6"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(changed.stderr).unwrap();
    assert_eq!(changed.status.code(), Some(2), "{said}");
    assert!(said.contains("sparsity.ratio was 0.5 and is 0.6"), "{said}");
    let again = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(["run", "job.toml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.success(), "{said}");
    assert!(
        said.contains("1 of 2 packages are finished") && !said.contains("package 1/2: calibrate"),
        "{said}"
    );
    assert_undisturbed(folder.path());
}

#[test]
fn heads_and_neurons_by_a_budget_are_the_same_whoever_prunes_them_and_however_often_it_is_begun() {
    // Two packages are surveyed before two are pruned.
    let setting = || setting_of("pattern = \"structured\"\nbudget = 0.2", 8);
    let done = |folder: &Path| {
        assert!(Process::start(folder, &["run", "job.toml", "--quiet"]).end().success());
        result(folder)
    };
    let undisturbed = done(setting().path());
    for package in [0, 1, 2] {
        let folder = setting();
        kill_a_run_that_has_finished(folder.path(), package);
        assert!(done(folder.path()) == undisturbed, "killed after package {package}");
    }
    let folder = setting();
    let (mut coordinator, url) = coordinator(folder.path());
    let mut worker = worker(folder.path(), &url);
    assert!(worker.end().success() && coordinator.end().success());
    assert!(result(folder.path()) == undisturbed, "by a coordinator and a worker");
}

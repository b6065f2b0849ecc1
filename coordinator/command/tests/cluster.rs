//! A job done by several processes that sum their Grams over a network: whatever happens to them, the result is that of one
//! undisturbed process.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

mod process;

use process::*;

/// A worker of one thread.
fn single(folder: &Path, url: &str) -> Process {
    Process::start(folder, &["worker", "--coordinator", url, "--quiet", "--threads", "1"])
}

/// A job's coordinator and two workers.
fn cluster(folder: &Path) -> (Coordinator, [Process; 2]) {
    let coordinator = Coordinator::start(folder);
    let workers = [single(folder, &coordinator.url), single(folder, &coordinator.url)];
    (coordinator, workers)
}

/// All that are left end well, with the undisturbed result.
fn assert_done<const N: usize>(folder: &Path, mut coordinator: Process, mut workers: [Process; N]) {
    for worker in &mut workers {
        let ended = worker.end();
        assert!(ended.success(), "a worker: {ended}");
    }
    let ended = coordinator.end();
    assert!(ended.success(), "the coordinator: {ended}");
    assert_undisturbed(folder);
}

/// The group of the first package is told to form: its members connect, reduce and solve within the next tenths of a second.
const FORMING: LineFilter = |line| line.contains("2 workers form the group");
/// The first package's group is connected, and reduces.
const REDUCING: LineFilter = |line| line.contains("is formed and reduces");
/// The first package's Grams are where they are solved.
const SOLVING: LineFilter = |line| line.contains("have arrived");
/// The last package is finished.
const EXPORTING: LineFilter = |line| line.contains("package 1 is committed");

#[test]
fn two_workers_do_what_one_process_does() {
    let folder = setting(16);
    let (mut coordinator, workers) = cluster(folder.path());
    coordinator.until(FORMING);
    assert_done(folder.path(), coordinator.process, workers);
}

#[test]
fn a_worker_that_is_killed_at_any_moment_leaves_the_rest_to_the_other() {
    let mut missed = 0;
    for moment in [FIRST, FORMING, REDUCING, SOLVING, BETWEEN, SECOND, EXPORTING] {
        let folder = setting(16);
        let (mut coordinator, [mut killed, other]) = cluster(folder.path());
        coordinator.until(moment);
        killed.kill();
        let line = coordinator.watch.line(|line| line.contains(" left (") || line.starts_with("over: "));
        if let Some(line) = line.filter(|line| line.contains(" left (")) {
            let (quiet, lost) = told_of_leaving(&line);
            // Not for its silence, which would take longer.
            assert!(line.contains(" (the connection "), "missed too late: {line}");
            assert!(quiet < MISSED, "missed too late: {line}");
            assert!(lost <= 6, "more is lost than a package's shards: {line}");
            missed += 1;
        }
        assert_done(folder.path(), coordinator.process, [other]);
    }
    // The job may be over before the last one is.
    assert!(missed >= 6, "{missed} are missed");
}

#[test]
fn two_workers_that_are_killed_at_once_are_replaced() {
    for moment in [FIRST, FORMING, SOLVING] {
        let folder = setting(16);
        let (mut coordinator, mut killed) = cluster(folder.path());
        coordinator.until(moment);
        killed.iter_mut().for_each(Process::kill);
        let replacements = [(); 2].map(|()| single(folder.path(), &coordinator.url));
        assert_done(folder.path(), coordinator.process, replacements);
    }
}

#[test]
fn a_worker_that_is_stopped_past_its_lease_and_woken_takes_part_again() {
    for moment in [FIRST, FORMING] {
        let folder = setting(16);
        let (mut coordinator, [stopped, other]) = cluster(folder.path());
        coordinator.until(moment);
        stopped.signal("STOP");
        coordinator.until(|line| line.contains(" left ("));
        stopped.signal("CONT");
        assert_done(folder.path(), coordinator.process, [stopped, other]);
    }
}

#[test]
fn a_late_worker_shares_what_is_left() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let first = single(folder.path(), &coordinator.url);
    coordinator.until(FIRST);
    let second = single(folder.path(), &coordinator.url);
    coordinator.until(FORMING);
    assert_done(folder.path(), coordinator.process, [first, second]);
}

#[test]
fn all_that_were_killed_at_once_go_on_where_they_were() {
    for moment in [FORMING, SECOND] {
        let folder = setting(16);
        let (mut coordinator, mut workers) = cluster(folder.path());
        coordinator.until(moment);
        coordinator.process.kill();
        workers.iter_mut().for_each(Process::kill);
        let (coordinator, workers) = cluster(folder.path());
        assert_done(folder.path(), coordinator.process, workers);
    }
}

#[test]
fn a_coordinator_that_is_killed_finds_its_workers_again() {
    for moment in [FIRST, FORMING, REDUCING, SOLVING, BETWEEN, SECOND, EXPORTING] {
        let folder = setting(16);
        let (mut first, workers) = cluster(folder.path());
        first.until(moment);
        assert_done(folder.path(), first.replace(folder.path()), workers);
    }
}

//! Sums that workers save while a job calibrates: who is killed loses no more than what came after, and the result stays the same.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

mod process;

use process::*;

/// A worker has put sums into the store.
const SAVED: LineFilter = |line| line.contains("has saved its sums of");
/// A worker adds them to its own.
const RESTORED: LineFilter = |line| line.contains("from saved sums");

/// A worker that saves its sums after each shard for which that is worth it.
fn saving(folder: &Path, url: &str) -> Process {
    let args = ["worker", "--coordinator", url, "--quiet", "--threads", "1", "--save-sums", "0s"];
    Process::start(folder, &args)
}

/// A job of which one worker has saved sums, and was killed.
fn calibrating(folder: &Path) -> Coordinator {
    let mut coordinator = Coordinator::start(folder);
    let mut worker = saving(folder, &coordinator.url);
    coordinator.until(SAVED);
    worker.kill();
    coordinator
}

/// The files of the saved sums with this extension, in order.
fn saved_files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("out.state/sums")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

#[test]
fn a_worker_goes_on_from_the_sums_of_one_that_was_killed() {
    let folder = setting(32);
    let mut coordinator = calibrating(folder.path());
    let mut worker = saving(folder.path(), &coordinator.url);
    coordinator.until(RESTORED);
    let ended = worker.end();
    assert!(ended.success(), "the worker: {ended}");
    assert!(coordinator.process.end().success());
    assert_undisturbed_of(folder.path(), 32);
}

#[test]
fn one_process_goes_on_from_sums_that_a_cluster_saved_before_all_of_it_was_killed() {
    let folder = setting(32);
    let mut coordinator = calibrating(folder.path());
    coordinator.process.kill();
    let records = saved_files(folder.path(), "json");
    assert!(!records.is_empty());
    let mut run = Process::start(folder.path(), &["run", "job.toml"]);
    let (code, said) = run.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().any(RESTORED), "{said}");
    assert_undisturbed_of(folder.path(), 32);
}

#[test]
fn shards_of_damaged_sums_are_run_again() {
    let folder = setting(32);
    let mut coordinator = calibrating(folder.path());
    coordinator.process.kill();
    for gram in saved_files(folder.path(), "safetensors") {
        let mut content = fs::read(&gram).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(&gram, content).unwrap();
    }
    let mut run = Process::start(folder.path(), &["run", "job.toml"]);
    let (code, said) = run.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("cannot restore saved sums"), "{said}");
    assert_undisturbed_of(folder.path(), 32);
}

#[test]
fn a_record_that_cannot_be_read_is_passed_over_in_words() {
    let folder = setting(32);
    let mut coordinator = calibrating(folder.path());
    coordinator.process.kill();
    for record in saved_files(folder.path(), "json") {
        fs::write(&record, "{}").unwrap();
    }
    let mut run = Process::start(folder.path(), &["run", "job.toml"]);
    let (code, said) = run.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.lines().any(RESTORED) && said.contains("sums"), "{said}");
    assert_undisturbed_of(folder.path(), 32);
}

/// The result is that of one undisturbed process, of a job of so many steps.
fn assert_undisturbed_of(folder: &Path, steps: u32) {
    assert_same(&result(folder), &undisturbed(steps));
}

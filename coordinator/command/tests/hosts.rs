//! A job done by processes that come and go: whatever happens to them, the result is that of one undisturbed process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

mod process;

use process::*;

#[test]
fn a_coordinator_and_a_worker_do_what_one_process_does() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut worker = worker(folder.path(), &coordinator.url);
    assert!(worker.end().success());
    assert!(coordinator.process.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_worker_that_is_killed_is_replaced_by_another() {
    for moment in [FIRST, BETWEEN, SECOND] {
        let folder = setting(16);
        let mut coordinator = Coordinator::start(folder.path());
        let mut first = worker(folder.path(), &coordinator.url);
        coordinator.until(moment);
        first.kill();
        let mut second = worker(folder.path(), &coordinator.url);
        assert!(second.end().success());
        assert!(coordinator.process.end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn a_worker_that_stands_by_takes_the_place_of_one_that_is_killed() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut first = worker(folder.path(), &coordinator.url);
    coordinator.until(FIRST);
    let mut second = worker(folder.path(), &coordinator.url);
    coordinator.until(BETWEEN);
    first.kill();
    assert!(second.end().success());
    assert!(coordinator.process.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_coordinator_that_is_killed_goes_on_and_its_worker_comes_back() {
    for moment in [FIRST, BETWEEN, SECOND] {
        let folder = setting(16);
        let mut first = Coordinator::start(folder.path());
        let mut worker = worker(folder.path(), &first.url);
        first.until(moment);
        let mut second = first.replace(folder.path());
        assert!(worker.end().success());
        assert!(second.end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn a_coordinator_that_is_killed_when_all_is_written_ends_well_when_it_is_started_again() {
    let folder = setting(16);
    let mut first = Coordinator::start(folder.path());
    let mut worker = worker(folder.path(), &first.url);
    first.until(|line| line.starts_with("over: done"));
    first.process.kill();
    assert!(worker.end().success());
    assert!(folder.path().join("out.state").exists(), "the state is removed before workers are dismissed");
    let mut second = Process::start(folder.path(), &["coordinator", "job.toml", "--listen", "127.0.0.1:0"]);
    let (code, said) = second.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_undisturbed(folder.path());
}

#[test]
fn a_worker_that_is_asked_to_stop_leaves_in_good_order_and_so_does_the_coordinator() {
    let folder = setting(16);
    let mut first = Coordinator::start(folder.path());
    let mut drained = worker(folder.path(), &first.url);
    first.until(FIRST);
    drained.terminate();
    assert_eq!(drained.end().code(), Some(143));
    first.process.terminate();
    assert_eq!(first.process.end().code(), Some(143));
    let mut second = Coordinator::start(folder.path());
    assert!(worker(folder.path(), &second.url).end().success());
    assert!(second.process.end().success());
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
    assert!(said.contains("1 of 2 packages finished") && !said.contains("package 1/2: calibrate"), "{said}");
    assert_undisturbed(folder.path());
}

#[test]
fn a_job_that_is_started_twice_is_refused_the_second_time() {
    let folder = setting(16);
    let mut first = Coordinator::start(folder.path());
    for args in [&["run", "job.toml"][..], &["coordinator", "job.toml", "--listen", "127.0.0.1:0"]] {
        let (code, said) = Process::start(folder.path(), args).verdict();
        // Nothing about the job has to change: it goes on when the first one has ended.
        assert_eq!(code, Some(3), "{said}");
        let words = format!("out.state is in use by process {} on ", first.process.id());
        assert!(said.contains(&words), "{said}");
    }
    let mut worker = worker(folder.path(), &first.url);
    assert!(worker.end().success() && first.process.end().success());
    assert_undisturbed(folder.path());
}

/// Changes a byte in the middle of each of a state's parts, and gives their paths.
fn damage(folder: &Path) -> Vec<PathBuf> {
    let parts = fs::read_dir(folder.join("out.state/parts")).unwrap();
    let parts: Vec<_> = parts.map(|part| part.unwrap().path()).collect();
    for part in &parts {
        let mut content = fs::read(part).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(part, content).unwrap();
    }
    parts
}

#[test]
fn a_damaged_object_is_named_with_its_remedy_and_its_package_is_run_again() {
    let folder = setting(16);
    kill_a_run_that_has_finished(folder.path(), 0);
    let parts = damage(folder.path());
    let assert_told = |(code, said): (Option<i32>, String)| {
        assert_eq!(code, Some(2), "{said}");
        let last = said.lines().last().unwrap();
        let remedy = "remove it, and the same command runs its package and those after it again";
        assert!(last.contains("out.state: parts/") && last.contains(" is damaged: "), "{said}");
        assert!(last.contains(remedy) && !last.contains("kept in"), "{said}");
    };
    assert_told(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).verdict());
    let mut coordinator = Coordinator::start(folder.path());
    let mut worker = worker(folder.path(), &coordinator.url);
    assert_told(coordinator.process.verdict());
    assert_told(worker.verdict());
    parts.iter().for_each(|part| fs::remove_file(part).unwrap());
    let (code, said) = Process::start(folder.path(), &["run", "job.toml"]).verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("out.state lacks objects of package 1: it is run again"), "{said}");
    assert_undisturbed(folder.path());
}

/// A job of two packages, which are surveyed before they are pruned, gives the same whoever prunes and however often it is begun.
fn surveyed_packages_are_pruned_the_same(sparsity: &str) {
    let setting = || setting_of(sparsity, 8);
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
    let mut coordinator = Coordinator::start(folder.path());
    let mut worker = worker(folder.path(), &coordinator.url);
    assert!(worker.end().success() && coordinator.process.end().success());
    assert!(result(folder.path()) == undisturbed, "by a coordinator and a worker");
}

#[test]
fn heads_and_neurons_by_a_budget_are_the_same_whoever_prunes_them_and_however_often_it_is_begun() {
    surveyed_packages_are_pruned_the_same("pattern = \"structured\"\nbudget = 0.2");
}

/// The same with blocks 2 to 4 left dense: half of the linears, and half of the time.
fn of_half_the_blocks(sparsity: &str) -> String {
    format!("{sparsity}\n[[sparsity.rules]]\nmatch = \"transformer_blocks.[234].*\"\nskip = true")
}

#[test]
fn ratios_where_they_cost_least_are_the_same_whoever_finds_them_and_however_often_it_is_begun() {
    surveyed_packages_are_pruned_the_same(&of_half_the_blocks("pattern = \"unstructured\"\nratio = 0.5"));
}

#[test]
fn linears_that_stay_dense_are_the_same_whoever_chooses_them_and_however_often_it_is_begun() {
    surveyed_packages_are_pruned_the_same(&of_half_the_blocks("pattern = \"2:4\"\ndense = 0.2"));
}

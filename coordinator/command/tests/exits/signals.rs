//! SIGINT and SIGTERM.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use obsdiff_tests::not_tested;

use crate::process::{
    BETWEEN, Coordinator, FIRST, LONG, Process, assert_undisturbed, setting, undisturbed, worker,
};

const OBSDIFF: &str = env!("CARGO_BIN_EXE_obsdiff");

/// Waits until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what} never came");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

/// Runs the job until its first package is kept.
fn run_until_a_package_is_kept(folder: &Path) -> Process {
    let run = Process::start(folder, &["run", "job.toml", "--quiet"]);
    let manifest = folder.join("out.state/packages/00000.json");
    until("a package", || manifest.exists());
    run
}

#[test]
fn a_run_that_is_stopped_says_what_is_kept_and_goes_on_by_the_same_command() {
    undisturbed(16);
    for (signal, name, code) in [("INT", "SIGINT", 130), ("TERM", "SIGTERM", 143)] {
        let folder = setting(16);
        let mut run = run_until_a_package_is_kept(folder.path());
        run.signal(signal);
        let (ended, said) = run.verdict();
        assert_eq!(ended, Some(code), "{said}");
        let words = format!("stopped by {name}: 1 of 2 packages kept in out.state; to go on: ");
        assert!(said.contains(&words) && said.ends_with("obsdiff run job.toml --quiet\n"), "{said}");
        assert!(!folder.path().join("out").exists());
        assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn the_command_that_goes_on_has_the_variables_that_its_job_goes_by() {
    let folder = setting(16);
    let mut command = Command::new(OBSDIFF);
    command.args(["run", "job.toml", "--quiet"]).current_dir(folder.path());
    command.env("OBSDIFF_OUTPUT__STATE", "a state").env("OBSDIFF_CALIBRATION__SEED", "3");
    command.env("OBSDIFF_PORT", "tcp://10.0.0.1:7070").env("AWS_SECRET_ACCESS_KEY", "of-nobody");
    let mut run = Process::spawn(&mut command);
    let manifest = folder.path().join("a state/packages/00000.json");
    until("a package", || manifest.exists());
    run.signal("INT");
    let (code, said) = run.verdict();
    assert_eq!(code, Some(130), "{said}");
    let (_, again) = said.trim_end().rsplit_once("to go on: ").unwrap_or_else(|| panic!("{said}"));
    let variables = "OBSDIFF_CALIBRATION__SEED=3 OBSDIFF_OUTPUT__STATE='a state' ";
    assert!(again.starts_with(variables) && again.ends_with("run job.toml --quiet"), "{said}");
    assert!(!said.contains("OBSDIFF_PORT") && !said.contains("of-nobody"), "{said}");
    let mut shell = Command::new("sh");
    let (code, said) = Process::spawn(shell.args(["-c", again]).current_dir(folder.path())).verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(folder.path().join("out/pruning.json").exists() && !folder.path().join("a state").exists());
}

/// The process that another one started.
fn child_of(parent: u32) -> Option<String> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let folder = entry.unwrap().path();
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // The name, in brackets, may hold anything.
        let fields = stat.rsplit_once(')')?.1;
        let its = fields.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (its == parent).then(|| folder.file_name().unwrap().to_string_lossy().into_owned())
    })
}

/// The kernel drops signals for a process 1 that has no handler for them, whoever sends them.
#[test]
fn a_process_1_obeys_sigterm_and_sigint() {
    let may = Command::new("unshare").args(["--pid", "--fork", "true"]).output();
    if !may.as_ref().is_ok_and(|output| output.status.success()) {
        return not_tested(format!("this system lets nobody make a namespace of processes: {may:?}"));
    }
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let folder = setting(16);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", OBSDIFF, "run", "job.toml", "--quiet"]);
        let mut outer = Process::spawn(command.current_dir(folder.path()));
        let manifest = folder.path().join("out.state/packages/00000.json");
        until("a package", || manifest.exists());
        let inner = child_of(outer.id()).expect("no process 1");
        let sent = Command::new("kill").args([format!("-{signal}"), inner]).status().unwrap();
        assert!(sent.success());
        let (ended, said) = outer.verdict();
        assert_eq!(ended, Some(code), "{said}");
        // A manifest is there before its process counts it.
        assert!(said.contains(" of 2 packages kept"), "{said}");
    }
}

#[test]
fn a_worker_that_drains_and_a_coordinator_that_stops_exit_with_143_and_the_job_goes_on() {
    let folder = setting(16);
    let mut first = Coordinator::start(folder.path());
    let mut drained = worker(folder.path(), &first.url);
    first.until(BETWEEN);
    drained.terminate();
    let (code, said) = drained.verdict();
    assert_eq!(code, Some(143), "{said}");
    assert!(said.contains("stopped by SIGTERM: the job goes on with other workers"), "{said}");
    first.process.terminate();
    let (code, said) = first.process.verdict();
    assert_eq!(code, Some(143), "{said}");
    let words = "stopped by SIGTERM: 1 of 2 packages kept in out.state; to go on: ";
    assert!(said.contains(words), "{said}");
    let mut second = Coordinator::start(folder.path());
    assert!(worker(folder.path(), &second.url).end().success());
    assert!(second.process.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_worker_of_a_cancelled_job_does_not_say_that_it_is_done() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut worker = worker(folder.path(), &coordinator.url);
    coordinator.until(FIRST);
    assert!(Process::start(folder.path(), &["status", &coordinator.url, "--cancel"]).end().success());
    for process in [&mut worker, &mut coordinator.process] {
        let (code, said) = process.verdict();
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("cancelled"), "{said}");
    }
}

/// The worker's coordinator is stopped in the midst of its work: it cannot leave in good order.
#[test]
fn a_second_signal_ends_a_process_at_once() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut worker = worker(folder.path(), &coordinator.url);
    coordinator.until(FIRST);
    coordinator.process.signal("STOP");
    // The kernel makes one of two that come before the process runs again: the second to arrive ends it.
    while worker.ended().is_none() {
        worker.signal("INT");
    }
    let (code, said) = worker.verdict();
    // By its own way it would have left with a few words.
    assert_eq!((code, said.as_str()), (Some(130), ""));
}

/// A watcher of a job says how that ends, and does not wait for a coordinator that is gone.
#[test]
fn a_watcher_ends_as_its_job_or_as_soon_as_the_coordinator_goes() {
    let folder = setting(2);
    for signal in ["KILL", "TERM"] {
        let mut coordinator = Coordinator::start(folder.path());
        coordinator.process.signal(signal);
        let (code, said) = coordinator.watch.verdict();
        assert_eq!(code, Some(3), "{said}");
        let gone = format!(
            "error: {} has gone, but the job is not over: start its coordinator again",
            coordinator.url
        );
        assert!(said.starts_with(&gone) && said.lines().count() == 1, "{signal}: {said}");
        coordinator.process.end();
    }
    let mut coordinator = Coordinator::start(folder.path());
    let cancel = ["status", &coordinator.url, "--cancel", "--watch"];
    let asked = Process::start(folder.path(), &cancel).verdict();
    assert_eq!(asked, (Some(0), String::new()));
    let words = "error: the job is over without a result: cancelled\n".to_owned();
    assert_eq!(coordinator.watch.verdict(), (Some(3), words));
    // It holds the job's state until workers that stand by could learn that the job is over.
    coordinator.process.end();
    let mut coordinator = Coordinator::start(folder.path());
    assert!(worker(folder.path(), &coordinator.url).end().success());
    assert_eq!(coordinator.watch.verdict(), (Some(0), String::new()));
}

#[test]
fn whatever_a_process_does_it_can_be_stopped() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut watch = Process::start(folder.path(), &["status", &coordinator.url, "--watch"]);
    assert!(watch.line(|_| true).is_some());
    watch.signal("INT");
    assert_eq!(watch.verdict(), (Some(130), "stopped by SIGINT\n".to_owned()));
    // It waits for its first worker.
    coordinator.process.signal("INT");
    let (code, said) = coordinator.process.verdict();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("0 of 2 packages kept"), "{said}");
}

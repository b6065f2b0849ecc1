//! A run that is killed between two of the file operations by which it writes its output and removes its state: the same command ends
//! it, with equal bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use obsdiff::clock::monotonic;
use obsdiff::job::JobFile;
use obsdiff::progress::Progress;
use obsdiff::run::{DenseSamples, RUN_SPAN, RunContext, run};
use obsdiff::spans::Spans;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::{Disk, Operation, OperationHook};
use obsdiff_tests::copy_folder;

mod process;

/// The variable that says to the process of a test at which operation it ends.
const LAST: &str = "RUN_LAST";

/// Counts operations, and may end the process at one: the first has the number 0.
struct Until {
    seen: AtomicUsize,
    last: Option<usize>,
    log: Mutex<Vec<Operation>>,
}

impl OperationHook for Until {
    fn before(&self, operation: Operation, _: &Path) -> io::Result<()> {
        let seen = self.seen.fetch_add(1, Ordering::SeqCst);
        if self.last == Some(seen) {
            std::process::abort();
        }
        self.log.lock().unwrap().push(operation);
        Ok(())
    }
}

/// Runs the job of the current folder, until it is killed at an operation.
fn run_until(last: Option<usize>) -> Vec<Operation> {
    let until = Arc::new(Until { seen: AtomicUsize::new(0), last, log: Mutex::default() });
    let job = JobFile::load(Path::new("job.toml"), [], &[]).unwrap();
    let progress = Progress::lines(io::sink(), monotonic());
    let (spans, disk) = (Spans::new(RUN_SPAN, monotonic()), Disk::with_hook(until.clone()));
    run(
        &job,
        &RunContext {
            device: &ComputeDevice::Cpu,
            outlook: None,
            traces: None,
            workers: Some(1),
            memory: None,
            save_every: None,
            baseline: false,
            progress: &progress,
            spans: &spans,
            disk: &disk,
            dense: &DenseSamples::default(),
        },
    )
    .unwrap();
    std::mem::take(&mut *until.log.lock().unwrap())
}

/// The process that the test below kills; without a number it says its operations.
#[test]
#[ignore = "a process of the test below"]
fn a_run_that_ends_at_an_operation() {
    let last = std::env::var(LAST).ok().map(|last| last.parse().unwrap());
    println!("operations: {:?}", run_until(last));
}

fn child(folder: &Path, last: Option<usize>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "a_run_that_ends_at_an_operation"])
        .current_dir(folder);
    if let Some(last) = last {
        command.env(LAST, last.to_string());
    }
    command
}

#[test]
fn a_run_that_is_killed_while_it_exports_or_removes_its_state_is_ended_by_the_same_command() {
    let folder = process::setting(2);
    let printed = child(folder.path(), None).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let printed = printed.lines().find_map(|line| line.split_once("operations: ")).expect("no operations").1;
    let operations: Vec<&str> = printed.trim_matches(['[', ']']).split(", ").collect();
    let expected = process::result(folder.path());
    let renamed = operations.iter().position(|operation| *operation == "Rename").unwrap();
    assert!(renamed > 20 && operations.len() > renamed + 10, "{printed}");

    // Everything is solved, and nothing is exported.
    let solved = process::setting(2);
    assert!(!child(solved.path(), Some(0)).output().unwrap().status.success());
    assert!(solved.path().join("out.state/packages/00001.json").is_file());
    // The engine's own tests end an export at each of its operations: here are some, and all of those that follow the rename.
    let some = (0..renamed).step_by(renamed / 4).chain(renamed..operations.len());
    for last in some {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(solved.path(), folder.path());
        assert!(
            !child(folder.path(), Some(last)).output().unwrap().status.success(),
            "{last} is never reached"
        );
        let out: PathBuf = folder.path().join("out");
        assert_eq!(out.exists(), last > renamed, "half a pipeline before {}", operations[last]);
        let marked = folder.path().join("out.state/obsdiff.json").exists();
        let (code, said) = process::Process::start(folder.path(), &["run", "job.toml", "--quiet"]).verdict();
        if !marked {
            // The job was done: nothing but an empty folder, or a lock that nobody holds, is left of its state.
            assert_eq!(code, Some(0), "{said}");
            assert!(said.contains("the job is done already, and its result is in out"), "{said}");
            let left = folder.path().join("out.state");
            if left.exists() {
                fs::remove_dir_all(left).unwrap();
            }
            assert!(process::result(folder.path()) == expected, "killed before {}", operations[last]);
            continue;
        }
        assert_eq!(code, Some(0), "killed before {}: {said}", operations[last]);
        assert!(process::result(folder.path()) == expected, "killed before {}", operations[last]);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "something is left beside the job and its output: {left:?}");
    }
}

/// Which Gram each site was solved by, as the index of kept Grams says.
fn kept(folder: &Path) -> serde_json::Value {
    let index = fs::read(folder.join("grams/grams.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&index).unwrap()["content"]["sites"].clone()
}

#[test]
fn a_run_that_is_killed_before_it_writes_down_its_grams_keeps_the_same() {
    let folder = process::setting(2);
    let job = folder.path().join("job.toml");
    let text = fs::read_to_string(&job).unwrap();
    let (before, after) = text.split_once("[output]\n").expect("no [output]");
    fs::write(&job, format!("{before}[output]\ngrams = \"grams\"\n{after}")).unwrap();
    assert!(!child(folder.path(), Some(0)).output().unwrap().status.success());
    let sites = kept(folder.path());
    assert!(sites.as_array().unwrap().len() > 10, "{sites}");
    fs::remove_file(folder.path().join("grams/grams.json")).unwrap();
    // Left by a part that was solved again after a fault.
    let orphan = folder.path().join("grams/grams").join(format!("{}.safetensors", "0a".repeat(32)));
    fs::write(&orphan, "orphan").unwrap();
    let (code, said) = process::Process::start(folder.path(), &["run", "job.toml", "--quiet"]).verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(kept(folder.path()), sites);
    assert!(!orphan.exists());
}

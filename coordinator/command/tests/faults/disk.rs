//! A disk that is full where the job keeps its state, or where its output goes.

use std::fs;
use std::path::Path;

use crate::hosts::{Host, available};
use crate::process::{FIRST, Process, assert_same_but_for_the_state, result, setting, undisturbed};

/// Room for the weights of one package of two.
const SMALL: &str = "6m";
/// Room for no pipeline.
const TINY: &str = "1m";
/// Room for all.
const LARGE: &str = "64m";

const FULL: &str = "No space left on device";

/// A job whose state or output is on a disk that only its host has.
struct Setting {
    host: Host,
    folder: tempfile::TempDir,
}

impl Setting {
    /// One whose state is on a disk with room for all.
    fn new() -> Self {
        Self::with_output("path = \"out\"\nstate = \"disk/state\"", LARGE)
    }

    /// One with these keys of its output, and a disk of this size.
    fn with_output(keys: &str, size: &str) -> Self {
        let (host, folder) = (Host::new(), setting(16));
        let job = folder.path().join("job.toml");
        let words = fs::read_to_string(&job).unwrap();
        fs::write(job, words.replace("path = \"out\"", keys)).unwrap();
        let disk = folder.path().join("disk");
        fs::create_dir(&disk).unwrap();
        host.run(&format!("mount -t tmpfs -o size={size} tmpfs {}", disk.display()));
        Self { host, folder }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn make_room(&self) {
        self.resize(LARGE);
    }

    fn resize(&self, size: &str) {
        let disk = self.folder().join("disk");
        self.host.run(&format!("mount -o remount,size={size} {}", disk.display()));
    }

    fn start(&self, args: &[&str]) -> Process {
        Process::spawn(self.host.command(self.folder(), env!("CARGO_BIN_EXE_obsdiff")).args(args))
    }

    /// A coordinator, a worker of it, and what is reported.
    fn job(&self) -> (Process, Process, Process) {
        let mut coordinator = self.start(&["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"]);
        let line = coordinator.line(|line| line.starts_with("listening on "));
        let url = line.expect("it does not listen").replace("listening on ", "http://");
        let watch = self.start(&["status", &url, "--watch"]);
        let worker = self.start(&["worker", "--coordinator", &url, "--quiet"]);
        (coordinator, worker, watch)
    }
}

/// The disks of this file fill up after the job has begun: before, a job that does not fit is refused.
#[test]
fn a_job_that_the_disk_of_its_state_or_its_grams_has_no_room_for_does_not_begin() {
    if !available() {
        return;
    }
    for (keys, key) in [
        ("path = \"out\"\nstate = \"disk/state\"", "output.state"),
        ("path = \"out\"\ngrams = \"disk/grams\"", "output.grams"),
    ] {
        let setting = Setting::with_output(keys, SMALL);
        let (code, said) = setting.start(&["run", "job.toml", "--quiet"]).verdict();
        let refused = format!("error: job.toml: {key}: needs ");
        assert!(code == Some(2) && said.starts_with(&refused), "{code:?}: {said}");
        assert!(said.ends_with("disk has 6.0 MiB free: make room or choose another\n"), "{said}");
        assert!(!setting.folder().join("out.state").exists(), "it has begun");
        let (code, said) = setting.start(&["plan", "job.toml"]).verdict();
        let noted = format!("note: job.toml: {key}: needs ");
        assert!(code == Some(0) && said.starts_with(&noted), "{code:?}: {said}");
        setting.make_room();
        let (code, said) = setting.start(&["run", "job.toml", "--quiet"]).verdict();
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn a_job_waits_for_room_on_a_full_disk() {
    if !available() {
        return;
    }
    let setting = Setting::new();
    let (mut coordinator, mut worker, mut watch) = setting.job();
    assert!(watch.line(FIRST).is_some());
    setting.resize(SMALL);
    let line = watch.line(|line| line.contains(" failed 1 time: ")).expect("there is room");
    assert!(line.contains("disk/state") && line.contains(FULL), "{line}");
    setting.make_room();
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    assert_same_but_for_the_state(setting.folder());
}

#[test]
fn a_disk_that_stays_full_ends_the_job_which_goes_on_when_there_is_room() {
    if !available() {
        return;
    }
    let setting = Setting::new();
    let (mut coordinator, mut worker, mut watch) = setting.job();
    assert!(watch.line(FIRST).is_some());
    setting.resize(SMALL);
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(3), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("disk/state") && last.contains(FULL), "{said}");
    println!("{last}");
    assert_eq!(worker.end().code(), Some(3));

    setting.make_room();
    let (mut coordinator, mut worker, mut watch) = setting.job();
    let line = watch.line(|line| line.contains(" of 2")).unwrap();
    assert!(line.contains("package 2 of 2"), "what was committed is lost: {line}");
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    assert_same_but_for_the_state(setting.folder());
}

/// The disk has room for the output when the job begins, and is full of others' files when it is written.
#[test]
fn an_export_waits_for_room_on_a_full_disk() {
    if !available() {
        return;
    }
    let setting = Setting::with_output("path = \"disk/out\"\nstate = \"out.state\"", LARGE);
    let (mut coordinator, mut worker, mut watch) = setting.job();
    assert!(watch.line(FIRST).is_some());
    setting.resize(TINY);
    let line = watch.line(|line| line.contains("export ") && line.contains(" failed 1 time: "));
    let line = line.expect("there is room");
    assert!(line.contains("disk/") && line.contains(FULL) && line.ends_with(": make room there"), "{line}");
    setting.make_room();
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    // Only the host sees its disk.
    let folder = setting.folder().display();
    setting.host.run(&format!("mv {folder}/disk/out {folder}/out"));
    setting.host.run(&format!("find {folder}/disk -mindepth 1 -fprint {folder}/left"));
    assert_eq!(fs::read_to_string(setting.folder().join("left")).unwrap(), "", "something is left");
    assert!(result(setting.folder())[0] == undisturbed(16)[0], "the weights differ");
}

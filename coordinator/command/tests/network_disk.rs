//! A disk of the network: there a file that is removed while it is open keeps a name until it is closed, and its folder cannot be removed before.
//! Programs run with a library that makes the same of any disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

mod process;

use process::*;

/// The library, compiled by g++ once.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/network_disk/open_files.cpp");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("open_files.so");
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]);
        assert!(compiler.arg("-o").arg(&library).arg(source).arg("-ldl").status().unwrap().success());
        library
    })
}

fn start(folder: &Path, args: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    Process::spawn(command.args(args).current_dir(folder).env("LD_PRELOAD", library()))
}

fn succeeds(folder: &Path, args: &[&str]) {
    let (code, said) = start(folder, args).verdict();
    assert_eq!(code, Some(0), "{args:?}: {said}");
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn everything_that_is_written_there_appears_and_nothing_is_left_beside_it() {
    let folder = setting(16);
    let folder = folder.path();
    let keep = ["--set", "output.grams=grams", "--set", "evaluation.count=1", "--set", "output.path=kept"];
    succeeds(folder, &["run", "job.toml", "--quiet"]);
    assert_undisturbed(folder);
    succeeds(folder, &[&["run", "job.toml", "--quiet"], &keep[..]].concat());
    succeeds(folder, &["sweep", "grams", "--ratios", "0.3", "--out", "sweep", "--quiet"]);
    succeeds(folder, &["export", "out", "--single-file", "out.safetensors"]);
    assert_eq!(names(folder), ["grams", "job.toml", "kept", "out", "out.safetensors", "sweep"]);
}

#[test]
fn a_coordinator_and_a_worker_finish_their_job_there() {
    let folder = setting(16);
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let mut coordinator = start(folder.path(), &args);
    let line = coordinator.line(|line| line.contains("listening on ")).expect("it does not listen");
    let url = format!("http://{}", line.strip_prefix("listening on ").unwrap());
    let mut worker = start(folder.path(), &["worker", "--coordinator", &url, "--quiet", "--threads", "1"]);
    let (code, said) = worker.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(coordinator.end().success());
    assert_undisturbed(folder.path());
    assert_eq!(names(folder.path()), ["job.toml", "out"]);
}

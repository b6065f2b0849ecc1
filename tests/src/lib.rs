//! What tests of all crates share. Whole-system tests of obsdiff live in `tests/`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fake_cuda;
mod prng;

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{Write, stderr};
use std::panic::Location;
use std::path::{Path, PathBuf};

pub use fake_cuda::{FakeNccl, fake_cuda, fake_cuda_with};
pub use prng::{Prng, hash, noise};

/// Names the file that gets a line for each test that does not run. `tests/run` sets it, and shows the lines at its end.
/// `OBSDIFF_...` would be keys of a job.
pub const NOT_TESTED_LOG: &str = "NOT_TESTED_LOG";

/// The folder of goldens. `OBSDIFF_GOLDENS` names it where test programs run elsewhere than they were built.
pub fn goldens() -> PathBuf {
    let built = || concat!(env!("CARGO_MANIFEST_DIR"), "/assets/goldens").into();
    std::env::var_os("OBSDIFF_GOLDENS").map_or_else(built, PathBuf::from)
}

/// A shipped pipeline, which lies beside the goldens.
pub fn shipped(pipeline: &str) -> PathBuf {
    goldens().with_file_name(pipeline)
}

/// Says that a test cannot run on this machine, and why. A test that returns early calls this first, so that none is skipped in silence.
///
/// The test harness hides what a passing test prints. This goes to standard error past the harness.
#[track_caller]
pub fn not_tested(why: impl Display) {
    let line = format!("NOT TESTED: {}: {why}\n", Location::caller());
    stderr().write_all(line.as_bytes()).unwrap();
    if let Some(log) = std::env::var_os(NOT_TESTED_LOG) {
        // One write, so that lines of several processes stay whole.
        OpenOptions::new().append(true).create(true).open(log).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// Copies what a folder holds, with all below it, into another one, which is made where it is not there.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            // The bytes alone: assets may be read-only.
            fs::write(to, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

//! The `obsdiff` binary as its user sees it: help, results, refusals and exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod allocation;
mod browser;
mod checkpoint;
#[path = "../chromium/mod.rs"]
mod chromium;
mod conditioning;
mod device;
#[cfg(feature = "cuda")]
mod device_memory;
mod device_pictures;
mod disk_full;
mod flux;
mod flux_scores;
mod gram_prompts;
mod grams;
mod help;
mod init;
mod inspect;
mod irregular;
mod job_refusals;
mod ownership;
mod paths;
mod pictures;
mod plan;
mod plan_sizes;
#[path = "../process/mod.rs"]
mod process;
mod refusals;
mod report;
mod reproduced;
mod run_refusals;
mod setting;
mod structured;
mod terminal;
mod watched;
mod wheel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The small trained pipeline.
pub(crate) fn pipeline() -> PathBuf {
    asset("shapes-sd3")
}

pub(crate) fn asset(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets")).join(name)
}

/// A job on the small pipeline, in the folder of the assets, whose output would go to `folder`.
pub(crate) fn job(folder: &Path) -> PathBuf {
    let path = folder.join("job.toml");
    let text = format!(
        "[model]\npath = \"shapes-sd3\"\n[sparsity]\npattern = \"unstructured\"\nratio = 0.5\n\
         [calibration]\nprompts = \"shapes-prompts.txt\"\nmax_sequence_length = 24\n[output]\npath = \"{}\"\n",
        folder.join("out").display()
    );
    fs::write(&path, text).unwrap();
    path
}

/// Runs the command in `folder`, with an environment that says nothing about jobs.
pub(crate) fn obsdiff(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OBSDIFF_") {
            command.env_remove(name);
        }
    }
    command.current_dir(folder).args(args).envs(environment.iter().copied()).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The standard output of a command that succeeds.
pub(crate) fn printed(folder: &Path, args: &[&str]) -> String {
    let output = obsdiff(folder, args, &[]);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

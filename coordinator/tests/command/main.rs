//! The `obsdiff` binary as its user sees it: help, results, refusals and exit codes.

mod help;
mod inspect;
mod refusals;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The small trained pipeline.
pub(crate) fn pipeline() -> PathBuf {
    asset("shapes-sd3")
}

pub(crate) fn asset(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/assets")).join(name)
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
pub(crate) fn told(folder: &Path, args: &[&str]) -> String {
    let output = obsdiff(folder, args, &[]);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

//! The batch script for Slurm runs a job to its end, with programs in the place of Slurm's: an `srun` that starts two tasks.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// The ports of jobs, which the script counts on from the first one by the job's number.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
/// It ends its tasks with itself, also when the signal comes while it starts them.
const SRUN: &str = "#!/usr/bin/env bash
trap 'kill -TERM $(jobs -p) 2>/dev/null; exit 143' TERM
[ \"$1\" = --kill-on-bad-exit=0 ] || exit 1
shift
\"$@\" &
BETWEEN
\"$@\" &
wait
";
/// What it does between its two tasks: nothing, or it waits until the first one has ended, and then the coordinator.
const AT_ONCE: &str = "";
const LATE: &str = "wait; while (: </dev/tcp/127.0.0.1/${4##*:}) 2>/dev/null; do :; done";

fn program(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A number of a job whose port is free. Tests that run side by side give different numbers from which to look.
fn job_number(from: u32) -> u16 {
    let free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    let first = PORTS.start + ((std::process::id() + from) % 20_000) as u16;
    let port = (first..PORTS.end).chain(PORTS.start..first).find(free).unwrap();
    port - PORTS.start
}

/// What the script does with the shipped job and a ratio, submitted from a folder that gets the output, with this between the two tasks.
fn submitted(folder: &Path, ratio: &str, between: &str, number: u16) -> Output {
    let programs = folder.join("bin");
    fs::create_dir(&programs).unwrap();
    symlink(env!("CARGO_BIN_EXE_obsdiff"), programs.join("obsdiff")).unwrap();
    program(&programs, "srun", &SRUN.replace("BETWEEN", between));
    program(&programs, "hostname", "#!/bin/sh\necho 127.0.0.1\n");
    // The paths of the shipped job are relative to the sources, and the script keeps its token where it was submitted.
    for name in ["tests", "deploy"] {
        symlink(Path::new(ROOT).join(name), folder.join(name)).unwrap();
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["deploy/slurm/obsdiff.sbatch", "deploy/jobs/shapes-sd3.toml", "--quiet"])
        .current_dir(folder)
        .env("PATH", path)
        .env("SLURM_JOB_ID", number.to_string())
        .env("SLURM_CPUS_PER_TASK", "1")
        .env("OBSDIFF_SPARSITY__RATIO", ratio)
        .env("OBSDIFF_CALIBRATION__COUNT", "8")
        .env("OBSDIFF_CALIBRATION__STEPS", "3")
        .env("OBSDIFF_EVALUATION__COUNT", "2")
        .env("OBSDIFF_OUTPUT__PATH", folder.join("out"))
        .output()
        .unwrap();
    let left = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let tokens = left.filter(|name| name.to_string_lossy().ends_with(".token")).count();
    assert_eq!(tokens, 0, "the token stays");
    output
}

#[test]
fn the_batch_script_for_slurm_finishes_a_job() {
    let folder = tempfile::tempdir().unwrap();
    let output = submitted(folder.path(), "0.5", AT_ONCE, job_number(0));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(folder.path().join("out/model_index.json").is_file());
}

#[test]
fn the_batch_script_for_slurm_ends_with_its_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let output = submitted(folder.path(), "1.5", AT_ONCE, job_number(7_000));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("error: OBSDIFF_SPARSITY__RATIO: is 1.5"), "{said}");
}

#[test]
fn the_batch_script_for_slurm_does_not_wait_for_a_worker_that_comes_when_the_job_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let output = submitted(folder.path(), "0.5", LATE, job_number(14_000));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the coordinator is away"), "{said}");
    assert!(folder.path().join("out/model_index.json").is_file());
}

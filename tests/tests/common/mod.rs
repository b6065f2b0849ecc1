//! Jobs on the shipped pipeline, run in this process.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};

use obsdiff::clock::monotonic;
use obsdiff::job::JobFile;
use obsdiff::progress::Progress;
use obsdiff::run::{RUN_SPAN, RunContext, Summary, run};
use obsdiff::spans::Spans;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::Disk;

/// The folder of shipped assets.
pub(crate) fn assets() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/assets"))
}

/// A job file of the shipped pipeline in `folder`, with the output beside it.
pub(crate) fn job_file(folder: &Path, prompts: &Path, output: &str) -> PathBuf {
    let file = folder.join(format!("{output}.toml"));
    let text = format!(
        r#"
        [model]
        path = {:?}
        [sparsity]
        pattern = "unstructured"
        ratio = 0.5
        [calibration]
        prompts = {prompts:?}
        guidance = 4.0
        height = 32
        width = 32
        max_sequence_length = 24
        [output]
        path = {:?}
        "#,
        assets().join("shapes-sd3"),
        folder.join(output),
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// Runs a job file with some keys set.
pub(crate) fn run_job(file: &Path, sets: &[&str]) -> obsdiff::Result<Summary> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let job = JobFile::load(file, [], &sets)?;
    let progress = Progress::lines(std::io::sink(), monotonic());
    let (spans, disk) = (Spans::new(RUN_SPAN, monotonic()), Disk::default());
    run(
        &job,
        &RunContext {
            device: &ComputeDevice::Cpu,
            outlook: None,
            traces: None,
            workers: Some(1),
            memory: None,
            baseline: false,
            progress: &progress,
            spans: &spans,
            disk: &disk,
        },
    )
}

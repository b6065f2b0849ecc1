//! A shrunk pipeline in diffusers: both ways to load it, and the same pictures as ours. Needs a Python with venv and a few gigabytes of
//! packages, which it installs; so it runs where OBSDIFF_PY_TESTS=1 alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use common::{assets, job_file, run_job};
use obsdiff::clock::monotonic;
use obsdiff::progress::Progress;
use obsdiff::sampling::{Sampling, Settings, load_transformer};
use obsdiff_engine::pipeline::PipelineFolder;

const PACKAGES: [&str; 6] = ["torch", "diffusers", "transformers", "accelerate", "sentencepiece", "protobuf"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/shrunk_pipeline.py");

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// The Python of an environment with diffusers, made on first use: OBSDIFF_PYTHON, or one beside the build.
fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("OBSDIFF_PYTHON") {
        return python.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("diffusers");
    let python = folder.join("bin/python");
    if !folder.join("ready").exists() {
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        succeed(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES));
        std::fs::write(folder.join("ready"), "").unwrap();
    }
    python
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| {
        t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    norm(&(a - b).unwrap()) / norm(b)
}

/// Our final latents and decoded pictures, with the settings of the script.
fn sampled(pipeline: &Path, prompts: &[&str]) -> (Tensor, Tensor) {
    let settings = Settings {
        steps: 10,
        guidance: 4.0,
        seed: 11,
        height: Some(32),
        width: Some(32),
        max_sequence_length: 24,
        batch: 1,
    };
    let folder = PipelineFolder::open(pipeline).unwrap();
    let prompts: Vec<String> = prompts.iter().map(|prompt| prompt.to_string()).collect();
    let progress = Progress::lines(std::io::sink(), monotonic());
    let sampling = Sampling::new(&folder, &prompts, settings, pipeline.parent().unwrap(), &progress).unwrap();
    let latents = sampling.latents(&load_transformer(&folder).unwrap(), "sample", &progress).unwrap();
    let pictures = folder.vae(&Device::Cpu).unwrap().decode(&latents).unwrap();
    (latents, pictures)
}

#[test]
fn diffusers_loads_a_shrunk_pipeline_and_makes_our_pictures() {
    if std::env::var_os("OBSDIFF_PY_TESTS").is_none_or(|asked| asked != "1") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
    let sets =
        ["sparsity.pattern=structured", "sparsity.ratio=0.3", "calibration.count=8", "calibration.steps=5"];
    run_job(&file, &sets).unwrap();
    let prompts =
        ["a red circle on white", "a yellow ring at the top and a purple cross at the bottom on grey"];

    let python = python();
    succeed(Command::new(&python).arg(SCRIPT).arg(out("out")).arg(out("theirs.safetensors")).args(prompts));
    let theirs = candle_core::safetensors::load(out("theirs.safetensors"), &Device::Cpu).unwrap();

    let ours = sampled(&out("out"), &prompts);
    let [latents, pictures] = ["latents", "pictures"].map(|name| theirs[name].clone());
    let (by_latents, by_pictures) = (relative(&ours.0, &latents), relative(&ours.1, &pictures));
    println!("latents {by_latents:.1e}, pictures {by_pictures:.1e} apart");
    assert!(by_latents < 1e-3 && by_pictures < 5e-3);
    assert!(relative(&theirs["latents.by_function"], &latents) < 1e-6);
}

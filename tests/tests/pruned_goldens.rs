//! The whole job on the shipped pipeline against a float64 oracle that ran the same four packages on the same prompts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{assets, job_file, run_job};
use obsdiff_engine::checkpoint::Weights;
use safetensors::SafeTensors;

/// Metadata of a golden: the prompts that the oracle used.
fn prompts_of(golden: &Path) -> Vec<String> {
    let bytes = fs::read(golden).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["prompts"]).unwrap()
}

fn zeros(tensor: &Tensor) -> Vec<bool> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|w| *w == 0.0).collect()
}

fn holds(golden: &str, pattern: &[&str]) {
    let golden = assets().join("goldens/shapes-sd3").join(golden);
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.txt");
    fs::write(&prompts, prompts_of(&golden).join("\n")).unwrap();
    let file = job_file(folder.path(), &prompts, "out");
    let common =
        ["calibration.count=4", "calibration.steps=10", "calibration.seed=11", "packages.balance=units"];
    let sets: Vec<&str> = common.iter().chain(pattern).copied().collect();
    let summary = run_job(&file, &sets).unwrap();
    assert_eq!(
        summary.record.linears.len(),
        6 * 12 - 3,
        "every linear of six blocks but the last one's missing three"
    );

    let expected = Weights::open_file(&golden).unwrap();
    let found = Weights::open(&folder.path().join("out/transformer"), "diffusion_pytorch_model").unwrap();
    let (mut agree, mut all) = (0, 0);
    for linear in &summary.record.linears {
        let name = format!("{}.weight", linear.name);
        let read = |w: &Weights| zeros(&w.tensor(&name, &linear.shape, DType::F32, &Device::Cpu).unwrap());
        let (expected, found) = (read(&expected), read(&found));
        agree += expected.iter().zip(&found).filter(|(a, b)| a == b).count();
        all += expected.len();
    }
    let share = agree as f64 / all as f64;
    println!("{}: zeros agree on {:.4}%", golden.display(), 100.0 * share);
    assert!(share >= 0.995, "zeros agree on {share} only");
}

#[test]
fn half_of_the_weights_unstructured() {
    holds("pruned-unstructured-50.safetensors", &["sparsity.ratio=0.5"]);
}

#[test]
fn two_of_four() {
    holds("pruned-2-4.safetensors", &["sparsity.pattern=2:4", "sparsity.ratio=0.5"]);
}

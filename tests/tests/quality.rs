//! What pruning costs on the shipped pipeline, by method: final latents against the dense model's on prompts held out from
//! calibration. The second-order method has to beat those that look at a weight and its input alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{assets, job_file, run_job};

/// The error of the pipeline pruned by one method.
fn error(method: &str, pattern: &str) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
    let method = format!("sparsity.method={method}");
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let sets = [
        pattern,
        &method,
        &heldout,
        "evaluation.count=32",
        "calibration.count=100",
        "calibration.steps=25",
        "packages.count=4",
    ];
    let held_out = run_job(&file, &sets).unwrap().held_out.unwrap();
    assert_eq!(held_out.per_prompt.len(), 32);
    held_out.relative
}

fn obs_beats_wanda_beats_magnitude(pattern: &str) {
    let [obs, wanda, magnitude] = ["obs", "wanda", "magnitude"].map(|method| error(method, pattern));
    println!("{pattern}: obs {obs:.4}, wanda {wanda:.4}, magnitude {magnitude:.4}");
    assert!(0.0 < obs && obs < wanda && wanda < magnitude && magnitude < 1.0);
}

#[test]
fn half_of_the_weights_unstructured() {
    obs_beats_wanda_beats_magnitude("sparsity.pattern=unstructured");
}

#[test]
fn two_of_four() {
    obs_beats_wanda_beats_magnitude("sparsity.pattern=2:4");
}

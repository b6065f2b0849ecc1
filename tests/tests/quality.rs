//! What pruning costs on the shipped pipeline, by method: final latents against the dense model's on prompts held out from
//! calibration. The second-order method has to beat those that look at a weight and its input alone, refined or not. Refined by 5
//! steps, each does better with a quarter of the calibration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{assets, job_file, run_job};

/// Prompts, steps and refinement.
type CalibrationEffort = [&'static str; 3];

const UNREFINED: CalibrationEffort = ["calibration.count=100", "calibration.steps=25", "sparsity.refine=0"];

const REFINED: CalibrationEffort = ["calibration.count=25", "calibration.steps=25", "sparsity.refine=5"];

/// The error of the pipeline pruned by one method.
fn error(method: &str, pattern: &str, effort: CalibrationEffort) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
    let method = format!("sparsity.method={method}");
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let sets = [pattern, &method, "sparsity.allocation=uniform", &heldout, "evaluation.count=32"];
    let held_out = run_job(&file, &[&sets[..], &effort].concat()).unwrap().held_out.unwrap();
    assert_eq!(held_out.per_prompt.len(), 32);
    held_out.relative
}

fn obs_beats_wanda_beats_magnitude(pattern: &str) {
    let methods = ["obs", "wanda", "magnitude"];
    let [obs, wanda, magnitude] = methods.map(|method| error(method, pattern, UNREFINED));
    println!("{pattern}: obs {obs:.4}, wanda {wanda:.4}, magnitude {magnitude:.4}");
    assert!(0.0 < obs && obs < wanda && wanda < magnitude && magnitude < 1.0);
    let refined = methods.map(|method| error(method, pattern, REFINED));
    println!(
        "{pattern}, refined: obs {:.4}, wanda {:.4}, magnitude {:.4}",
        refined[0], refined[1], refined[2]
    );
    assert!(refined[0] < 0.9 * obs && refined[1] < 0.9 * wanda && refined[2] < 0.9 * magnitude);
    assert!(refined[0] < refined[1] && refined[1] < refined[2]);
}

#[test]
fn half_of_the_weights_unstructured() {
    obs_beats_wanda_beats_magnitude("sparsity.pattern=unstructured");
}

#[test]
fn two_of_four() {
    obs_beats_wanda_beats_magnitude("sparsity.pattern=2:4");
}

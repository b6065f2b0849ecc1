//! What refinement gains on the shipped pipeline: final latents against the dense model's on held-out captions, with one package and
//! 5 steps, next to the same job without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{assets, job_file, run_job};

/// The error of the pipeline pruned by OBS in one package, and the mean relative output error of its linears.
fn error(pattern: &[&str], refine: &str) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let common = [
        refine,
        &heldout,
        "evaluation.count=64",
        "calibration.count=32",
        "calibration.steps=20",
        "packages.count=1",
    ];
    let sets: Vec<&str> = common.iter().chain(pattern).copied().collect();
    let summary = run_job(&file, &sets).unwrap();
    let held_out = summary.held_out.unwrap();
    assert_eq!(held_out.per_prompt.len(), 58, "of the 64 captions, 6 repeat an earlier one");
    let linears = &summary.record.linears;
    for linear in linears {
        let refined = linear.unrefined_error.is_some();
        assert_eq!(refined, refine != "sparsity.refine=0", "{}", linear.name);
        assert!(linear.relative_error < linear.unrefined_error || !refined, "{linear:?}");
    }
    let mean = linears.iter().filter_map(|l| l.relative_error).sum::<f64>() / linears.len() as f64;
    (held_out.relative, mean)
}

fn refinement_reaches(pattern: &[&str], most: f64) {
    let (plain, plain_linear) = error(pattern, "sparsity.refine=0");
    let (refined, refined_linear) = error(pattern, "sparsity.refine=5");
    println!(
        "{}: latents {plain:.4}, refined {refined:.4} (at most {most}); linears {plain_linear:.4}, refined {refined_linear:.4}",
        pattern.join(", ")
    );
    assert!(refined <= most && refined_linear < 0.7 * plain_linear);
}

#[test]
fn half_of_the_weights() {
    refinement_reaches(&["sparsity.ratio=0.5"], 0.175);
}

#[test]
fn three_fifths_of_the_weights() {
    refinement_reaches(&["sparsity.ratio=0.6"], 0.24);
}

#[test]
fn seven_tenths_of_the_weights() {
    refinement_reaches(&["sparsity.ratio=0.7"], 0.35);
}

#[test]
fn two_of_four() {
    refinement_reaches(&["sparsity.pattern=2:4"], 0.23);
}

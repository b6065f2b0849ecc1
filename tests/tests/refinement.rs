//! What refinement and better masks gain on the shipped pipeline: final latents against the dense model's on held-out captions, with one
//! package, by OBS as published, with 5 steps of refinement, and by masks of alternating directions refined alike.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{assets, job_file, run_job};

/// The error of the pipeline pruned in one package, and the mean relative output error of its linears.
fn error(method: &str, pattern: &[&str], refine: &str) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let method = format!("sparsity.method={method}");
    let common = [
        &method,
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

/// `oracle` is what the same masks reached in plain f64, on 64 captions.
fn errors_are_at_most(pattern: &[&str], most: f64, most_of_admm: f64, oracle: f64) {
    let (plain, plain_linear) = error("obs", pattern, "sparsity.refine=0");
    let (refined, refined_linear) = error("obs", pattern, "sparsity.refine=5");
    let (admm, admm_linear) = error("admm", pattern, "sparsity.refine=5");
    println!(
        "{}: latents {plain:.4}, refined {refined:.4} (at most {most}), admm {admm:.4} (at most {most_of_admm}; the oracle's {oracle}); \
         linears {plain_linear:.4}, refined {refined_linear:.4}, admm {admm_linear:.4}",
        pattern.join(", ")
    );
    assert!(refined <= most && refined_linear < 0.7 * plain_linear);
    assert!(admm <= most_of_admm && admm_linear < refined_linear);
}

#[test]
fn half_of_the_weights() {
    errors_are_at_most(&["sparsity.ratio=0.5"], 0.175, 0.148, 0.142);
}

#[test]
fn three_fifths_of_the_weights() {
    errors_are_at_most(&["sparsity.ratio=0.6"], 0.24, 0.198, 0.189);
}

#[test]
fn seven_tenths_of_the_weights() {
    errors_are_at_most(&["sparsity.ratio=0.7"], 0.35, 0.275, 0.254);
}

#[test]
fn two_of_four() {
    errors_are_at_most(&["sparsity.pattern=2:4"], 0.23, 0.215, 0.207);
}

//! What refinement and better masks gain on the shipped pipeline: final latents against the dense model's on held-out captions, with one
//! package, by OBS as published, with 5 steps of refinement, and by masks of alternating directions, refined in the same way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::LazyLock;

use common::{KeptGrams, assets};
use obsdiff::run::Summary;

/// Grams of a model and what a survey found, with these keys besides and 58 prompts held out.
fn grams(name: &str, model: &[&str]) -> KeptGrams {
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let common = [
        "sparsity.method=admm",
        "sparsity.allocation=global",
        "sparsity.ratio=0.5",
        "sparsity.refine=5",
        &heldout,
        "evaluation.count=64",
        "calibration.count=32",
        "calibration.steps=20",
    ];
    KeptGrams::of(name, &[&common[..], model].concat())
}

static JOINT: LazyLock<KeptGrams> = LazyLock::new(|| grams("refinement-joint", &[]));

static OTHER: LazyLock<KeptGrams> = LazyLock::new(|| {
    let path = format!("model.path={}", assets().join("shapes-flux").display());
    grams("refinement-other", &[&path, "calibration.guidance=3.5"])
});

/// The error of the pipeline pruned in one package, and the mean relative output error of its linears.
fn error(method: &str, pattern: &[&str], refine: &str) -> (f64, f64) {
    let summary = pruned(&JOINT, method, pattern, refine);
    let linears = &summary.record.linears;
    let mean = linears.iter().filter_map(|l| l.relative_error).sum::<f64>() / linears.len() as f64;
    (summary.held_out.unwrap().relative, mean)
}

fn pruned(grams: &KeptGrams, method: &str, pattern: &[&str], refine: &str) -> Summary {
    let method = format!("sparsity.method={method}");
    let summary = grams.solve(&[&[&method[..], refine], pattern].concat());
    let held_out = summary.held_out.as_ref().unwrap();
    assert_eq!(held_out.per_prompt.len(), 58, "of the 64 captions, 6 repeat an earlier one");
    let linears = &summary.record.linears;
    for linear in linears {
        let refined = linear.unrefined_error.is_some();
        assert_eq!(refined, refine != "sparsity.refine=0", "{}", linear.name);
        assert!(
            linear.relative_error < linear.unrefined_error || !refined || linear.zeros == 0,
            "{linear:?}"
        );
    }
    summary
}

/// Holds masks of alternating directions, with shares where they cost least, to what they reached in plain f64.
fn surveyed_error_is_at_most(grams: &KeptGrams, pattern: &[&str], share: f64, most: f64, oracle: f64) {
    let summary = pruned(grams, "admm", pattern, "sparsity.refine=5");
    let (zeros, weights) = (summary.zeros, summary.weights);
    let error = summary.held_out.unwrap().relative;
    println!("{}: latents {error:.4} (at most {most}; the oracle's {oracle})", pattern.join(", "));
    assert!(error <= most);
    // Linears stay dense as wholes, so that their share may fall a little short.
    let more = if pattern.iter().any(|key| key.contains("dense")) { 5e-3 } else { 1e-3 };
    let found = zeros as f64 / weights as f64;
    assert!((share - 1e-3..=share + more).contains(&found), "{zeros} of {weights} weights are zero");
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
    errors_are_at_most(&["sparsity.allocation=uniform", "sparsity.ratio=0.5"], 0.175, 0.148, 0.142);
}

#[test]
fn three_fifths_of_the_weights() {
    errors_are_at_most(&["sparsity.allocation=uniform", "sparsity.ratio=0.6"], 0.24, 0.198, 0.189);
}

#[test]
fn seven_tenths_of_the_weights() {
    errors_are_at_most(&["sparsity.allocation=uniform", "sparsity.ratio=0.7"], 0.35, 0.275, 0.254);
}

#[test]
fn two_of_four() {
    errors_are_at_most(&["sparsity.pattern=2:4"], 0.23, 0.215, 0.207);
}

#[test]
fn ratios_where_they_cost_least() {
    let global = |ratio| ["sparsity.allocation=global", ratio];
    surveyed_error_is_at_most(&JOINT, &global("sparsity.ratio=0.5"), 0.5, 0.065, 0.057);
    surveyed_error_is_at_most(&JOINT, &global("sparsity.ratio=0.6"), 0.6, 0.095, 0.089);
    surveyed_error_is_at_most(&JOINT, &global("sparsity.ratio=0.7"), 0.7, 0.15, 0.14);
    surveyed_error_is_at_most(&JOINT, &global("sparsity.ratio=0.8"), 0.8, 0.25, 0.241);
}

#[test]
fn two_of_four_but_for_the_costliest_fifth() {
    let spared = ["sparsity.pattern=2:4", "sparsity.dense=0.2"];
    surveyed_error_is_at_most(&JOINT, &spared, 0.4, 0.115, 0.104);
}

#[test]
fn the_same_for_another_architecture() {
    let global = |ratio| ["sparsity.allocation=global", ratio];
    surveyed_error_is_at_most(&OTHER, &global("sparsity.ratio=0.5"), 0.5, 0.033, 0.028);
    surveyed_error_is_at_most(&OTHER, &global("sparsity.ratio=0.7"), 0.7, 0.105, 0.089);
    let spared = ["sparsity.pattern=2:4", "sparsity.dense=0.2"];
    surveyed_error_is_at_most(&OTHER, &spared, 0.4, 0.062, 0.052);
}

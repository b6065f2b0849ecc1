//! What pruning costs on the shipped pipeline, by method: final latents against the dense model's on prompts held out from
//! calibration. The second-order method has to beat those that look at a weight and its input alone, refined or not. Refined by 5
//! steps, each does better with a quarter of the calibration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::LazyLock;

use common::{KeptGrams, assets};

/// Grams of so many prompts, of 25 steps each, with 32 prompts held out.
fn grams(count: &str) -> KeptGrams {
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    KeptGrams::of(
        &format!("quality-{count}"),
        &[
            &format!("calibration.count={count}"),
            "calibration.steps=25",
            "sparsity.method=obs",
            "sparsity.allocation=uniform",
            "sparsity.refine=0",
            &heldout,
            "evaluation.count=32",
        ],
    )
}

/// By how many Grams, and how many steps of refinement.
type CalibrationEffort = (LazyLock<KeptGrams>, &'static str);

static UNREFINED: CalibrationEffort = (LazyLock::new(|| grams("100")), "sparsity.refine=0");

static REFINED: CalibrationEffort = (LazyLock::new(|| grams("25")), "sparsity.refine=5");

/// The error of the pipeline pruned by one method.
fn error(method: &str, pattern: &[&str], (grams, refine): &CalibrationEffort) -> f64 {
    let method = format!("sparsity.method={method}");
    let sets = [pattern, &[&method[..], refine]].concat();
    // The smallest weights are known without Grams.
    let alone = method.ends_with("magnitude") && *refine == UNREFINED.1;
    let held_out = if alone { grams.run(&sets) } else { grams.solve(&sets) }.held_out.unwrap();
    assert_eq!(held_out.per_prompt.len(), 32);
    held_out.relative
}

fn obs_beats_wanda_beats_magnitude(pattern: &[&str]) {
    let name = pattern[0];
    let methods = ["obs", "wanda", "magnitude"];
    let [obs, wanda, magnitude] = methods.map(|method| error(method, pattern, &UNREFINED));
    println!("{name}: obs {obs:.4}, wanda {wanda:.4}, magnitude {magnitude:.4}");
    assert!(0.0 < obs && obs < wanda && wanda < magnitude && magnitude < 1.0);
    let refined = methods.map(|method| error(method, pattern, &REFINED));
    println!("{name}, refined: obs {:.4}, wanda {:.4}, magnitude {:.4}", refined[0], refined[1], refined[2]);
    assert!(refined[0] < 0.9 * obs && refined[1] < 0.9 * wanda && refined[2] < 0.9 * magnitude);
    assert!(refined[0] < refined[1] && refined[1] < refined[2]);
}

#[test]
fn half_of_the_weights_unstructured() {
    obs_beats_wanda_beats_magnitude(&["sparsity.pattern=unstructured", "sparsity.allocation=uniform"]);
}

#[test]
fn two_of_four() {
    obs_beats_wanda_beats_magnitude(&["sparsity.pattern=2:4", "sparsity.ratio="]);
}

//! What structured pruning costs on the shipped pipeline: final latents against the dense model's on prompts held out from calibration.
//! The second-order method has to beat the L1 norm, and biases that take over the means have to help.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::LazyLock;

use common::{KeptGrams, assets, job_file, run_beside};
use obsdiff::job::JobFile;
use obsdiff::run::DenseSamples;
use obsdiff_proto::BudgetBy;

/// Grams for heads and neurons of 40 prompts, with 32 held out.
static GRAMS: LazyLock<KeptGrams> = LazyLock::new(|| {
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let sets = ["sparsity.pattern=structured", "sparsity.method=obs", "sparsity.ratio=0.15", &heldout];
    KeptGrams::of("structured", &[&sets[..], &["evaluation.count=32", "calibration.count=40"]].concat())
});

/// The error of the pipeline pruned by one method.
fn error(method: &str, ratio: f64, further: &[&str]) -> f64 {
    let sets = [format!("sparsity.method={method}"), format!("sparsity.ratio={ratio}")];
    let sets = [&[&sets[0][..], &sets[1]], further].concat();
    // The sizes of weights are known without Grams.
    let held_out = if method == "l1" { GRAMS.run(&sets) } else { GRAMS.solve(&sets) }.held_out.unwrap();
    assert_eq!(held_out.per_prompt.len(), 32);
    held_out.relative
}

#[test]
fn obs_beats_the_l1_norm_and_by_half_at_30_percent_where_biases_that_take_over_the_means_help() {
    // A block of this model has eight heads: of these two ratios, one takes one head of each, the other takes two.
    for ratio in [0.15, 0.3] {
        let [obs, l1] = ["obs", "l1"].map(|method| error(method, ratio, &[]));
        println!("{}% of heads and neurons: obs {obs:.4}, l1 {l1:.4}, {:.2} times", ratio * 100.0, l1 / obs);
        assert!(0.0 < obs && obs < l1);
        if ratio == 0.3 {
            assert!(2.0 * obs <= l1);
            let left = error("obs", ratio, &["sparsity.fold_bias=false"]);
            println!("30% of heads and neurons: biases folded {obs:.4}, left {left:.4}");
            assert!(obs < left);
        }
    }
}

/// The error of the pipeline without so much of a forward call's arithmetic, by a ranking of heads and neurons.
fn budget_error(by: &str, budget: f64, dense: &DenseSamples) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
    let heldout = format!("evaluation.prompts={}", assets().join("shapes-heldout.txt").display());
    let (by, budget) = (format!("sparsity.budget_by={by}"), format!("sparsity.budget={budget}"));
    let sets = [
        "sparsity.pattern=structured",
        "sparsity.ratio=",
        &by,
        &budget,
        &heldout,
        "evaluation.count=32",
        "calibration.count=32",
        "calibration.steps=20",
        "packages.count=4",
    ];
    let job = JobFile::load(&file, [], &sets.map(str::to_owned)).unwrap();
    run_beside(&job, dense).unwrap().held_out.unwrap().relative
}

#[test]
fn the_better_ranking_of_heads_and_neurons_is_the_default() {
    let dense = DenseSamples::default();
    for budget in [0.15, 0.3] {
        let [errors, velocity] = ["errors", "velocity"].map(|by| budget_error(by, budget, &dense));
        println!("{}% of a forward call: by errors {errors:.4}, by velocity {velocity:.4}", budget * 100.0);
        assert!(velocity < errors);
    }
    assert_eq!(BudgetBy::default(), BudgetBy::Velocity);
}

//! About how long a job takes on one machine: its arithmetic and its bytes at the rates of its device.

use obsdiff_core::{PackageCost, Workload};
use obsdiff_proto::JobSpec;

use crate::described::Described;
use crate::machine::MachineRates;
use crate::progress::PackageWork;
use crate::shares::ProductShares;

/// Bytes of a solved weight in the job's state: f32.
const SOLVED: u64 = 4;

/// Bytes that a job reads from files and writes to files, without its solved weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileBytes {
    /// Digested, and of the transformer read for its weights.
    pub(crate) read: u64,
    /// Of the output.
    written: u64,
}

impl FileBytes {
    /// Those of a job on a pipeline: all its files are digested, the transformer is loaded, and the output has all of it, or the
    /// transformer alone where the rest is linked.
    pub(crate) fn of(described: &Described, spec: &JobSpec) -> Self {
        let transformer = described.pipeline.path().join("transformer");
        let [mut all, mut of_transformer] = [0u64; 2];
        for (file, bytes) in described.files.paths().zip(described.files.sizes()) {
            all = all.saturating_add(bytes);
            if file.starts_with(&transformer) {
                of_transformer = of_transformer.saturating_add(bytes);
            }
        }
        let written = if spec.output.link { of_transformer } else { all };
        Self { read: all.saturating_add(of_transformer), written }
    }
}

/// About how long packages and the comparison on held-out prompts take, in seconds, on a device of these rates and shares. Solved weights are
/// written once, and read to be applied and to be exported.
pub(crate) fn seconds(
    cost: &PackageCost,
    workload: &Workload,
    spec: &JobSpec,
    files: FileBytes,
    (rates, shares): (&MachineRates, &ProductShares),
) -> f64 {
    let compared = 2 * u64::from(spec.evaluation.count) * workload.steps * workload.tokens.branches;
    let pilot = match cost.passes {
        0 => 0,
        _ => workload.passes() / workload.prompts.div_ceil(u64::from(spec.calibration.shard_size)).max(1),
    };
    let forward = cost.forward_flops + (compared + pilot) as f64 * workload.forward.total();
    let swept = cost.solve_flops - cost.product_flops;
    let work = [
        (forward, &shares.forward, rates.forward),
        (cost.gram_flops, &shares.gram, rates.forward),
        (swept, &shares.sweep, rates.products),
        (cost.product_flops, &shares.products, rates.products),
    ];
    let arithmetic: f64 = work.into_iter().map(|(flops, reached, rate)| flops / (reached.share * rate)).sum();
    let solved = cost.weights.saturating_mul(SOLVED) as f64;
    let read = (files.read as f64 + 2.0 * solved) / rates.read;
    let written = (files.written as f64 + solved) / rates.written;
    let bytes = if shares.includes_memory { 0.0 } else { cost.gram_traffic + cost.solve_bytes };
    let memory = bytes / rates.memory;
    let seconds = arithmetic + memory + read + written;
    if seconds.is_finite() { seconds.min(1e12) } else { 0.0 }
}

/// How much work a package is: operations over the share of a product rate that they reach. A survey probes while it solves.
pub(crate) fn package_work(cost: &PackageCost, workload: &Workload, shares: &ProductShares) -> PackageWork {
    let calibrating = workload.passes().min(cost.passes) as f64 * workload.forward.total();
    let probing = (cost.forward_flops - calibrating).max(0.0);
    let swept = cost.solve_flops - cost.product_flops;
    PackageWork {
        calibrate: calibrating / shares.forward.share + cost.gram_flops / shares.gram.share,
        solve: probing / shares.forward.share
            + swept / shares.sweep.share
            + cost.product_flops / shares.products.share,
    }
}

#[cfg(test)]
mod tests {
    use obsdiff_core::Tokens;
    use obsdiff_proto::ForwardFlops;

    use super::*;

    #[test]
    fn the_time_is_the_arithmetic_and_the_bytes_at_what_the_machine_and_the_benches_reach() {
        let spec = r#"{"model": {"path": "m"}, "sparsity": {"pattern": "2:4"}, "calibration": {"prompts": "p", "count": 8},
            "evaluation": {"count": 3}, "output": {"path": "o"}}"#;
        let spec: JobSpec = serde_json::from_str(spec).unwrap();
        let workload = Workload {
            prompts: 8,
            steps: 10,
            together: 4,
            tokens: Tokens { image: 1, text: 1, branches: 2 },
            forward: ForwardFlops { start: 1.0, blocks: vec![2.0, 3.0], finish: 1.0 },
            survey: Default::default(),
        };
        let rates = MachineRates { products: 10.0, forward: 10.0, memory: 20.0, read: 30.0, written: 40.0 };
        let shares = ProductShares::of_processors();
        let time = |cost: &PackageCost, files| seconds(cost, &workload, &spec, files, (&rates, &shares));
        let (nothing, none) = (PackageCost::default(), FileBytes::default());
        // Three prompts, dense and pruned, and no pilot where nothing is calibrated.
        assert_eq!(time(&nothing, none), 120.0);
        // The pilot is one shard of two.
        let forward = PackageCost { passes: 160, forward_flops: 1120.0, ..nothing };
        assert_eq!(time(&forward, none), 120.0 + 80.0 + 160.0);
        assert_eq!(package_work(&forward, &workload, &shares).calibrate, 1120.0 / 0.7);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        let solving = PackageCost { solve_flops: 31.0, product_flops: 19.0, solve_bytes: 60.0, ..nothing };
        close(time(&solving, none), 120.0 + 2.0 + 2.0 + 3.0);
        let gathering = PackageCost { gram_flops: 21.0, gram_traffic: 100.0, ..nothing };
        close(time(&gathering, none), 120.0 + 3.0 + 5.0);
        // Solved weights of 60 bytes are read twice and written once.
        let weights = PackageCost { weights: 15, ..nothing };
        close(time(&weights, FileBytes { read: 30, written: 20 }), 120.0 + 5.0 + 2.0);
        // Forward calls and Grams run at a rate of their own; memory may be in the shares.
        let fast = MachineRates { forward: 20.0, ..rates };
        let time = |cost: &PackageCost, shares: &ProductShares| {
            seconds(cost, &workload, &spec, none, (&fast, shares))
        };
        close(time(&forward, &shares), 60.0 + 40.0 + 80.0);
        close(time(&gathering, &shares), 60.0 + 1.5 + 5.0);
        close(time(&solving, &shares), 60.0 + 2.0 + 2.0 + 3.0);
        let shares = ProductShares { includes_memory: true, ..shares };
        close(time(&gathering, &shares), 60.0 + 1.5);
        close(time(&solving, &shares), 60.0 + 2.0 + 2.0);
    }
}

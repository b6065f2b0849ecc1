//! What a job would take with other numbers of packages.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_core::{PackageCost, PlanError, Workload};
use obsdiff_proto::{ByteSize, JobSpec, PackagesSpec, Plan};

use crate::Result;
use crate::budget::with_budget;
use crate::described::Described;
use crate::job::JobFile;
use crate::text::{self, Table};

/// The largest number of packages shown by itself: past it, only the job's own.
const MOST: u32 = 32;

/// The share of the machine's product rate that forward calls reach, as `cargo bench -p obsdiff-engine --bench forward` shows.
const FORWARD: f64 = 0.7;

/// The share that Grams, factorisations and refinement reach, as the benches `gram` and `solve` show.
const SOLVER: f64 = 0.9;

/// Bytes, forward passes and the time on this machine for 1, 2, 4, ... packages and for as many as `plan` has. `rate` is that of
/// the machine's products.
pub(super) fn counts(job: &JobFile, described: &Described, plan: &Plan, rate: f64) -> Result<Table> {
    let of_job = plan.packages.len() as u32;
    let spec = &job.spec;
    let workload = described.workload(spec);
    let powers = (0..).map(|power| 1 << power).take_while(|count| *count <= MOST);
    let asked: BTreeSet<u32> = powers.chain([of_job]).collect();
    let with = |count| {
        let packages = PackagesSpec { count: Some(count), memory: None, ..spec.packages };
        let spec = JobSpec { packages, ..spec.clone() };
        obsdiff_core::plan(&spec, &described.inventory, described.tokens)
    };
    let mut table = Table::new(["packages", "Grams", "peak memory", "passes", "about"]);
    let mut planned = 0;
    for count in asked {
        let other = if count == of_job {
            plan.clone()
        } else {
            match with(count) {
                Err(PlanError::TooManyPackages { most, .. }) => with(most),
                planned => planned,
            }
            .map_err(|e| job.unplanned(e))?
        };
        let packages = other.packages.len();
        // There are no more packages than units to prune.
        if packages == planned {
            continue;
        }
        planned = packages;
        let other = with_budget(job, described, other)?;
        let cost = described.cost(spec, &other);
        let mark = if packages == plan.packages.len() { " (this job)" } else { "" };
        table.row([
            format!("{packages}{mark}"),
            ByteSize(cost.largest_grams()).to_string(),
            ByteSize(described.memory(spec, &other).peak(&cost)).to_string(),
            cost.total().passes.to_string(),
            text::duration(Duration::from_secs_f64(seconds(&cost.total(), &workload, spec, rate))),
        ]);
    }
    Ok(table)
}

/// About how long packages and the comparison on held-out prompts take, at `rate` operations a second.
fn seconds(cost: &PackageCost, workload: &Workload, spec: &JobSpec, rate: f64) -> f64 {
    let compared = 2 * u64::from(spec.evaluation.count) * workload.steps * workload.tokens.branches;
    let pilot = match cost.passes {
        0 => 0,
        _ => workload.passes() / workload.prompts.div_ceil(u64::from(spec.calibration.shard_size)).max(1),
    };
    let forward = cost.forward_flops + (compared + pilot) as f64 * workload.forward_flops;
    let seconds = forward / (FORWARD * rate) + (cost.gram_flops + cost.solve_flops) / (SOLVER * rate);
    if seconds.is_finite() { seconds.min(1e12) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use obsdiff_core::Tokens;

    use super::*;

    #[test]
    fn the_time_is_the_arithmetic_at_what_the_benches_reach() {
        let spec = r#"{"model": {"path": "m"}, "sparsity": {"pattern": "2:4"}, "calibration": {"prompts": "p", "count": 8},
            "evaluation": {"count": 3}, "output": {"path": "o"}}"#;
        let spec: JobSpec = serde_json::from_str(spec).unwrap();
        let workload = Workload {
            prompts: 8,
            steps: 10,
            tokens: Tokens { image: 1, text: 1, branches: 2 },
            forward_flops: 7.0,
        };
        let none = PackageCost::default();
        // Three prompts, dense and pruned, and no pilot where nothing is calibrated.
        assert_eq!(seconds(&none, &workload, &spec, 10.0), 120.0);
        let cost =
            PackageCost { passes: 160, forward_flops: 1120.0, gram_flops: 6.0, solve_flops: 3.0, ..none };
        // The pilot is one shard of two.
        assert_eq!(seconds(&cost, &workload, &spec, 10.0), 120.0 + 80.0 + 160.0 + 1.0);
    }
}

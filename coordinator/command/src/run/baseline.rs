//! The dense model pruned by magnitude, to compare with: the smallest weights go, uniformly, and none is updated.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use obsdiff_engine::calibrate::{Denoised, Trajectories};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::{Baseline, HeldOutError};
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::message::Slice;
use obsdiff_proto::{Allocation, JobSpec, Method, Package, Pattern};
use obsdiff_worker::preparation::compute_type;

use super::{Inputs, held_out};
use crate::job::JobFile;
use crate::progress::Progress;
use crate::sampling::load_transformer;
use crate::{Error, Result};

/// The command's option that asks for it.
const BASELINE: &str = "--baseline";

/// The job's specification with the simplest method in place of its own: of the same pattern, ratio and rules.
fn spec(spec: &JobSpec) -> JobSpec {
    let mut spec = spec.clone();
    let structured = spec.sparsity.pattern == Pattern::Structured;
    let sparsity = &mut spec.sparsity;
    sparsity.method = Some(if structured { Method::L1 } else { Method::Magnitude });
    sparsity.allocation = (sparsity.pattern == Pattern::Unstructured).then_some(Allocation::Uniform);
    (sparsity.refine, sparsity.dense) = (0, 0.0);
    (spec.packages.count, spec.packages.memory) = (None, None);
    spec
}

/// Refuses a job that has nothing to compare by, or whose share the simplest method cannot take.
///
/// # Errors
/// When no prompt is held out, or a budget stands in place of a ratio.
pub(super) fn check(job: &JobFile, inputs: &Inputs) -> Result<()> {
    let refuse = |problem: &str| Err(Error::key(BASELINE, problem));
    if inputs.prompts.held_out.is_empty() {
        return refuse(
            "compares on held-out prompts, but the job holds out none: set evaluation.count above 0",
        );
    }
    if job.spec.sparsity.budget.is_some() {
        return refuse(
            "cannot be given for sparsity.budget, which sums of weights cannot divide: give sparsity.ratio in its place, or \
             leave --baseline out",
        );
    }
    Ok(())
}

/// Prunes the dense model in memory on the processor, and gives its final latents on the held-out prompts with what was pruned. The errors are to be
/// filled in.
///
/// # Errors
/// When the model cannot be read or fails.
pub(super) fn prune(
    job: &JobFile,
    inputs: &Inputs,
    trajectories: &Arc<Trajectories>,
    dense: &Denoised,
    (device, progress): (&ComputeDevice, &Progress),
) -> Result<Option<(Baseline, Tensor)>> {
    let _span = tracing::info_span!("baseline").entered();
    let (spec, described) = (spec(&job.spec), &inputs.described);
    let plan =
        obsdiff_core::plan(&spec, &described.inventory, described.tokens).map_err(|e| job.unplanned(e))?;
    let model = load_transformer(&described.pipeline, compute_type(spec.model.dtype), device)?;
    let mut pruner = Pruner::new(&spec, model, inputs.weights.clone(), trajectories.clone());
    let (mut weights, mut zeros) = (0, 0);
    for package in &plan.packages {
        let of_package = apply(&mut pruner, package, inputs)?;
        (weights, zeros) = (weights + of_package.0, zeros + of_package.1);
    }
    let batched = (inputs, spec.calibration.shard_size);
    let Some(denoised) = held_out::denoised(pruner.model(), trajectories, batched, "baseline", progress)?
    else {
        return Ok(None);
    };
    let baseline = Baseline {
        method: spec.sparsity.method(),
        weights,
        zeros,
        held_out: HeldOutError::between(&dense.latents, &denoised.latents)?
            .along(&dense.steps, &denoised.steps)?,
    };
    Ok(Some((baseline, denoised.latents)))
}

/// Prunes what a package says, and gives the weights of its linears, and the zeros among them.
fn apply(pruner: &mut Pruner, package: &Package, inputs: &Inputs) -> Result<(u64, u64)> {
    let inventory = &inputs.described.inventory;
    let mut reports = Vec::new();
    if package.is_structured() {
        for group in inventory.structure_groups(package) {
            let solved = pruner.solve_structures(package, &group, &BTreeMap::new(), &[])?;
            pruner.apply_tensors(&solved.tensors)?;
            reports.extend(solved.linears.into_iter().map(|(_, report)| report));
        }
    } else {
        for target in &package.linears {
            let slice = Slice { linear: target.linear, rows: 0..inventory.linear(target.linear).rows };
            let mut weight = None;
            pruner.solve(package, &[slice], None, &mut |solved| {
                reports.push(solved.report);
                weight = Some(solved.weight);
                Ok(())
            })?;
            if let Some(weight) = weight {
                pruner.apply(target.linear, weight)?;
            }
        }
    }
    let size = |shape: [usize; 2]| shape[0] as u64 * shape[1] as u64;
    Ok((
        reports.iter().map(|report| size(report.shape)).sum(),
        reports.iter().map(|report| report.zeros).sum(),
    ))
}

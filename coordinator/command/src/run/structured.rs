//! What only structured pruning has: a budget over the whole model, and an export that shrinks.

use std::path::Path;

use candle_core::Tensor;
use obsdiff_engine::export::{Shrink, Sizes};
use obsdiff_engine::pruner::{kept_parts, selections};
use obsdiff_proto::{Budget, JobError, Layout, LinearId, Plan, StructureId};
use obsdiff_worker::device::{PrunedTensors, WorkError};

use super::Inputs;
use crate::Result;
use crate::described::Described;
use crate::job::Job;

/// The plan with the job's budget, if it has one. A budget that the structures of the plan cannot save is refused.
pub(crate) fn with_budget(job: &Job, described: &Described, plan: Plan) -> Result<Plan> {
    let Some(budget) = job.spec.sparsity.budget else { return Ok(plan) };
    let inventory = &described.inventory;
    let part_flops: Vec<f64> = inventory.structure_ids().map(|id| part_flops(described, id)).collect();
    let saves = |id: StructureId| {
        let structure = inventory.structure(id);
        structure.count.saturating_sub(structure.least()) as f64 * part_flops[id.0 as usize]
    };
    let possible: f64 = plan.packages.iter().flat_map(|p| inventory.structures_of(p)).map(saves).sum();
    let all = described.forward_flops(&*described.config);
    let most = possible / all;
    if budget <= most {
        return Ok(plan.with_budget(Budget { saving: budget * all, part_flops }));
    }
    let problem = format!(
        "is {budget}, but the blocks that are pruned can save {most:.3} of a forward call at most: lower it, or let the first and \
         the last block take part by a rule with pattern = \"structured\""
    );
    Err(job.refuse(JobError::new("sparsity.budget", problem)))
}

/// What is left of the model: its sizes, and how its export gets smaller where it does.
pub(super) fn shrunk(
    job: &Job,
    inputs: &Inputs,
    pruned: &PrunedTensors,
) -> Result<(Option<Sizes>, Option<Shrink>), WorkError> {
    let described = &inputs.described;
    let inventory = &described.inventory;
    let kept = kept_parts(inventory, &mut |id: LinearId| {
        let linear = inventory.linear(id);
        let name = format!("{}.weight", linear.name);
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        match pruned.tensor(&name)? {
            Some(tensor) => Ok(values(&tensor).map_err(obsdiff_engine::Error::from)?),
            None => {
                let shape = [linear.rows, inventory.site(linear.site).width];
                Ok::<_, WorkError>(inputs.weights.rows(&name, shape, 0..linear.rows)?)
            }
        }
    })?;
    let config = described.config.shrunk(&kept.iter().map(Vec::len).collect::<Vec<_>>());
    let sizes = Sizes {
        parameters: [described.inventory.parameters, config.inventory().parameters],
        forward_flops: [described.forward_flops(&*described.config), described.forward_flops(&*config)],
    };
    if job.spec.output.layout == Layout::Masked {
        return Ok((Some(sizes), None));
    }
    let source = Path::new(&job.spec.model.path).join("transformer");
    let files = config.shrunk_files(&source)?;
    Ok((Some(sizes), Some(Shrink { kept: selections(&described.inventory, &kept), files })))
}

/// Operations of one forward call on one picture of the job that one part of a structure takes.
fn part_flops(described: &Described, id: StructureId) -> f64 {
    // Linear in the number of parts: what one takes is what the model takes less without it.
    let mut kept: Vec<usize> =
        described.inventory.structures.iter().map(|structure| structure.count).collect();
    if let Some(count) = kept.get_mut(id.0 as usize) {
        *count -= 1;
    }
    let without = described.config.shrunk(&kept);
    described.forward_flops(&*described.config) - described.forward_flops(&*without)
}

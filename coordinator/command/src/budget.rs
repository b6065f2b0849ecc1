//! What is found out before anything is pruned: surveys of linears, and the budget that structured pruning divides among heads and neurons.

use obsdiff_proto::{Budget, JobError, Plan, StructureId};

use crate::Result;
use crate::described::Described;
use crate::job::JobFile;

/// The plan with the surveys that the job's allocation takes, and with its budget, if it has one. A budget that the structures of the
/// plan cannot save is refused.
pub(crate) fn with_surveys(job: &JobFile, described: &Described, plan: Plan) -> Result<Plan> {
    let sparsity = &job.spec.sparsity;
    if sparsity.surveys_linears() {
        return Ok(plan.with_surveys());
    }
    let Some(budget) = sparsity.budget else { return Ok(plan) };
    let inventory = &described.inventory;
    let part_flops: Vec<f64> = inventory.structure_ids().map(|id| part_flops(described, id)).collect();
    let saves = |id: StructureId| {
        let structure = inventory.structure(id);
        structure.removable(sparsity.align) as f64 * part_flops[id.0 as usize]
    };
    let possible: f64 = plan.packages.iter().flat_map(|p| inventory.structures_of(p)).map(saves).sum();
    let all = described.forward_flops(&*described.config).total();
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

/// Operations of one forward call on one picture of the job that one part of a structure takes.
fn part_flops(described: &Described, id: StructureId) -> f64 {
    // Arithmetic is linear in the number of parts, so the difference that one part makes is its own arithmetic.
    let mut kept: Vec<usize> =
        described.inventory.structures.iter().map(|structure| structure.count).collect();
    if let Some(count) = kept.get_mut(id.0 as usize) {
        *count -= 1;
    }
    let without = described.config.shrunk(&kept);
    described.forward_flops(&*described.config).total() - described.forward_flops(&*without).total()
}

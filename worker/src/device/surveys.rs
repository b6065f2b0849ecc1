//! Surveys of the dense model, and the decisions that follow from them.

use obsdiff_engine::Error;
use obsdiff_engine::pruner::{allocate, possible};
use obsdiff_proto::message::Part;
use obsdiff_proto::{Package, StructureId};

use super::engine::stoppable;
use super::object::PartOrigin;
use super::pruning::PruningEngine;
use super::{AfterStep, WorkError, object};

impl PruningEngine<'_> {
    /// Divides the budget among the structures, or chooses the target of each linear, once everything is surveyed.
    pub(super) fn decide(&mut self) -> Result<(), Error> {
        let Some(budget) = &self.plan.budget else {
            let pruning = self.plan.packages.iter().filter(|package| !package.survey);
            let linears: Vec<_> = pruning.flat_map(|package| package.linears.iter().copied()).collect();
            let slices = std::mem::take(&mut self.slices);
            self.allocated = self.pruner.allocate(&linears, &slices)?;
            self.kept.remember_survey(slices);
            tracing::info!(expected = self.allocated.expected, "the survey decided over every linear");
            if let Some(error) = self.expected_velocity_error() {
                self.watch.expected(error);
            }
            return Ok(());
        };
        let (ids, errors): (Vec<_>, Vec<_>) = std::mem::take(&mut self.surveyed).into_iter().unzip();
        let flops = |id: &StructureId| budget.part_flops.get(id.0 as usize).copied().unwrap_or(0.0);
        let curve = |(id, errors): (&StructureId, _)| self.pruner.removal_curve(*id, errors, flops(id));
        let curves: Vec<_> = ids.iter().zip(errors).map(curve).collect();
        let counts = allocate(&curves, budget.saving.min(possible(&curves)))
            .map_err(|e| Error::Argument(format!("sparsity.budget: {e}")))?;
        self.shares = ids.into_iter().zip(counts).collect();
        Ok(())
    }

    /// How many parts a structure loses by the budget; none where there is no budget.
    pub(super) fn share(&self, id: StructureId) -> Result<Option<usize>, Error> {
        if self.plan.budget.is_none() {
            return Ok(None);
        }
        let share = self.shares.get(&id).copied();
        let unknown = || Error::Argument(format!("the budget is not divided yet for structure {}", id.0));
        share.ok_or_else(unknown).map(Some)
    }

    /// Surveys the slices of a part. What a kept survey knows already is taken from there.
    pub(super) fn survey_slices(
        &mut self,
        package: &Package,
        part: &Part,
        origin: PartOrigin,
        step: AfterStep<'_>,
    ) -> Result<Vec<u8>, WorkError> {
        let mut surveyed = Vec::with_capacity(part.slices.len());
        let mut unknown = Vec::new();
        for slice in &part.slices {
            let targets = self.pruner.trial_targets(package, slice)?;
            match self.kept.surveyed(slice, &targets) {
                Some(known) => surveyed.push(known),
                None => unknown.push(slice.clone()),
            }
        }
        if !unknown.is_empty() {
            let gram = self.gram(part.id.site);
            surveyed.extend(stoppable(step, |on_step| {
                self.pruner.survey_slices(package, &unknown, gram.as_ref(), on_step)
            })?);
            surveyed.sort_by_key(|slice| (slice.linear, slice.start));
        }
        self.watch.solved(surveyed.len() as u64);
        Ok(object::surveyed(origin, surveyed)?)
    }
}

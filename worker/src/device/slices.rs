//! Linears that are pruned slice by slice.

use obsdiff_proto::message::Part;
use obsdiff_proto::{LinearId, Package};

use super::engine::stoppable;
use super::object::PartOrigin;
use super::pruning::PruningEngine;
use super::{AfterStep, PartStoreError, WorkError, object};

impl PruningEngine<'_> {
    /// Solves the slices of a part by their site's Gram.
    pub(super) fn solve_slices(
        &mut self,
        mut package: Package,
        part: &Part,
        origin: PartOrigin,
        step: AfterStep<'_>,
    ) -> Result<Vec<u8>, WorkError> {
        let mut object = object::SliceWriter::new(origin);
        let gram = self.gram(part.id.site);
        for target in &mut package.linears {
            target.target = self.allocated.targets.get(&target.linear).copied().unwrap_or(target.target);
        }
        let (pruner, watch, costs) = (&mut self.pruner, &self.watch, &self.allocated.costs);
        stoppable(step, |on_step| {
            pruner.solve(&package, &part.slices, gram.as_ref(), &mut |mut solved| {
                watch.solved(1);
                solved.report.cost = costs.get(&solved.slice.linear).copied();
                object.push(solved);
                on_step()
            })
        })?;
        Ok(object.finish()?)
    }

    /// The rows of a linear that a stored part names.
    pub(super) fn rows(&self, linear: LinearId) -> Result<usize, PartStoreError> {
        let inventory = self.pruner.model().inventory();
        let known = inventory.linears.get(linear.0 as usize);
        known.map(|linear| linear.rows).ok_or_else(|| {
            PartStoreError::Damaged(format!("a part names linear {linear}, which is not of this model"))
        })
    }
}

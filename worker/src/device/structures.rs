//! Heads and neurons: solving the structures of a part, and checking that the objects of a package name all of its structures.

use obsdiff_engine::Error;
use obsdiff_engine::pruner::Grams;
use obsdiff_proto::message::Part;
use obsdiff_proto::{Package, StructureId};

use super::engine::stoppable;
use super::object::{self, PartOrigin};
use super::pruning::PruningEngine;
use super::{AfterStep, PartStoreError, WorkError};

impl PruningEngine<'_> {
    /// Checks that the objects of a package named each of its structures.
    ///
    /// # Errors
    /// When one is missing, naming it.
    pub(super) fn check_structures(&self, package: &Package) -> Result<(), WorkError> {
        let known = |id: &StructureId| {
            if package.survey { self.surveyed.contains_key(id) } else { self.structures.contains_key(id) }
        };
        match self.pruner.model().inventory().structures_of(package).find(|id| !known(id)) {
            None => Ok(()),
            Some(id) => {
                let name = &self.pruner.model().inventory().structure(id).name;
                let problem = format!("the manifest of package {} lacks {name}", package.id);
                Err(PartStoreError::Damaged(problem).into())
            }
        }
    }

    /// Solves the structures whose outputs make up a part, or surveys them where the package is a survey.
    pub(super) fn solve_structures(
        &mut self,
        package: &Package,
        part: &Part,
        origin: PartOrigin,
        step: AfterStep<'_>,
    ) -> Result<Vec<u8>, WorkError> {
        let inventory = self.pruner.model().inventory();
        let reads = |group: &Vec<StructureId>| {
            inventory.outputs_of(group).iter().eq(part.slices.iter().map(|slice| &slice.linear))
        };
        let group = inventory.structure_groups(package).into_iter().find(reads);
        let group = group.ok_or_else(|| Error::Argument(format!("part {} is not of this plan", part.id)))?;
        let sites = group.iter().flat_map(|id| inventory.sites_of(*id));
        let grams: Grams = sites.filter_map(|site| Some((site, self.gram(site)?))).collect();
        let object = if package.survey {
            let pruner = &mut self.pruner;
            let errors = stoppable(step, |on_step| pruner.survey_structures(&group, &grams, on_step))?;
            object::survey(origin, group.iter().copied().zip(errors).collect())?
        } else {
            let counts = group.iter().map(|id| self.share(*id)).collect::<Result<Vec<_>, _>>()?;
            let solved = self.pruner.solve_structures(package, &group, &grams, &counts)?;
            object::structures(origin, solved)?
        };
        self.watch.solved(group.len() as u64);
        Ok(object)
    }
}

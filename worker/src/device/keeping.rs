//! Grams that outlive a job: they are kept while parts are solved by them, or read in place of calibration.

use std::collections::BTreeMap;
use std::sync::Arc;

use obsdiff_engine::Error;
use obsdiff_engine::gram::{Gram, PlacedGram};
use obsdiff_engine::pruner::SurveyedSlice;
use obsdiff_proto::message::{Exponents, Part, Slice};
use obsdiff_proto::{Package, PackageId, SiteId, Target, lock};

use super::object::PartOrigin;
use super::pruning::PruningEngine;
use super::{AfterStep, WorkError};
use crate::grams::{GramKeeper, KeptGrams, SolvedBy};

/// The Grams that a job keeps for later jobs, and the kept Grams that it reads in place of calibration.
#[derive(Default)]
pub(super) struct PersistentGrams {
    keeper: Option<GramKeeper>,
    grams: Option<KeptGrams>,
    /// Those of the received Grams that are kept already.
    received: BTreeMap<SiteId, SolvedBy>,
    /// The kept Grams that committed parts were solved by, with their packages.
    committed: BTreeMap<SiteId, (PackageId, SolvedBy)>,
    /// The survey of the linears.
    survey: Vec<SurveyedSlice>,
}

impl PersistentGrams {
    pub(super) fn new(keeper: Option<GramKeeper>, grams: Option<KeptGrams>) -> Self {
        Self { keeper, grams, ..Self::default() }
    }

    /// Whether Grams are read in place of calibration.
    pub(super) fn replaces_calibration(&self) -> bool {
        self.grams.is_some()
    }

    /// Forgets the received Grams, which are dropped.
    pub(super) fn release(&mut self) {
        self.received.clear();
    }

    /// Remembers the survey, if Grams are kept.
    pub(super) fn remember_survey(&mut self, slices: Vec<SurveyedSlice>) {
        if self.keeper.is_some() {
            self.survey = slices;
        }
    }

    /// The kept survey of a slice with these targets, if there is one.
    pub(super) fn surveyed(&self, slice: &Slice, targets: &[Target]) -> Option<SurveyedSlice> {
        self.grams.as_ref()?.surveyed(slice.linear, &slice.rows, targets)
    }
}

impl PruningEngine<'_> {
    /// Keeps the Grams that a part is about to be solved by. Where the plan surveys, those of the dense model are kept and no others.
    pub(super) fn keep_grams(&mut self, package: &Package, part: &Part) -> Result<Vec<SolvedBy>, WorkError> {
        let Some(keeper) = self.kept.keeper.clone() else { return Ok(Vec::new()) };
        if !package.survey && self.plan.packages.iter().any(|package| package.survey) {
            return Ok(Vec::new());
        }
        let mut solved_by = Vec::with_capacity(part.sites.len());
        for site in &part.sites {
            let known = self.kept.received.get(site).cloned();
            let kept = match (known, self.gram(*site)) {
                (Some(known), _) => known,
                (None, Some(gram)) => {
                    keeper.keep(*site, &*self.on_host(*site, &gram)?, &self.grams_of_groups(*site))?
                }
                (None, None) => continue,
            };
            self.kept.received.insert(*site, kept.clone());
            solved_by.push(kept);
        }
        Ok(solved_by)
    }

    /// A Gram that arrived, in the host's memory.
    pub(super) fn on_host(&self, site: SiteId, gram: &PlacedGram) -> Result<Arc<Gram>, Error> {
        let name = || self.pruner.model().inventory().site(site).name.clone();
        gram.to_host().map_err(|error| Error::Site { name: name(), problem: error.to_string() })
    }

    /// The Grams of groups of prompts that arrived of a site.
    fn grams_of_groups(&self, site: SiteId) -> Vec<Arc<Gram>> {
        lock(&self.received_groups).get(&site).cloned().unwrap_or_default()
    }

    /// Remembers by which Grams a committed part was solved.
    pub(super) fn remember_grams(&mut self, origin: PartOrigin) {
        let surveyed = self.plan.packages.first().is_some_and(|package| package.survey);
        // All surveys see the dense model.
        let package = if surveyed { PackageId(0) } else { origin.package };
        for solved_by in origin.solved_by {
            self.kept.committed.entry(solved_by.site).or_insert((package, solved_by));
        }
    }

    /// Writes the index of the kept Grams, once everything is committed.
    pub(super) fn finish_keeping(&self) -> Result<(), WorkError> {
        let Some(keeper) = &self.kept.keeper else { return Ok(()) };
        let inventory = self.pruner.model().inventory();
        Ok(keeper.finish(inventory, &self.kept.committed, &self.kept.survey)?)
    }

    /// The exponents of the Grams that are read in place of calibration.
    pub(super) fn kept_exponents(&self) -> Option<Exponents> {
        self.kept.grams.as_ref().map(KeptGrams::exponents)
    }

    /// Reads the kept Grams of the open package's sites.
    pub(super) fn read_grams(&mut self, step: AfterStep<'_>) -> Result<(), WorkError> {
        let _span = tracing::info_span!("read Grams").entered();
        let Some(grams) = &self.kept.grams else { return Ok(()) };
        for (site, gram) in self.pruner.grams_mut() {
            grams.read(site, gram)?;
            self.watch.steps(1);
            step()?;
        }
        Ok(())
    }
}

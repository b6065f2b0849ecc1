//! The engine of a worker: a model being pruned by the plan of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use obsdiff_engine::Error;
use obsdiff_engine::calibrate::Passed;
use obsdiff_engine::checkpoint::SourceFiles;
use obsdiff_engine::device::transfers::TransferKind::Grams as GRAMS;
use obsdiff_engine::export::{PrunedLinear, PrunedStructure};
use obsdiff_engine::gram::PlacedGram;
use obsdiff_engine::pruner::{Allocated, Pruner, SurveyedSlice};
use obsdiff_proto::message::{Exponents, Opening, Part, Receipt, SavedSums, Solved};
use obsdiff_proto::{
    Accumulate, LinearId, Package, PackageId, Plan, Shard, ShardId, SiteId, StructureId, lock,
};
use obsdiff_store::{SavedGram, SumsRecord};

use super::engine::stoppable;
use super::keeping::PersistentGrams;
use super::object::{self, PartContent, PartOrigin, SliceRecord};
use super::part_store::objects;
use super::pruned::{Pruned, linears};
use super::reducing::{FailedReducer, GramReducer, ReceivedGrams, ReceivedGroups};
use super::{AfterStep, Engine, PartStore, PartStoreError, PrunedTensors, Reducer, Watch, WorkError};
use crate::grams::{GramKeeper, KeptGrams};

/// Writes the pruned pipeline. It may drop the pruner's model once it has done so, to make room for what is measured then.
pub type Exporter<'a> = Box<dyn FnMut(Pruned, &mut Pruner) -> Result<(), WorkError> + Send + 'a>;

/// A [`Pruner`] that follows a plan, with a store of solved parts.
pub struct PruningEngine<'a> {
    pub(super) pruner: Pruner,
    pub(super) plan: Arc<Plan>,
    pub(super) part_store: Arc<dyn PartStore>,
    pub(super) watch: Arc<dyn Watch>,
    exporter: Exporter<'a>,
    received: ReceivedGrams,
    /// The received Grams of groups of prompts.
    pub(super) received_groups: ReceivedGroups,
    /// Packages applied.
    pub(super) applied: u32,
    /// Where the applied tensors are stored.
    tensors: PrunedTensors,
    records: Vec<SliceRecord>,
    /// The reports of the applied structures, and below those of their linears.
    pub(super) structures: BTreeMap<StructureId, PrunedStructure>,
    structured: BTreeMap<LinearId, PrunedLinear>,
    /// The errors of further parts of each structure that is surveyed.
    pub(super) surveyed: BTreeMap<StructureId, Vec<f64>>,
    /// The surveys of slices of linears, as far as there are any.
    pub(super) slices: Vec<SurveyedSlice>,
    /// The targets that follow from the survey.
    pub(super) allocated: Allocated,
    /// How many parts each structure loses, where there is a budget.
    pub(super) shares: BTreeMap<StructureId, usize>,
    /// The Grams that outlive the job, and those that are read in place of calibration.
    pub(super) kept: PersistentGrams,
    /// The files of the model, as far as it was read from any.
    source: Option<SourceFiles>,
}

impl<'a> PruningEngine<'a> {
    /// An engine on the dense model.
    pub fn new(
        pruner: Pruner,
        plan: Arc<Plan>,
        part_store: Arc<dyn PartStore>,
        watch: Arc<dyn Watch>,
        exporter: Exporter<'a>,
    ) -> Self {
        Self {
            pruner,
            plan,
            tensors: PrunedTensors::new(part_store.clone()),
            part_store,
            watch,
            exporter,
            received: ReceivedGrams::default(),
            received_groups: ReceivedGroups::default(),
            applied: 0,
            records: Vec::new(),
            structures: BTreeMap::new(),
            structured: BTreeMap::new(),
            surveyed: BTreeMap::new(),
            slices: Vec::new(),
            allocated: Allocated::default(),
            shares: BTreeMap::new(),
            kept: PersistentGrams::default(),
            source: None,
        }
    }

    /// The same engine, which keeps the Grams that it solves by, or reads kept ones in place of calibration.
    #[must_use]
    pub fn with_grams(mut self, keeper: Option<GramKeeper>, grams: Option<KeptGrams>) -> Self {
        self.kept = PersistentGrams::new(keeper, grams);
        self
    }

    /// The same engine, whose model was read from these files: what it computes leaves it only while they are what they were.
    #[must_use]
    pub fn reading(mut self, source: SourceFiles) -> Self {
        self.source = Some(source);
        self
    }

    fn check_source(&self) -> Result<(), Error> {
        self.source.iter().try_for_each(SourceFiles::check_unchanged)
    }

    /// The relative error of the pruned model's velocity that the survey expects: the root of the mean squared relative change. None where
    /// linears are not surveyed.
    pub fn expected_velocity_error(&self) -> Option<f64> {
        (!self.allocated.costs.is_empty()).then_some(self.allocated.expected.sqrt())
    }

    /// The model being pruned.
    pub fn pruner(&self) -> &Pruner {
        &self.pruner
    }

    /// How many packages are applied to it.
    pub fn applied(&self) -> u32 {
        self.applied
    }

    /// What is pruned so far, with its reports.
    pub fn pruned(&self) -> Pruned {
        let mut linears = linears(&self.records);
        linears.extend(self.structured.clone());
        Pruned {
            linears: linears.into_values().collect(),
            structures: self.structures.values().cloned().collect(),
            tensors: self.tensors.clone(),
            expected_velocity_error: self.expected_velocity_error(),
        }
    }

    fn shard(&self, id: ShardId) -> Result<Shard, Error> {
        let shard = self.plan.shards.get(id.0 as usize).cloned();
        shard.ok_or_else(|| Error::Argument(format!("shard {id} is not of this plan")))
    }

    fn package(&self, id: PackageId) -> Result<&Package, Error> {
        let package = self.plan.packages.get(id.0 as usize);
        package.ok_or_else(|| Error::Argument(format!("package {id} is not of this plan")))
    }

    /// Loads the weights of one package.
    fn apply_package(&mut self, id: PackageId, step: AfterStep<'_>) -> Result<(), WorkError> {
        let mut split: BTreeMap<LinearId, Vec<(SliceRecord, Tensor)>> = BTreeMap::new();
        let mut records = Vec::new();
        let (part_store, manifest) = (self.part_store.clone(), self.part_store.manifest(id)?);
        for read in objects(&*part_store, &manifest) {
            let (receipt, bytes) = read?;
            let (origin, content) = object::read(&bytes)?;
            if origin.package != id {
                let problem =
                    format!("the manifest of package {id} names an object of package {}", origin.package);
                return Err(PartStoreError::Damaged(problem).into());
            }
            self.remember_grams(origin);
            let slices = match content {
                PartContent::Slices(slices) => slices,
                PartContent::Structures(record, tensors) => {
                    for name in tensors.keys() {
                        self.tensors.add(name.clone(), 0, receipt, name.clone());
                    }
                    self.pruner.apply_tensors(&tensors)?;
                    self.structures.extend(record.structures);
                    self.structured.extend(record.linears);
                    continue;
                }
                PartContent::Survey(errors) => {
                    self.surveyed.extend(errors);
                    continue;
                }
                PartContent::SurveyedSlices(slices) => {
                    self.slices.extend(slices);
                    continue;
                }
            };
            for (record, weight) in slices {
                let rows = self.rows(record.linear)?;
                let name = &record.report.name;
                let in_object = object::name(name, &record.rows);
                self.tensors.add(format!("{name}.weight"), record.rows.start, receipt, in_object);
                records.push(record.clone());
                if record.rows == (0..rows) {
                    self.pruner.apply(record.linear, weight)?;
                    continue;
                }
                let slices = split.entry(record.linear).or_default();
                slices.push((record, weight));
                if slices.iter().map(|(record, _)| record.rows.len()).sum::<usize>() == rows {
                    slices.sort_by_key(|(record, _)| record.rows.start);
                    let (linear, weights) = (slices[0].0.linear, slices.iter().map(|(_, w)| w));
                    let whole = Tensor::cat(&weights.collect::<Vec<_>>(), 0).map_err(Error::from)?;
                    self.pruner.apply(linear, whole)?;
                    split.remove(&linear);
                }
            }
            step()?;
        }
        let package = self.package(id)?;
        if package.is_structured() {
            return self.check_structures(package);
        }
        if package.survey {
            // The allocation checks that all linears were surveyed.
            return Ok(());
        }
        let targets = &package.linears;
        let lacks = |linear: &LinearId| !records.iter().any(|r: &SliceRecord| r.linear == *linear);
        if let Some(linear) =
            split.keys().copied().chain(targets.iter().map(|t| t.linear).filter(lacks)).next()
        {
            let name = &self.pruner.model().inventory().linear(linear).name;
            let problem = format!("the manifest of package {id} lacks rows of {name}");
            return Err(PartStoreError::Damaged(problem).into());
        }
        self.records.extend(records);
        Ok(())
    }

    /// A Gram that arrived.
    pub(super) fn gram(&self, site: SiteId) -> Option<PlacedGram> {
        lock(&self.received).get(&site).cloned()
    }
}

impl Engine for PruningEngine<'_> {
    fn pilot(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<Exponents, WorkError> {
        let _span = tracing::info_span!("pilot").entered();
        if let Some(exponents) = self.kept_exponents() {
            return Ok(exponents);
        }
        let shard = self.shard(shard)?;
        let sites: Vec<SiteId> = self.plan.packages.iter().flat_map(|p| p.sites.iter().copied()).collect();
        let (pruner, watch, prompts) = (&self.pruner, &self.watch, shard.prompts.len() as u64);
        let exponents = stoppable(step, |step| {
            pruner.pilot(&shard, sites, self.plan.shards.len(), &mut |passed| {
                watch.steps(prompts * u64::from(passed == Passed::Step));
                step()
            })
        })?;
        self.check_source()?;
        Ok(exponents)
    }

    fn open(&mut self, opening: &Opening) -> Result<(), WorkError> {
        let package = self.package(opening.package)?.clone();
        let exponents = match self.pruner.accumulates() {
            Accumulate::Exact => opening.exponents.clone(),
            Accumulate::F32 => package.sites.iter().map(|site| (*site, 0)).collect(),
        };
        self.release();
        Ok(self.pruner.open(&package, &exponents)?)
    }

    fn read(&mut self, shard: ShardId) -> Result<(), WorkError> {
        if self.kept.replaces_calibration() {
            return Ok(());
        }
        Ok(self.pruner.read(&self.shard(shard)?)?)
    }

    fn calibrate(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<(), WorkError> {
        if self.kept.replaces_calibration() {
            return self.read_grams(step);
        }
        let _span = tracing::info_span!("calibrate").entered();
        let shard = self.shard(shard)?;
        let (pruner, watch, prompts) = (&mut self.pruner, &self.watch, shard.prompts.len() as u64);
        let done = stoppable(step, |step| {
            pruner.calibrate(&shard, &mut |passed| {
                watch.steps(prompts * u64::from(passed == Passed::Step));
                step()
            })
        });
        done.map_err(|error| self.overflow(error))?;
        Ok(self.check_source()?)
    }

    fn save(
        &mut self,
        save: &str,
        shards: &BTreeSet<ShardId>,
        step: AfterStep<'_>,
    ) -> Result<Option<Receipt>, WorkError> {
        self.save_sums(save, shards, step)
    }

    fn check_saved(&mut self, saved: &SavedSums) -> Result<SumsRecord, WorkError> {
        self.checked_record(saved)
    }

    fn restore(&mut self, gram: &SavedGram) -> Result<(), WorkError> {
        self.restore_gram(gram)
    }

    fn forget(&mut self, saved: &Receipt) {
        self.remove_saved(saved);
    }

    fn reducer(&mut self, adds: bool) -> Box<dyn Reducer> {
        let own = match self.pruner.placed_grams() {
            Ok(own) => own,
            Err(error) => return Box::new(FailedReducer(Some(error))),
        };
        let inventory = self.pruner.model().inventory();
        let sites = self.plan.packages.iter().flat_map(|package| {
            package.sites.iter().map(|site| (*site, package.gram_width(inventory.site(*site))))
        });
        let mut of_groups = self.pruner.grams_of_groups();
        if !adds {
            // The rank takes part, without sums of its own.
            of_groups.iter_mut().for_each(BTreeMap::clear);
        }
        Box::new(GramReducer {
            of_groups,
            received_groups: self.received_groups.clone(),
            own: if adds { own } else { BTreeMap::new() },
            widths: sites.collect(),
            accumulate: self.pruner.accumulates(),
            device: self.pruner.device().clone(),
            // Packages run in order, so the next one is what is reduced.
            solving: self.package(PackageId(self.applied)).ok().and_then(|p| self.pruner.solves_in_place(p)),
            received: self.received.clone(),
        })
    }

    fn release(&mut self) {
        self.kept.release();
        lock(&self.received).clear();
        lock(&self.received_groups).clear();
    }

    fn solve(&mut self, part: &Part, step: AfterStep<'_>) -> Result<Solved, WorkError> {
        let package = self.package(part.id.package)?.clone();
        let origin = PartOrigin { package: package.id, solved_by: self.keep_grams(&package, part)? };
        let object = if package.is_structured() {
            self.solve_structures(&package, part, origin, step)?
        } else if package.survey {
            self.survey_slices(&package, part, origin, step)?
        } else {
            self.solve_slices(package, part, origin, step)?
        };
        let exponent = |site: &SiteId| Some((*site, self.gram(*site)?.exponent()));
        let exponents = part.sites.iter().filter_map(exponent).collect();
        self.check_source()?;
        let _span = tracing::info_span!("store").entered();
        Ok(Solved { exponents, receipt: self.part_store.put(part.id, object)? })
    }

    fn keeps_sums(&self, packages: u32) -> bool {
        packages == self.applied + 1 && self.plan.keeps_sums(PackageId(packages))
    }

    fn apply(&mut self, packages: u32, step: AfterStep<'_>) -> Result<(), WorkError> {
        let _span = tracing::info_span!("apply").entered();
        self.release();
        if self.keeps_sums(packages) {
            self.pruner.end_solving();
        } else {
            self.pruner.close();
        }
        while self.applied < packages {
            let id = PackageId(self.applied);
            self.apply_package(id, step)?;
            self.applied += 1;
            let surveys = |id| self.package(id).is_ok_and(|package| package.survey);
            if surveys(id) && !surveys(PackageId(self.applied)) {
                self.decide()?;
            }
        }
        self.watch.pruned(&self.pruned().linears);
        let device = self.pruner.device();
        if !device.is_host() {
            let transfers = device.transfers();
            let [to_host, to_device] =
                [transfers.to_host(GRAMS), transfers.to_device(GRAMS)].map(|c| c.bytes);
            tracing::debug!(
                to_host,
                to_device,
                "bytes of Grams have crossed so far, with package {packages}"
            );
        }
        Ok(())
    }

    fn export(&mut self, step: AfterStep<'_>) -> Result<(), WorkError> {
        step()?;
        self.finish_keeping()?;
        let pruned = self.pruned();
        (self.exporter)(pruned, &mut self.pruner)
    }
}

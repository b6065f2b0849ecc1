//! A model being pruned: pilot, calibration, solving and replacing of linears, one package at a time.

mod allocation;
mod budget;
mod dropped;
mod merging;
mod placing;
mod probe;
mod room;
mod shrunk;
mod solving;
mod stored;
mod structured;
mod survey;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_proto::{
    Accumulate, HessianSpec, JobSpec, LinearId, Method, Package, Pattern, ProbeSpec, Shard, SiteId,
    SparsitySpec,
};

use crate::calibrate::{Energy, EnergyTap, GramTap, Passed, Trajectories, alphas, of_sums};
use crate::checkpoint::Weights;
use crate::device::ComputeDevice;
use crate::gram::{Gram, GramError, GramSet, PlacedGram, exponent_for};
use crate::model::DiffusionModel;
use crate::pipeline::Trajectory;
use crate::solve::{Obs, SiteSolver};
use crate::{Error, Result};
use dropped::DroppedModel;
use placing::{of_site, opened, read_back};
use probe::Probe;

pub use allocation::{Allocated, expected_at};
pub use budget::{OutOfReach, RemovalCurve, allocate, possible};
pub use room::{ForwardCall, solving_gpu_bytes};
pub use shrunk::{kept_parts, selections};
pub use solving::SolvedSlice;
pub use structured::{Grams, SolvedStructures};
pub use survey::SurveyedSlice;

/// A model, the trajectories it is calibrated on, and the Grams of the package that is open.
pub struct Pruner {
    /// The model whose forward calls calibrate, in the job's compute type.
    model: Box<dyn DiffusionModel>,
    /// The checkpoint's weights, in their own type: linears are solved from these.
    weights: Arc<Weights>,
    trajectories: Arc<Trajectories>,
    alphas: Vec<f64>,
    hessian: HessianSpec,
    method: Method,
    refine: u32,
    sparsity: SparsitySpec,
    obs: Obs,
    /// Where blocks are computed, Grams summed and alternating directions made.
    device: ComputeDevice,
    /// Its solver, while a package is solved.
    solver: Option<Box<dyn SiteSolver>>,
    /// Its own sums of the open package's Grams, which those of the host lack.
    on_device: Option<Box<dyn GramSet>>,
    /// Whether nothing was added to the host's Grams of the open package.
    host_is_empty: bool,
    probe_spec: ProbeSpec,
    /// The points at which linears are probed; present while a survey runs.
    probe: Option<Probe>,
    /// The Grams of the open package.
    open: Option<BTreeMap<SiteId, Arc<Gram>>>,
    /// Groups of prompts, one after the other, whose Grams are gathered by themselves besides.
    groups: Vec<Range<u32>>,
    /// The Grams of each group, while a package is open.
    of_groups: Vec<BTreeMap<SiteId, Arc<Gram>>>,
    /// The columns of the widest site of the package that was opened last, and the weights of its largest linear.
    largest: (usize, usize),
    /// Bytes that a survey's forward calls take of the device's memory.
    probing: u64,
    gram_operations: u64,
    /// Prompts that were read, before their first step.
    read: Option<(Range<u32>, Trajectory)>,
}

impl Pruner {
    /// A pruner of the model that `weights` describe, with no package open.
    pub fn new(
        spec: &JobSpec,
        model: Box<dyn DiffusionModel>,
        weights: Arc<Weights>,
        trajectories: Arc<Trajectories>,
    ) -> Self {
        let hessian = spec.hessian.clone();
        let alphas = alphas(hessian.weighting, spec.calibration.steps, hessian.low, hessian.high);
        let (method, refine) = (spec.sparsity.method(), spec.sparsity.refinement());
        let sparsity = spec.sparsity.clone();
        Self {
            model,
            weights,
            trajectories,
            alphas,
            hessian,
            method,
            refine,
            sparsity,
            obs: Obs::default(),
            device: ComputeDevice::Cpu,
            solver: None,
            on_device: None,
            host_is_empty: true,
            probe_spec: spec.probe.clone(),
            probe: None,
            open: None,
            groups: groups(&spec.output.gram_prompts),
            of_groups: Vec::new(),
            largest: (0, 0),
            probing: 0,
            gram_operations: 0,
            read: None,
        }
    }

    /// The same on a device: it computes blocks, sums Grams, prunes by them, and removes heads and neurons. Scores without a Gram stay on the processor.
    pub fn on(mut self, device: ComputeDevice) -> Self {
        self.model.move_blocks(&device);
        self.device = device;
        self
    }

    /// Prompts times steps of a shard.
    pub fn steps(&self, shard: &Shard) -> u64 {
        shard.prompts.len() as u64 * self.trajectories.step_count() as u64
    }

    /// How observations are summed.
    pub fn accumulates(&self) -> Accumulate {
        self.hessian.accumulate
    }

    /// Runs one shard on the current model, and chooses each site's exponent so that the sums of `shards` shards fit.
    ///
    /// # Errors
    /// When a forward call fails or an activation is not finite.
    pub fn pilot(
        &self,
        shard: &Shard,
        sites: impl IntoIterator<Item = SiteId>,
        shards: usize,
        on_passed: &mut dyn FnMut(Passed) -> Result<()>,
    ) -> Result<BTreeMap<SiteId, i32>> {
        let mut tap = EnergyTap::new(self.model.inventory(), sites, self.device.grams());
        if self.sparsity.pattern == Pattern::Structured {
            tap = tap.with_constant();
        }
        self.trajectories.denoise(&*self.model, shard.prompts.clone(), &self.alphas, &mut tap, on_passed)?;
        let exponent = |energy: Energy| {
            let total = energy.total.iter().copied().fold(0.0, f64::max) * shards as f64;
            exponent_for(total, energy.largest)
        };
        Ok(tap.into_energies().into_iter().map(|(site, energy)| (site, exponent(energy))).collect())
    }

    /// Opens a package with empty Grams of the given exponents. A package that was open before is dropped.
    ///
    /// # Errors
    /// When a site has no exponent.
    pub fn open(&mut self, package: &Package, exponents: &BTreeMap<SiteId, i32>) -> Result<()> {
        (self.open, self.on_device, self.host_is_empty) = (None, None, true);
        self.of_groups.clear();
        let inventory = self.model.inventory();
        let columns = |linear: LinearId| inventory.site(inventory.linear(linear).site).width;
        let sizes = package.linears.iter().map(|target| {
            let columns = columns(target.linear);
            (columns, columns * inventory.linear(target.linear).rows)
        });
        self.largest = sizes.fold((0, 0), |most, size| (most.0.max(size.0), most.1.max(size.1)));
        let grams = package
            .sites
            .iter()
            .map(|&site| {
                let described = self.model.inventory().site(site);
                let exponent = exponents.get(&site).ok_or_else(|| Error::Site {
                    name: described.name.clone(),
                    problem: "has no exponent: run the pilot first".to_owned(),
                })?;
                let gram = Gram::new(package.gram_width(described), self.hessian.accumulate, *exponent);
                Ok((site, Arc::new(gram)))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        // Nothing is added yet, so that each is a copy of its own.
        let empty = || grams.iter().map(|(site, gram)| (*site, Arc::new(Gram::clone(gram)))).collect();
        self.of_groups = self.groups.iter().map(|_| empty()).collect();
        self.open = Some(grams);
        Ok(())
    }

    /// Drops the Grams of the open package, and frees the memory that solving it took.
    pub fn close(&mut self) {
        (self.open, self.on_device, self.host_is_empty) = (None, None, true);
        self.of_groups.clear();
        self.end_solving();
    }

    /// Closes the package and drops the model, so that the host and the device have room for another one. After that nothing can be
    /// calibrated, solved or applied.
    ///
    /// # Errors
    /// When the device fails.
    pub fn drop_model(&mut self) -> Result<()> {
        self.close();
        self.model = Box::new(DroppedModel::of(&*self.model));
        self.device.release_unused()
    }

    /// Frees the memory that solving the open package took, but keeps its Grams.
    pub fn end_solving(&mut self) {
        self.obs = Obs::default();
        self.solver = None;
        self.probe = None;
    }

    /// The Grams of the open package where their sums lie, once all work on them is done; empty while no package is open. Drop them before the
    /// next calibration, which otherwise copies each first.
    ///
    /// # Errors
    /// When the device fails.
    pub fn placed_grams(&self) -> Result<BTreeMap<SiteId, PlacedGram>> {
        let Some(grams) = &self.open else { return Ok(BTreeMap::new()) };
        let Some(set) = &self.on_device else {
            return Ok(grams.iter().map(|(site, gram)| (*site, Arc::clone(gram).into())).collect());
        };
        let shared = |site: &SiteId| {
            let gram = set.share(*site).and_then(|gram| gram.ok_or(GramError::Mismatch));
            Ok((*site, gram.map_err(|error| of_site(*site, self.model.inventory(), &error))?))
        };
        grams.keys().map(shared).collect()
    }

    /// The device that sums Grams.
    pub const fn device(&self) -> &ComputeDevice {
        &self.device
    }

    /// The Gram of a site of the open package in the host's memory. It lacks what a device has summed: see [`Self::placed_grams`].
    pub fn gram(&self, site: SiteId) -> Option<&Gram> {
        self.grams()?.get(&site).map(|gram| &**gram)
    }

    /// The Grams of the open package in the host's memory. They lack what a device has summed: see [`Self::placed_grams`]. Drop every clone of
    /// one before the next calibration, which otherwise copies the Gram first.
    pub fn grams(&self) -> Option<&BTreeMap<SiteId, Arc<Gram>>> {
        self.open.as_ref()
    }

    /// The Grams of each group of prompts whose Grams are gathered besides, empty while no package is open.
    pub fn grams_of_groups(&self) -> Vec<BTreeMap<SiteId, Arc<Gram>>> {
        let of = |group: usize| self.of_groups.get(group).cloned().unwrap_or_default();
        (0..self.groups.len()).map(of).collect()
    }

    /// The Grams of the open package, to receive sums that were gathered elsewhere; empty while no package is open.
    pub fn grams_mut(&mut self) -> impl Iterator<Item = (SiteId, &mut Gram)> {
        (self.on_device, self.host_is_empty) = (None, false);
        self.open.iter_mut().flatten().map(|(site, gram)| (*site, Arc::make_mut(gram)))
    }

    /// Reads what [`Self::calibrate`] needs of a shard's prompts. The Grams stay as they are.
    ///
    /// # Errors
    /// When the conditioning of a prompt cannot be read.
    pub fn read(&mut self, shard: &Shard) -> Result<()> {
        self.read = None;
        self.read = Some((shard.prompts.clone(), self.trajectories.start(shard.prompts.clone())?));
        Ok(())
    }

    /// Adds a shard's observations to the open package's Grams. After an error they hold only some of them: open the package again.
    ///
    /// # Errors
    /// When a forward call fails, an observation is not finite, overflows its exponent ([`Error::Overflow`]), or leaves the range of f32
    /// sums.
    pub fn calibrate(
        &mut self,
        shard: &Shard,
        on_passed: &mut dyn FnMut(Passed) -> Result<()>,
    ) -> Result<()> {
        let trajectory = match self.read.take().filter(|(prompts, _)| *prompts == shard.prompts) {
            Some((_, trajectory)) => trajectory,
            None => self.trajectories.start(shard.prompts.clone())?,
        };
        let grams = self.open.as_mut().ok_or_else(no_package)?;
        let inventory = self.model.inventory();
        let first = shard.prompts.start;
        let group = self.groups.iter().position(|group| group.contains(&first));
        let mut of_group = group.and_then(|group| self.of_groups.get_mut(group));
        let (mut on_device, mut group_on_device) = (None, None);
        if !self.device.is_host() {
            let set = self.on_device.take().unwrap_or_else(|| self.device.grams());
            on_device = Some(opened(set, grams, self.host_is_empty, inventory)?);
            if let Some(of_group) = &of_group {
                group_on_device = Some(opened(self.device.grams(), of_group, false, inventory)?);
            }
        }
        let set = on_device.as_deref_mut().unwrap_or(&mut *grams);
        let group_set: Option<&mut dyn GramSet> = match (&mut group_on_device, &mut of_group) {
            (Some(set), _) => Some(&mut **set),
            (None, Some(grams)) => Some(&mut **grams),
            (None, None) => None,
        };
        let mut tap = GramTap::new(inventory, set).with_group(group_set);
        let followed = Trajectories::follow(trajectory, &*self.model, &self.alphas, &mut tap, on_passed);
        followed.map_err(|error| of_sums(error, self.hessian.accumulate))?;
        self.gram_operations += tap.operations();
        match on_device {
            Some(set) => self.on_device = Some(set),
            None => self.host_is_empty = false,
        }
        if let Some((set, of_group)) = group_on_device.zip(of_group) {
            read_back(&*set, of_group, inventory)?;
        }
        Ok(())
    }

    /// Floating-point operations of the Grams of all shards calibrated so far, n (n + 1) for each row of a Gram of width n.
    pub fn gram_operations(&self) -> u64 {
        self.gram_operations
    }

    /// Replaces a linear's weight (`rows x n`) by a pruned one.
    ///
    /// # Errors
    /// When the shape differs.
    pub fn apply(&mut self, linear: LinearId, weight: Tensor) -> Result<()> {
        let _span = tracing::info_span!("apply").entered();
        self.model.replace(linear, weight)
    }

    /// Rows of a linear's weight as the checkpoint has it, `rows x n`.
    fn dense(&self, linear: LinearId, rows: Range<usize>) -> Result<Vec<f32>> {
        let inventory = self.model.inventory();
        let described = inventory.linear(linear);
        let shape = [described.rows, inventory.site(described.site).width];
        self.weights.rows(&format!("{}.weight", described.name), shape, rows)
    }

    /// All of a linear's weight as the checkpoint has it.
    fn dense_whole(&self, linear: LinearId) -> Result<Vec<f32>> {
        self.dense(linear, 0..self.model.inventory().linear(linear).rows)
    }

    /// A linear's bias as the checkpoint has it; none where it has none.
    fn dense_bias(&self, linear: LinearId) -> Result<Option<Vec<f32>>> {
        let described = self.model.inventory().linear(linear);
        if !described.bias {
            return Ok(None);
        }
        let name = format!("{}.bias", described.name);
        let bias = self.weights.tensor(&name, &[described.rows], DType::F32)?;
        Ok(Some(bias.to_vec1()?))
    }

    /// The model with every weight applied so far.
    pub fn model(&self) -> &dyn DiffusionModel {
        &*self.model
    }

    /// The trajectories it is calibrated on.
    pub fn trajectories(&self) -> &Trajectories {
        &self.trajectories
    }
}

/// The prompts that each of some ascending numbers of prompts adds to those before it.
fn groups(counts: &[u32]) -> Vec<Range<u32>> {
    std::iter::once(0).chain(counts.iter().copied()).zip(counts).map(|(start, end)| start..*end).collect()
}

fn no_package() -> Error {
    Error::Argument("no package is open".to_owned())
}

#[cfg(test)]
mod tests;

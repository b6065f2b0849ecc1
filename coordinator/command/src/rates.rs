//! What one worker reaches on this machine, measured on a model like the job's: the same sizes, as few blocks as show it, random weights.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Tensor};
use obsdiff_core::assignment::SolveCost;
use obsdiff_core::cost::{self, PackageCost, Rates};
use obsdiff_core::{Opening, PlanCost, Workload, split};
use obsdiff_engine::architecture::TransformerConfig;
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_engine::pipeline::{Conditioning, noise};
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::{Epoch, Inventory, JobSpec, PackagesSpec, Pattern, Plan, ShardId, SparsityRule};
use obsdiff_store::JobStore;
use obsdiff_worker::collective::{Abort, Alone, Member, Transport};
use obsdiff_worker::device::{Engine, JobPartStore, PruningEngine, WorkError};
use obsdiff_worker::preparation::compute_type;

use crate::clock::Clock;
use crate::described::Described;
use crate::job::JobFile;
use crate::run::PhaseDisplay;
use crate::{Error, Result};

/// Parameters of the model that is measured, where the job's blocks are so small.
const PARAMETERS: u64 = 64 << 20;
/// About how long a measurement of one kind of work lasts, where the work can be repeated or made smaller.
const LONG: f64 = 1.5;
/// Denoising steps: at least and at most so many, the first of which does not count.
const STEPS: [usize; 2] = [3, 60];

/// Measures the rates of a worker on a device, as the process's threads are set. `rate` is that of the device's products in forward calls, in
/// operations a second.
///
/// # Errors
/// When the model that is measured does not fit in memory or in the folder of temporary files.
pub(crate) fn measure(
    job: &JobFile,
    described: &Described,
    (device, rate): (&ComputeDevice, f64),
    clock: &Clock,
) -> Result<Rates> {
    let sample = RatedJob::new(job, described, rate)?;
    let (model, weights, trajectories) = sample.load(described)?;
    let pruner = Pruner::new(&sample.spec, model, Arc::new(weights), trajectories.clone()).on(device.clone());
    let exporter = Box::new(|_, _: &mut Pruner| Ok(()));
    let folder = tempfile::tempdir().map_err(Error::System)?;
    let runtime = crate::runtime::runtime()?;
    let store = JobStore::create(&folder.path().display().to_string(), &[])?;
    runtime.block_on(store.claim(&sample.spec))?;
    let part_store = Arc::new(JobPartStore::new(store, runtime.handle().clone()));
    let plan = Arc::new(sample.plan.clone());
    let mut engine =
        PruningEngine::new(pruner, plan, part_store, Arc::new(PhaseDisplay::default()), exporter);
    let package = &sample.plan.packages[0];
    let (mut bare, mut gathering) = (0.0, 0.0);
    if let (Some(shard), false) = (sample.plan.shards.first(), package.sites.is_empty()) {
        let exponents = engine.pilot(ShardId(0), &mut || Ok(()))?;
        engine.open(&Opening { package: package.id, exponents })?;
        let mut steps = StepTimes::new(clock);
        // Each block of a step is followed by a call, and then the step itself.
        let (calls_of_step, mut calls) = (engine.pruner().model().block_count() + 1, 0);
        engine.calibrate(ShardId(0), &mut || {
            calls += 1;
            if calls % calls_of_step == 0 { steps.done() } else { Ok(()) }
        })?;
        gathering = steps.seconds();
        let mut steps = StepTimes::new(clock);
        let model = engine.pruner().model();
        trajectories.final_latents(model, shard.prompts.clone(), &mut || steps.done())?;
        bare = steps.seconds();
    }
    let solving = solve(&mut engine, &sample, clock)?;
    Ok(cost::rates(&sample.cost(), bare, gathering, solving))
}

/// By width, what the parts solved cost and took: each kind at least once, and then as many as there is time for.
fn solve(
    engine: &mut PruningEngine<'_>,
    sample: &RatedJob,
    clock: &Clock,
) -> Result<BTreeMap<usize, (u64, f64)>> {
    let package = &sample.plan.packages[0];
    let member = Member {
        epoch: Epoch(1),
        rank: 0,
        world: 1,
        form: Duration::from_secs(1),
        silence: Duration::from_secs(1),
    };
    let alone = Alone::default().join(member, &Abort::default());
    let mut alone = alone.map_err(WorkError::from)?;
    let mut reducer = engine.reducer(true);
    for site in &package.sites {
        reducer.reduce(*site, &[0], &mut *alone)?;
    }
    let mut solved = BTreeMap::<usize, (u64, f64)>::new();
    for part in split::parts(&sample.inventory, package, None, SolveCost::of(&sample.spec.sparsity)) {
        let (cost, seconds) = solved.entry(sample.inventory.site(part.id.site).width).or_default();
        if *seconds > LONG {
            continue;
        }
        let start = clock();
        engine.solve(&part, &mut || Ok(()))?;
        *cost += part.cost;
        *seconds += clock().saturating_sub(start).as_secs_f64();
    }
    Ok(solved)
}

/// Denoising steps as they end.
struct StepTimes<'a> {
    clock: &'a Clock,
    ends: Vec<Duration>,
}

impl<'a> StepTimes<'a> {
    fn new(clock: &'a Clock) -> Self {
        Self { clock, ends: Vec::new() }
    }

    /// Never fails: its result is of the kind that stops the steps.
    fn done<E>(&mut self) -> Result<(), E> {
        self.ends.push((self.clock)());
        Ok(())
    }

    /// What all but the first took.
    fn seconds(&self) -> f64 {
        match self.ends[..] {
            [first, .., last] => last.saturating_sub(first).as_secs_f64(),
            _ => 0.0,
        }
    }
}

/// The job that is measured.
struct RatedJob {
    config: Arc<dyn TransformerConfig>,
    inventory: Inventory,
    spec: JobSpec,
    plan: Plan,
    workload: Workload,
}

impl RatedJob {
    /// A job like this one on a machine of this product rate.
    fn new(job: &JobFile, described: &Described, rate: f64) -> Result<Self> {
        let config = described.config.with_fewer_blocks(PARAMETERS);
        let mut spec = job.spec.clone();
        let forward = described.forward_flops(&*config);
        let flops = forward.total();
        let mut workload = Workload { forward, ..described.workload(&spec) };
        let step = |prompts: u32| f64::from(prompts) * workload.tokens.branches as f64 * flops / (rate / 2.0);
        let calibration = &mut spec.calibration;
        let mut prompts = calibration.shard_size.min(calibration.count).max(1);
        while prompts > 1 && step(prompts) > LONG {
            prompts /= 2;
        }
        let steps = ((LONG / step(prompts)) as usize).clamp(STEPS[0], STEPS[1]);
        (calibration.count, calibration.shard_size, calibration.steps) = (prompts, prompts, steps as u32);
        if workload.prompts > 0 {
            (workload.prompts, workload.steps) = (u64::from(prompts), steps as u64 - 1);
            workload.together = u64::from(prompts);
        }
        spec.packages = PackagesSpec { count: Some(1), memory: None, ..spec.packages };
        // Everything is pruned the same: exceptions are by names of blocks that may not be here.
        let sparsity = &mut spec.sparsity;
        (sparsity.ratio, sparsity.budget) = (Some(sparsity.ratio.unwrap_or(0.5)), None);
        sparsity.rules.clear();
        if sparsity.pattern == Pattern::Structured {
            let (matches, ratio) = ("*".to_owned(), sparsity.ratio);
            sparsity.rules = vec![SparsityRule { matches, skip: false, pattern: None, ratio }];
        }
        let inventory = config.inventory();
        let plan = obsdiff_core::plan(&spec, &inventory, described.tokens).map_err(|e| job.unplanned(e))?;
        Ok(Self { config, inventory, spec, plan, workload })
    }

    /// What the steps that count and all parts cost.
    fn cost(&self) -> PackageCost {
        let (accumulate, solving) = (self.spec.hessian.accumulate, SolveCost::of(&self.spec.sparsity));
        PlanCost::new(&self.plan, &self.inventory, accumulate, solving, &self.workload).total()
    }

    /// The model with random weights, and trajectories from noise under random conditioning.
    fn load(&self, described: &Described) -> Result<(Box<dyn DiffusionModel>, Weights, Arc<Trajectories>)> {
        let dtype = compute_type(self.spec.model.dtype);
        let folder = std::env::temp_dir();
        let file = tempfile::NamedTempFile::new_in(&folder).map_err(|e| Error::file(&folder, e))?;
        let tensors = weights(&*self.config)?;
        candle_core::safetensors::save(&tensors, file.path()).map_err(obsdiff_engine::Error::from)?;
        drop(tensors);
        let weights = Weights::open_file(file.path())?;
        let model = self.config.load(&weights, dtype)?;
        let calibration = &self.spec.calibration;
        let widths = self.config.conditioning();
        let text = noise(1, &[described.tokens.text as usize, widths.text])?;
        let pooled = noise(2, &[widths.pooled])?;
        let conditioning = Conditioning { text, pooled }.to(dtype)?;
        let encoded = Encoded::repeated(conditioning, calibration.count)?;
        let schedule = described.pipeline.schedule(calibration.steps as usize, described.size.tokens)?;
        let (guidance, seed) = (described.guidance, calibration.seed);
        let trajectories = Trajectories::new(schedule, guidance, seed, described.size, encoded);
        Ok((model, weights, Arc::new(trajectories)))
    }
}

/// Small random weights, all of them parts of one list of numbers.
fn weights(config: &dyn TransformerConfig) -> Result<HashMap<String, Tensor>> {
    let shapes = config.shapes();
    let most = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
    let noise = noise(0, &[most])?;
    let made = move || -> candle_core::Result<HashMap<String, Tensor>> {
        let numbers = (noise * 0.03)?.to_dtype(DType::BF16)?;
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let count = shape.iter().product();
            Ok((name, numbers.narrow(0, 0, count)?.reshape(shape)?))
        };
        shapes.into_iter().map(tensor).collect()
    };
    made().map_err(|e| obsdiff_engine::Error::from(e).into())
}

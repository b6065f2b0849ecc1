//! Whether a job fits a worker's memory, and that of its GPU.

use obsdiff_core::{MemoryNeeds, PlanCost, Tokens, fewest_packages};
use obsdiff_proto::{ByteSize, Inventory, JobError, JobSpec, Plan, counted};

use crate::described::Described;
use crate::device_needs::DeviceNeeds;
use crate::job::JobFile;
use crate::{Error, Result};

/// Bytes that more workers than one may take in a process that was not given a number of workers.
const MOST_FOR_WORKERS: u64 = 256 << 20;

/// With how many workers a process is fastest, where its threads share so many shards: one for each thread, so that none waits for others
/// within a forward call, where all but the first take little together and `memory` has room for them. Otherwise the threads share the
/// work of one, which is as fast for large models, and has each Gram once.
pub fn best_workers(needs: &MemoryNeeds, cost: &PlanCost, shards: usize, memory: Option<ByteSize>) -> usize {
    let workers = rayon::current_num_threads().min(shards).max(1);
    let [one, all] = [1, workers as u64].map(|workers| needs.peak_of(cost, workers));
    let fits = memory.is_none_or(|memory| all <= memory.0);
    if fits && all.saturating_sub(one) <= MOST_FOR_WORKERS { workers } else { 1 }
}

/// Refuses a plan whose Grams do not fit the memory of this number of workers of one process, beside all else that they hold. The
/// error names how many workers fit, where fewer do, or the smallest number of packages that fits. That is never chosen silently, because
/// a job's cost and result depend on it. A plan without Grams always fits.
///
/// # Errors
/// When the plan does not fit, or the job cannot be planned with another number of packages.
pub fn check(
    job: &JobFile,
    described: &Described,
    plan: &Plan,
    workers: usize,
    memory: ByteSize,
) -> Result<()> {
    let Some(error) = misfit(job, described, plan, workers, memory)? else { return Ok(()) };
    let grams = described.cost(&job.spec, plan).largest_grams();
    let needs = described.memory(&job.spec, plan);
    let fit = |workers: usize| grams <= needs.room_for_grams(memory.0, workers as u64);
    let Some(most) = fewer_workers(workers, fit) else { return Err(job.refuse(error)) };
    let room = ByteSize(needs.room_for_grams(memory.0, workers as u64));
    let fewest = fewest_packages(&job.spec, &described.inventory, described.tokens, room);
    let fewest = fewest.map_err(|e| job.unplanned(e))?;
    Err(too_many_workers(workers, most, fewest, &format!("the memory of {memory}")))
}

/// The most workers that fit, where fewer do than the user asked for. None where not even one does: then the job is to blame.
fn fewer_workers(asked: usize, fit: impl Fn(usize) -> bool) -> Option<usize> {
    (1..asked).rev().find(|workers| fit(*workers))
}

/// The error of more workers than `place` holds; `packages` is the smallest number with which it holds as many as were asked for.
fn too_many_workers(asked: usize, most: usize, packages: Option<u32>, place: &str) -> Error {
    let besides = packages.map_or_else(String::new, |count| format!(", or packages.count = {count} or more"));
    let held = counted(most, "worker");
    Error::key("--workers", format!("is {asked}, but {place} holds {held}: give at most {most}{besides}"))
}

/// Why a plan does not fit; none if it does.
///
/// # Errors
/// When the job cannot be planned with another number of packages.
pub fn misfit(
    job: &JobFile,
    described: &Described,
    plan: &Plan,
    workers: usize,
    memory: ByteSize,
) -> Result<Option<JobError>> {
    let spec = &job.spec;
    let grams = described.cost(spec, plan).largest_grams();
    let needs = described.memory(spec, plan);
    let room = needs.room_for_grams(memory.0, workers as u64);
    if grams == 0 || grams <= room {
        return Ok(None);
    }
    let fewest = fewest_packages(spec, &described.inventory, described.tokens, ByteSize(room));
    let advice = match fewest.map_err(|e| job.unplanned(e))? {
        Some(count) => format!("give packages.count = {count} or more"),
        None => "no number of packages is enough; give the worker more memory, or lower \
                 calibration.shard_size, or set hessian.accumulate = \"f32\""
            .to_owned(),
    };
    let (key, given) = packages(spec, plan);
    let problem = format!(
        "is {given}, with which Grams take {}, but of {memory} {} are left for those of a worker: {advice}",
        ByteSize(grams),
        ByteSize(room)
    );
    Ok(Some(JobError::new(key, problem)))
}

/// The key by which the number of packages is given, and its value.
fn packages(spec: &JobSpec, plan: &Plan) -> (&'static str, String) {
    match spec.packages.memory {
        Some(memory) => ("packages.memory", memory.to_string()),
        None => ("packages.count", plan.packages.len().to_string()),
    }
}

/// A job that a GPU is to hold: its plan, and what that takes.
pub struct OnDevice<'a> {
    /// The job.
    pub job: &'a JobFile,
    /// What can be pruned of its model.
    pub inventory: &'a Inventory,
    /// Tokens of a picture.
    pub tokens: Tokens,
    /// The plan.
    pub plan: &'a Plan,
    /// The Grams of its largest package.
    pub grams: u64,
    /// What else a worker holds there.
    pub needs: DeviceNeeds,
}

impl<'a> OnDevice<'a> {
    /// The job of a whole pipeline.
    pub fn new(job: &'a JobFile, described: &'a Described, plan: &'a Plan) -> Self {
        let grams = described.cost(&job.spec, plan).largest_grams();
        Self {
            job,
            inventory: &described.inventory,
            tokens: described.tokens,
            plan,
            grams,
            needs: described.device_needs(&job.spec, plan),
        }
    }

    /// The same on a GPU that is open.
    #[must_use]
    pub fn once_open(self) -> Self {
        Self { needs: self.needs.once_open(), ..self }
    }

    /// The fewest packages with which a worker's GPU holds the job; none where no number is enough.
    ///
    /// # Errors
    /// When the job cannot be planned with another number of packages.
    pub fn fewest_packages(&self, workers: usize, memory: ByteSize) -> Result<Option<u32>> {
        if self.needs.peak(0, workers as u64) > memory.0 {
            return Ok(None);
        }
        let room = ByteSize(self.needs.room_for_grams(memory.0, workers as u64));
        let fewest = fewest_packages(&self.job.spec, self.inventory, self.tokens, room);
        fewest.map_err(|e| self.job.unplanned(e))
    }

    /// Refuses a plan that does not fit the memory of a GPU on which so many workers work. The error names how many workers fit, where
    /// fewer do, or the smallest number of packages that fits.
    ///
    /// # Errors
    /// When the plan does not fit, or the job cannot be planned with another number of packages.
    pub fn check(&self, workers: usize, memory: ByteSize) -> Result<()> {
        let Self { job, needs, .. } = self;
        if needs.peak(self.grams, workers as u64) <= memory.0 {
            return Ok(());
        }
        if needs.while_encoding() > memory.0 {
            let problem = format!(
                "is missing, but to encode the prompts takes {}, and the GPU has {memory}: encode them on another machine by `obsdiff \
                 encode`, and name the file here, or take a GPU with more memory",
                ByteSize(needs.while_encoding())
            );
            return Err(job.refuse(JobError::new("calibration.conditioning", problem)));
        }
        let fit = |workers: usize| needs.peak(self.grams, workers as u64) <= memory.0;
        if let Some(most) = fewer_workers(workers, fit) {
            let fewest = self.fewest_packages(workers, memory)?;
            return Err(too_many_workers(workers, most, fewest, &format!("the GPU, which has {memory},")));
        }
        let besides = ByteSize(needs.besides_grams(workers as u64));
        let advice = match self.fewest_packages(workers, memory)? {
            Some(count) => format!("give packages.count = {count} or more"),
            None => "no number of packages is enough; set model.dtype = \"bf16\" or hessian.accumulate = \"f32\", or lower \
                     calibration.shard_size, or take a GPU with more memory"
                .to_owned(),
        };
        let (key, given) = packages(&job.spec, self.plan);
        let problem = format!(
            "is {given}, with which Grams take {}, beside {besides} of weights, activations and solving, but the GPU has {memory}: {advice}",
            ByteSize(self.grams)
        );
        Err(job.refuse(JobError::new(key, problem)))
    }
}

//! Whether a job fits a worker's memory.

use obsdiff_core::fewest_packages;
use obsdiff_proto::{ByteSize, JobError, Plan};

use crate::Result;
use crate::described::Described;
use crate::job::JobFile;

/// Refuses a plan whose Grams do not fit the memory of this number of workers of one process, beside all else that they hold. The
/// error names the smallest number of packages that fits. It is never chosen silently, because a job's cost and result depend on it.
/// A plan without Grams always fits.
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
    match misfit(job, described, plan, workers, memory)? {
        Some(error) => Err(job.refuse(error)),
        None => Ok(()),
    }
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
    let (key, given) = match spec.packages.memory {
        Some(memory) => ("packages.memory", memory.to_string()),
        None => ("packages.count", plan.packages.len().to_string()),
    };
    let advice = match fewest.map_err(|e| job.unplanned(e))? {
        Some(count) => format!("give packages.count = {count} or more"),
        None => "no number of packages is enough; give the worker more memory, or lower \
                 calibration.shard_size, or set hessian.accumulate = \"f32\""
            .to_owned(),
    };
    let problem = format!(
        "is {given}, with which Grams take {}, but of {memory} {} are left for those of a worker: {advice}",
        ByteSize(grams),
        ByteSize(room)
    );
    Ok(Some(JobError::new(key, problem)))
}

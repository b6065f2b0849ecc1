//! Room for what a job writes, on the file systems that its folders are on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use obsdiff_core::cost::gram_bytes;
use obsdiff_engine::export::required_bytes;
use obsdiff_files::free_bytes;
use obsdiff_proto::{
    Accumulate, ByteSize, GramPrecision, Inventory, JobError, JobSpec, LinearTarget, Plan, Target,
};
use obsdiff_store::JobStore;

use super::Inputs;
use super::state::location;
use crate::described::Described;
use crate::job::JobFile;
use crate::progress::Progress;
use crate::{Error, Result};

/// Refuses a job whose output, state and kept Grams do not all fit where they go.
///
/// # Errors
/// What [`shortage`] finds, or has.
pub(super) fn check(job: &JobFile, described: &Described, plan: &Plan) -> Result<()> {
    match shortage(job, described, plan)? {
        Some(shortage) => Err(shortage),
        None => Ok(()),
    }
}

/// The first place of a job whose file system has less room than what the job will write there at least, in addition to what it writes
/// there elsewhere; none where all of it fits. What an earlier run has left counts as written. `plan` has the job's surveys.
///
/// # Errors
/// When the files of the model cannot be listed, or the system does not say how much room there is.
pub(crate) fn shortage(job: &JobFile, described: &Described, plan: &Plan) -> Result<Option<Error>> {
    Ok(missing(job, described, plan, 0)?
        .map(|Missing { key, problem }| job.refuse(JobError::new(key, problem))))
}

/// With which period the workers save their sums: none where there are none, or where the state's file system has no room for them. That is
/// said, since an interruption then costs more.
///
/// # Errors
/// As [`shortage`].
pub(super) fn save_period(
    job: &JobFile,
    inputs: &Inputs,
    workers: usize,
    (period, progress): (Option<Duration>, &Progress),
) -> Result<Option<Duration>> {
    let (described, plan) = (&inputs.described, &inputs.plan);
    let grams = described.cost(&job.spec, plan).largest_grams();
    let Some(period) = period.filter(|_| grams > 0) else { return Ok(None) };
    // Saved sums are removed once newer ones are there.
    let sums = grams.saturating_mul(2).saturating_mul(workers as u64);
    let Some(Missing { problem, .. }) = missing(job, described, plan, sums)? else { return Ok(Some(period)) };
    progress.note(&format!(
        "sums are not saved while the job calibrates (--save-sums), because its state, output and saved sums do not fit: it {problem}"
    ));
    Ok(None)
}

/// A place without the room for what goes there.
struct Missing {
    key: &'static str,
    problem: String,
}

/// The first place without room where so many bytes of saved sums go into the job's state besides.
fn missing(job: &JobFile, described: &Described, plan: &Plan, sums: u64) -> Result<Option<Missing>> {
    let spec = &job.spec;
    let state = location(job);
    // Of a job that goes by kept Grams, only some prompts are encoded.
    let conditioning = if job.kept().is_none() { described.conditioning_bytes(spec).0 } else { 0 };
    let weights = weight_bytes(&described.inventory, plan);
    let grams = kept_gram_bytes(spec, &described.inventory, plan);
    let places = [
        ("output.path", Some(&spec.output.path), required_bytes(described.pipeline.path())?),
        ("output.state", Some(&state), conditioning.saturating_add(weights).saturating_add(sums)),
        ("output.grams", spec.output.grams.as_ref(), grams),
    ];
    // What goes to each file system, by its number.
    let mut planned: BTreeMap<u64, u64> = BTreeMap::new();
    for (key, path, bytes) in places {
        // An object store has room, and what is no store at all is refused where it is opened.
        let Some(folder) = path.and_then(|path| JobStore::directory(path).ok().flatten()) else { continue };
        let there = existing(&folder);
        let failed = |e| Error::file(there, e);
        let file_system = there.metadata().map_err(failed)?.dev();
        let free = free_bytes(there).map_err(failed)?;
        let before = planned.entry(file_system).or_default();
        let needed = bytes.saturating_sub(bytes_in(&folder));
        let all = before.saturating_add(needed);
        if needed > 0 && free < all {
            let others = match *before {
                0 => String::new(),
                bytes => format!(" besides {} of the job's other files", ByteSize(bytes)),
            };
            let (needed, free) = (ByteSize(needed), ByteSize(free));
            let problem = format!(
                "needs {needed}{others}, but {} has {free} free: make room or choose another",
                there.display()
            );
            return Ok(Some(Missing { key, problem }));
        }
        *before = all;
    }
    Ok(None)
}

/// The path, or the folder above it that is there.
fn existing(path: &Path) -> &Path {
    let existing = path.ancestors().find(|path| path.as_os_str().is_empty() || path.exists());
    existing.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes of the files in a folder and in those below it; 0 where there is no folder.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let bytes = entries.map_while(Result::ok).map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// Bytes of the weights of solved parts, in f32, at least: what stays of heads and neurons is not known where a budget decides.
fn weight_bytes(inventory: &Inventory, plan: &Plan) -> u64 {
    let bytes = |target: &LinearTarget| {
        let linear = inventory.linear(target.linear);
        let weights = linear.rows as f64 * inventory.site(linear.site).width as f64;
        let stays = match target.target {
            Target::Structured { ratio } => 1.0 - ratio.unwrap_or(1.0),
            Target::Unstructured { .. } | Target::NToM { .. } => 1.0,
        };
        size_of::<f32>() as f64 * weights * stays
    };
    let pruned = plan.packages.iter().filter(|package| !package.survey);
    pruned.flat_map(|package| &package.linears).map(bytes).sum::<f64>() as u64
}

/// Bytes of the Grams that outlive the job: those of its survey where it has one, or else those of all packages.
fn kept_gram_bytes(spec: &JobSpec, inventory: &Inventory, plan: &Plan) -> u64 {
    let accumulate = match spec.output.gram_precision {
        GramPrecision::Exact => spec.hessian.accumulate,
        GramPrecision::F32 => Accumulate::F32,
    };
    let surveys = plan.packages.iter().any(|package| package.survey);
    let packages = plan.packages.iter().filter(|package| package.survey || !surveys);
    let sites = packages.flat_map(|package| package.sites.iter().map(move |site| (package, site)));
    let bytes =
        sites.map(|(package, site)| gram_bytes(package.gram_width(inventory.site(*site)), accumulate));
    // Those of fewer prompts are kept in addition.
    bytes.fold(0, u64::saturating_add).saturating_mul(1 + spec.output.gram_prompts.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn sums_are_saved_where_there_are_any_and_the_state_has_room_for_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folder = tempfile::tempdir().unwrap();
        let saved = |method: &str, workers: usize, period: Option<Duration>| {
            let sets = [
                format!("model.path={}", root.join("tests/assets/shapes-sd3").display()),
                format!("calibration.prompts={}", root.join("tests/assets/shapes-prompts.txt").display()),
                format!("sparsity.method={method}"),
                "sparsity.allocation=uniform".to_owned(),
                "sparsity.refine=0".to_owned(),
                format!("output.path={}", folder.path().join("out").display()),
            ];
            let job = JobFile::load(&root.join("deploy/jobs/shapes-sd3.toml"), [], &sets).unwrap();
            let inputs = Inputs::open(&job, 1, None).unwrap();
            let progress = Progress::lines(io::sink(), crate::clock::monotonic());
            save_period(&job, &inputs, workers, (period, &progress)).unwrap()
        };
        let period = Some(Duration::from_secs(600));
        assert_eq!(saved("admm", 1, period), period);
        assert_eq!(saved("admm", 1, None), None);
        assert_eq!(saved("magnitude", 1, period), None, "it sums nothing");
        assert_eq!(saved("admm", usize::MAX, period), None, "no disk has room for that");
    }

    #[test]
    fn what_is_there_is_counted_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("state/parts")).unwrap();
        fs::write(path("state/job.json"), [0; 10]).unwrap();
        fs::write(path("state/parts/one"), [0; 7]).unwrap();
        assert_eq!(bytes_in(&path("state")), 17);
        std::os::unix::fs::symlink(dir.path(), path("state/loop")).unwrap();
        assert!(bytes_in(&path("state")) < 4096);
        assert_eq!(bytes_in(&path("absent")), 0);
        assert_eq!(existing(&path("state/new/deep")), path("state"));
        assert_eq!(existing(Path::new("no/such/folder")), Path::new("."));
    }
}

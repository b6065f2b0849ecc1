//! Checks the paths of a job: what it writes must lie apart from what it reads.

use std::path::Path;

use obsdiff_files::{Overlap, ResolvedPath};
use obsdiff_proto::JobError;
use obsdiff_store::{GramStore, JobStore};

use super::state::location;
use crate::Result;
use crate::job::JobFile;

/// A path of a job, with its key.
struct Named<'a> {
    key: &'static str,
    path: &'a str,
    place: ResolvedPath,
}

impl<'a> Named<'a> {
    fn of(job: &JobFile, key: &'static str, path: &'a str) -> Result<Self> {
        let place = ResolvedPath::of(Path::new(path));
        let place = place.map_err(|e| job.refuse(JobError::new(key, format!("is \"{path}\": {e}"))))?;
        Ok(Self { key, path, place })
    }
}

/// Refuses a job whose output or state would overlap with each other or with what it reads, symbolic links followed, and a state's
/// folder that holds anything that is not obsdiff's.
pub(super) fn check(job: &JobFile) -> Result<()> {
    let spec = &job.spec;
    let output = Named::of(job, "output.path", &spec.output.path)?;
    let mut inputs = vec![Named::of(job, "model.path", &spec.model.path)?];
    let prompts = [
        ("calibration.prompts", &spec.calibration.prompts),
        ("calibration.conditioning", &spec.calibration.conditioning),
        ("evaluation.prompts", &spec.evaluation.prompts),
    ];
    // What the prompts of kept Grams came from is not read again.
    let read =
        prompts.into_iter().filter(|(key, _)| job.kept().is_none() || *key == "calibration.conditioning");
    for (key, path) in read {
        if let Some(path) = path {
            inputs.push(Named::of(job, key, path)?);
        }
    }
    let grams = spec.calibration.grams.as_deref().map(JobStore::directory).transpose()?.flatten();
    let grams = grams.map(|path| path.to_string_lossy().into_owned());
    if let Some(path) = &grams {
        inputs.push(Named::of(job, "calibration.grams", path)?);
    }
    apart(job, &output, &inputs)?;
    let state = location(job);
    inputs.push(output);
    let state_folder = JobStore::directory(&state)?.map(|path| path.to_string_lossy().into_owned());
    if let Some(state) = &state_folder {
        let state = Named::of(job, "output.state", state)?;
        apart(job, &state, &inputs)?;
        inputs.push(state);
    }
    JobStore::check(&state)?;
    check_grams(job, &inputs, &state)
}

/// Refuses a place for Grams that would overlap with the state or another path of the job, or holds anything but kept Grams.
fn check_grams(job: &JobFile, others: &[Named<'_>], state: &str) -> Result<()> {
    let Some(grams) = &job.spec.output.grams else { return Ok(()) };
    if let Some(folder) = JobStore::directory(grams)? {
        apart(job, &Named::of(job, "output.grams", &folder.to_string_lossy())?, others)?;
    } else if let Some(lies) = nested(grams, state) {
        let problem = format!("is {grams}, which {lies} output.state, {state}: choose a place of its own");
        return Err(job.refuse(JobError::new("output.grams", problem)));
    }
    Ok(GramStore::check(grams)?)
}

/// How one prefix of an object store lies to another, where they overlap.
fn nested(own: &str, other: &str) -> Option<&'static str> {
    let whole = |url: &str| format!("{}/", url.trim_end_matches('/'));
    let (own, other) = (whole(own), whole(other));
    if own == other {
        Some("is the same as")
    } else if own.starts_with(&other) {
        Some("lies in")
    } else {
        other.starts_with(&own).then_some("holds")
    }
}

/// Refuses what is written, where it overlaps with one of the others.
fn apart(job: &JobFile, written: &Named<'_>, others: &[Named<'_>]) -> Result<()> {
    for other in others {
        let lies = match written.place.overlap(&other.place) {
            None => continue,
            Some(Overlap::Same) => "is the same as",
            Some(Overlap::Inside) => "lies in",
            Some(Overlap::Around) => "holds",
        };
        let problem = format!(
            "is {}, which {lies} {}, {}: choose a place of its own",
            written.path, other.key, other.path
        );
        return Err(job.refuse(JobError::new(written.key, problem)));
    }
    Ok(())
}

//! Checks the paths of a job: what it writes must lie apart from what it reads.

use std::path::Path;

use obsdiff_files::{Overlap, ResolvedPath};
use obsdiff_proto::JobError;
use obsdiff_store::JobStore;

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
    for (key, path) in prompts {
        if let Some(path) = path {
            inputs.push(Named::of(job, key, path)?);
        }
    }
    apart(job, &output, &inputs)?;
    let state = location(job);
    if let Some(state) = JobStore::directory(&state)? {
        let state = state.to_string_lossy();
        let state = Named::of(job, "output.state", &state)?;
        inputs.push(output);
        apart(job, &state, &inputs)?;
    }
    Ok(JobStore::check(&state)?)
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

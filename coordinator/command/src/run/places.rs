//! Checks the paths of a job: what it writes must lie apart from what it reads.

use obsdiff_files::{Overlap, ResolvedPath};
use obsdiff_proto::JobError;
use obsdiff_store::{GramStore, JobStore};

use super::state::location;
use crate::Result;
use crate::job::JobFile;

/// A path of a job, with its key.
struct JobPath<'a> {
    key: &'static str,
    path: &'a str,
    lies: Lies,
}

/// Where a place is.
enum Lies {
    /// In the file system.
    Here(ResolvedPath),
    /// In an object store.
    Elsewhere,
}

impl<'a> JobPath<'a> {
    fn of(job: &JobFile, key: &'static str, path: &'a str) -> Result<Self> {
        // What is no store at all is refused where it is opened.
        let lies = match JobStore::directory(path) {
            Ok(Some(folder)) => Lies::Here(
                ResolvedPath::of(&folder)
                    .map_err(|e| job.refuse(JobError::new(key, format!("is \"{path}\": {e}"))))?,
            ),
            Ok(None) | Err(_) => Lies::Elsewhere,
        };
        Ok(Self { key, path, lies })
    }

    /// How it lies to another place, where they overlap.
    fn overlap(&self, other: &Self) -> Option<&'static str> {
        match (&self.lies, &other.lies) {
            (Lies::Here(own), Lies::Here(other)) => Some(match own.overlap(other)? {
                Overlap::Same => "is the same as",
                Overlap::Inside => "lies in",
                Overlap::Around => "holds",
            }),
            (Lies::Elsewhere, Lies::Elsewhere) => nested(self.path, other.path),
            _ => None,
        }
    }
}

/// Refuses a job whose output or state would overlap with each other or with what it reads, symbolic links followed, and a state's
/// folder that holds anything that is not obsdiff's.
pub(super) fn check(job: &JobFile) -> Result<()> {
    let spec = &job.spec;
    let state = location(job);
    let written = [
        ("output.path", Some(&spec.output.path)),
        ("output.state", Some(&state)),
        ("output.grams", spec.output.grams.as_ref()),
    ];
    let prompts = [
        ("calibration.prompts", &spec.calibration.prompts),
        ("calibration.conditioning", &spec.calibration.conditioning),
        ("evaluation.prompts", &spec.evaluation.prompts),
    ];
    // What the prompts of kept Grams came from is not read again.
    let prompts =
        prompts.into_iter().filter(|(key, _)| job.kept().is_none() || *key == "calibration.conditioning");
    let read = [("model.path", Some(&spec.model.path))]
        .into_iter()
        .chain(prompts.map(|(key, path)| (key, path.as_ref())))
        .chain([("calibration.grams", spec.calibration.grams.as_ref())]);
    let mut others = Vec::new();
    for (key, path) in read {
        others.extend(path.map(|path| JobPath::of(job, key, path)).transpose()?);
    }
    // The copy of a model in an object store is no place to write to, either.
    let cache = job.model_cache().map(|cache| cache.display().to_string());
    others.extend(cache.as_deref().map(|cache| JobPath::of(job, "--cache", cache)).transpose()?);
    for (key, path) in written {
        let Some(path) = path else { continue };
        let place = JobPath::of(job, key, path)?;
        apart(job, &place, &others)?;
        others.push(place);
    }
    JobStore::check(&state)?;
    match &spec.output.grams {
        Some(grams) => Ok(GramStore::check(grams)?),
        None => Ok(()),
    }
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
fn apart(job: &JobFile, written: &JobPath<'_>, others: &[JobPath<'_>]) -> Result<()> {
    for other in others {
        let Some(lies) = written.overlap(other) else { continue };
        let problem = format!(
            "is {}, which {lies} {}, {}: choose a place of its own",
            written.path, other.key, other.path
        );
        return Err(job.refuse(JobError::new(written.key, problem)));
    }
    Ok(())
}

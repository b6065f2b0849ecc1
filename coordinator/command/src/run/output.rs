//! Where a job's output goes, checked before any work.

use std::path::{Path, PathBuf};

use obsdiff_coordinator::JobState;
use obsdiff_engine::export::{PruningRecord, longest_name, required_bytes};
use obsdiff_files::Disk;
use obsdiff_proto::{ByteSize, JobError};
use obsdiff_store::{OutputState, OutputStore, StoreError};
use obsdiff_worker::preparation::PreparationError;
use obsdiff_worker::pruning_job::JobOutput;
use tokio::runtime::Handle;

use super::finished::FinishedOutput;
use super::state::{is_there, written_record};
use crate::described::{Described, unprepared};
use crate::job::JobFile;
use crate::runtime::runtime;
use crate::{Error, Result};

/// The output of a job; calls of one in an object store wait on `runtime`.
///
/// # Errors
/// When `output.path` is a URL that names no object store.
pub(crate) fn output_of(job: &JobFile, runtime: &Handle) -> Result<JobOutput> {
    let output = JobOutput::of(&job.spec, job.stores().pairs(), runtime);
    output.map_err(|error| refused(job, error))
}

/// What lies where the output of a job goes.
pub(super) enum FoundOutput {
    /// Nothing but what the job itself has begun to write.
    None,
    /// The output of the job: an earlier process wrote it, and ended before it could remove the job's state.
    LeftOver,
    /// An output with a record of the job, without its state.
    Finished(Box<FinishedOutput>),
}

/// Refuses an output that cannot be written, unless its record says that this job has written it. `here` says whether this process itself
/// is to write it.
pub(super) fn check(job: &JobFile, described: &Described, here: bool) -> Result<FoundOutput> {
    if job.spec.output.link && job.model_cache().is_some() {
        let problem = format!(
            "is true, but model.path is {}, whose copies in the cache the output would share: leave it out",
            job.spec.model.path
        );
        return Err(job.refuse(JobError::new("output.link", problem)));
    }
    let runtime = runtime()?;
    let output = output_of(job, runtime.handle())?;
    let (record, other) = match written_record(&output) {
        Some(record) if record.job == job.spec => (Some(record), None),
        other => (None, other),
    };
    let written = record.is_some() && is_there(job, &runtime)?;
    let finished = |refusal, record: Option<PruningRecord>| match record {
        Some(record) => Ok(FoundOutput::Finished(Box::new(FinishedOutput::new(record, refusal)))),
        None => Err(refusal),
    };
    match &output {
        JobOutput::Directory(path) => {
            if path.symlink_metadata().is_ok() && !written && path.file_name().is_some() {
                return finished(of_other(job, exists(path), other.as_ref())?, record);
            }
            let folder = check_directory(job, path, described, written)?;
            // Of a cluster's job, each worker tries it where it is.
            if here && !written {
                try_writing(job, &output, &folder)?;
            }
        }
        JobOutput::Objects(_) => {
            let store = OutputStore::open(&job.spec.output.path, job.stores().pairs());
            let store = store.map_err(|error| refused(job, error))?.at_start();
            let state = runtime.block_on(store.state(&job.spec)).map_err(|error| refused(job, error))?;
            refuse_link(job)?;
            if let OutputState::Unmarked(object) = &state
                && !written
            {
                return finished(of_other(job, holds(job, object), other.as_ref())?, record);
            }
            if !written {
                runtime.block_on(store.try_writing()).map_err(|error| refused(job, error))?;
            }
        }
    }
    Ok(if written { FoundOutput::LeftOver } else { FoundOutput::None })
}

/// Removes the marker of a complete output in an object store, whose writer ended before it could.
pub(crate) fn settle(job: &JobFile, state: &JobState) -> Result<()> {
    if OutputStore::is_url(&job.spec.output.path) {
        let store = OutputStore::open(&job.spec.output.path, job.stores().pairs())?;
        state.runtime().block_on(store.finish())?;
    }
    Ok(())
}

/// Removes from an object store what a job has begun to write that has to change first.
pub(super) fn give_up(job: &JobFile, state: &JobState) {
    if !OutputStore::is_url(&job.spec.output.path) {
        return;
    }
    let removed = OutputStore::open(&job.spec.output.path, job.stores().pairs())
        .and_then(|store| state.runtime().block_on(store.give_up(&job.spec)));
    if let Err(error) = removed {
        tracing::warn!(%error, "the output that the job has begun to write could not be removed");
    }
}

/// The error of the store that the output is in, by its key where that has to change.
fn refused(job: &JobFile, error: StoreError) -> Error {
    unprepared(job, PreparationError::of_output(error))
}

/// A prefix must not be asked for links.
fn refuse_link(job: &JobFile) -> Result<()> {
    let path = &job.spec.output.path;
    if !job.spec.output.link {
        return Ok(());
    }
    let problem =
        format!("is true, but output.path is {path}, an object store, which has no links: leave it out");
    Err(job.refuse(JobError::new("output.link", problem)))
}

/// The problem of a prefix with an object that the job did not write, or with the output of a job that is done.
fn holds(job: &JobFile, object: &str) -> String {
    let path = &job.spec.output.path;
    format!("is {path}, which holds {object} already: choose another prefix, or move that away")
}

/// The problem of a path at which something is.
fn exists(path: &Path) -> String {
    format!("is {}, which exists already: choose another, or move it away", path.display())
}

/// The error of a place with this problem, where the output of an `other` job may be: the keys of which it differs are named.
fn of_other(job: &JobFile, problem: String, other: Option<&PruningRecord>) -> Result<Error> {
    let differences = other.map(|other| job.differences_from(&other.job)).transpose()?;
    let problem = match differences {
        Some(differences) => format!("{problem} (it is the output of another job: {differences})"),
        None => problem,
    };
    Ok(job.refuse(JobError::new("output.path", problem)))
}

/// The output must be a new directory, or what the job itself has `written`, on a file system with room for it.
fn check_directory(job: &JobFile, path: &Path, described: &Described, written: bool) -> Result<PathBuf> {
    let refuse = |problem: String| Err(job.refuse(JobError::new("output.path", problem)));
    let Some(name) = path.file_name() else {
        return refuse(format!("is {}, which ends in no name: give the directory a name", path.display()));
    };
    let existing = path.ancestors().skip(1).find(|p| p.as_os_str().is_empty() || p.exists());
    let parent = existing.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return refuse(format!(
            "is {}, but {} is not a directory: choose another",
            path.display(),
            parent.display()
        ));
    }
    if written {
        return Ok(parent.to_owned());
    }
    let space = rustix::fs::statvfs(parent).map_err(|e| Error::file(parent, e.into()))?;
    let longest = longest_name(space.f_namemax);
    if name.len() as u64 > longest {
        let problem = format!(
            "is {}, whose name has {} bytes: at most {longest} can be used",
            path.display(),
            name.len()
        );
        return refuse(problem);
    }
    let free = ByteSize(space.f_bavail.saturating_mul(space.f_frsize));
    let needed = ByteSize(required_bytes(described.pipeline.path())?);
    if free < needed {
        return refuse(format!(
            "needs {needed}, but {} has {free} free: make room or choose another",
            parent.display()
        ));
    }
    Ok(parent.to_owned())
}

/// This process writes the output itself: it must be able to.
fn try_writing(job: &JobFile, output: &JobOutput, folder: &Path) -> Result<()> {
    output.try_writing(&Disk::default()).map_err(|error| match error {
        PreparationError::Engine(obsdiff_engine::Error::Write { source, .. }) => {
            let path = &job.spec.output.path;
            let problem = format!("is {path}, but nothing can be written to {}: {source}", folder.display());
            job.refuse(JobError::new("output.path", problem))
        }
        other => unprepared(job, other),
    })
}

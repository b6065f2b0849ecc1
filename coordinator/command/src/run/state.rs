//! The state of a job that this process coordinates: its location, and the messages about it.

use std::sync::Arc;

use obsdiff_coordinator::{JobInputs, JobState};
use obsdiff_engine::export::PruningRecord;
use obsdiff_files::Disk;
use obsdiff_proto::{JobError, counted};
use obsdiff_store::{JobStore, StoreError};
use obsdiff_worker::pruning_job::JobOutput;
use tokio::runtime::Runtime;

use super::Inputs;
use crate::job::JobFile;
use crate::progress::Progress;
use crate::runtime::runtime;
use crate::text::shell_path;
use crate::{Error, Result};

/// Begins a job, or finds an earlier run of the same one. The store is at `output.state`, or beside the output.
///
/// # Errors
/// As [`JobState::open`] has.
pub fn open_state(job: &JobFile, inputs: &Inputs) -> Result<JobState> {
    let inputs = JobInputs {
        spec: job.spec.clone(),
        inventory: Arc::new(inputs.described.inventory.clone()),
        plan: Arc::new(inputs.plan.clone()),
        prompts: inputs.prompts.recorded(),
        model_files: inputs.model_files.clone(),
        prompt_files: inputs.prompt_files.clone(),
    };
    let place = location(job);
    JobState::open(&place, job.stores().pairs(), &inputs, runtime()?).map_err(|error| match error {
        obsdiff_coordinator::Error::Store(changed @ StoreError::Changed { .. }) => {
            begun_by_another(job, &place, &changed)
        }
        other => other.into(),
    })
}

/// The error of a state that another job has begun: the store says what has `changed`, and how this job can begin.
fn begun_by_another(job: &JobFile, place: &str, changed: &StoreError) -> Error {
    let removal = match JobStore::directory(place) {
        Ok(Some(folder)) => format!("rm -r {}", shell_path(&folder)),
        Ok(None) | Err(_) => "remove all objects there".to_owned(),
    };
    let problem = format!("{changed}, or give up what is finished there: {removal}");
    job.refuse(JobError::new("output.state", problem))
}

/// Whether a state of the job is there, if only in part. Nothing is made where none is.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn is_there(job: &JobFile, runtime: &Runtime) -> Result<bool> {
    Ok(JobState::is_at(&location(job), job.stores().pairs(), &job.spec, runtime)?)
}

/// Whether the output is written and an earlier process ended while it removed this state. Then only the removal is left to do.
pub(crate) fn is_left_over(state: &JobState, inputs: &Inputs) -> bool {
    inputs.written && !state.is_finished()
}

/// Says what an earlier process has finished.
pub(crate) fn note(state: &JobState, progress: &Progress) {
    let (done, all) = (state.job.committed, state.job.plan.packages.len());
    if state.resumed {
        progress.note(&format!("{} is found: {done} of {} finished", state.url(), counted(all, "package")));
    }
    if let Some(package) = state.went_back {
        progress.note(&format!(
            "{} lacks objects of package {}: it is run again, and so are those after it",
            state.url(),
            package.0 + 1
        ));
    }
}

/// Refuses this machine, of the kind `own`, where the job was begun on another kind, and that matters.
///
/// # Errors
/// When it is of another kind.
pub(super) fn check_hardware(state: &JobState, job: &JobFile, own: &str) -> Result<()> {
    let mixed = job.spec.workers.mixed_hardware;
    match &state.job.hardware {
        Some(begun) if !mixed && begun != own => {
            let problem = format!(
                "is not set, but {} was begun on {begun} and this machine is {own}, whose results may differ in bits: \
                 go on there, or begin another job with mixed_hardware = true",
                state.url()
            );
            Err(job.refuse(JobError::new("workers.mixed_hardware", problem)))
        }
        _ => Ok(()),
    }
}

/// Decides about the state after a failure. It normally stays, so that the same command can go on. It is removed if this process began
/// the job and the input has to change first, so that nothing new is left behind.
pub(super) fn after(job: &JobFile, state: JobState, error: Error, disk: &Disk) -> Error {
    let error = error.after_begin(state.url());
    if error.exit_code() == 2 && !state.resumed && !matches!(error, Error::Damaged(_)) {
        super::grams::give_up(job, &state, disk);
        super::output::give_up(job, &state);
        state.remove(disk);
    }
    error
}

/// The output's record, if the output exists.
pub(crate) fn written_record(output: &JobOutput) -> Option<PruningRecord> {
    output.record().ok().flatten()
}

/// Where a job keeps its state: a directory or a URL.
pub(crate) fn location(job: &JobFile) -> String {
    match &job.spec.output.state {
        Some(state) => state.clone(),
        None => format!("{}.state", job.spec.output.path.trim_end_matches('/')),
    }
}

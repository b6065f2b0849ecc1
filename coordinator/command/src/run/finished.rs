//! The output of a job that is done: the same command says so, and changes nothing.

use obsdiff_engine::export::PruningRecord;
use obsdiff_proto::InputDigest;
use obsdiff_store::GramStore;
use obsdiff_worker::grams::GramIndex;
use tokio::runtime::Runtime;

use super::output::output_of;
use crate::job::JobFile;
use crate::runtime::runtime;
use crate::{Error, Result};

/// An output whose record has the specification of a job.
pub(crate) struct FinishedOutput {
    record: PruningRecord,
    /// Why the job cannot have its output there, unless it is its own.
    refusal: Error,
}

impl FinishedOutput {
    /// One that is refused where it turns out to be another job's, or not what this job wrote.
    pub(super) fn new(record: PruningRecord, refusal: Error) -> Self {
        Self { record, refusal }
    }

    /// The same, once it is known that this release of obsdiff wrote it for the same inputs, that each file is as it was written, and that
    /// the Grams are there which the job was to keep.
    ///
    /// # Errors
    /// When anything differs; when a store fails.
    pub(super) fn confirmed<'a>(
        self,
        job: &JobFile,
        inputs: impl Iterator<Item = &'a InputDigest>,
    ) -> Result<Self> {
        let runtime = runtime()?;
        let same = self.record.obsdiff == env!("CARGO_PKG_VERSION") && self.record.inputs.iter().eq(inputs);
        if same
            && has_kept_grams(job, &runtime)?
            && output_of(job, runtime.handle())?.is_unchanged(&self.record)?
        {
            Ok(self)
        } else {
            Err(self.refusal)
        }
    }

    /// What was done.
    pub(crate) fn record(self) -> PruningRecord {
        self.record
    }

    /// The same, where the dense model was pruned by magnitude besides, as a run is asked to do now.
    ///
    /// # Errors
    /// When it was not.
    pub(super) fn with_baseline(self) -> Result<PruningRecord> {
        let has_baseline = self.record.measured.as_ref().is_some_and(|measured| measured.baseline.is_some());
        if has_baseline { Ok(self.record) } else { Err(self.refusal) }
    }
}

/// Whether the Grams are there that the job keeps, if it keeps any.
fn has_kept_grams(job: &JobFile, runtime: &Runtime) -> Result<bool> {
    let Some(url) = &job.spec.output.grams else { return Ok(true) };
    let index = GramStore::open(url, job.stores().pairs())
        .and_then(|store| runtime.block_on(store.index::<GramIndex>()));
    match index {
        Ok(index) => Ok(index.spec == job.spec),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// What is said of a job that is done.
pub(crate) fn already_done(job: &JobFile) -> String {
    format!(
        "the job is done already, and its result is in {}: nothing is run or written again",
        job.spec.output.path
    )
}

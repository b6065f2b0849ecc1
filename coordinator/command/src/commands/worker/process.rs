//! What the command does for a job that its worker received.

use std::path::PathBuf;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_proto::{ByteSize, Plan};
use obsdiff_worker::preparation::{PreparationError, ReceivedJob, ShowEncoding, WorkerProcess};
use obsdiff_worker::pruning_job::Describe;
use obsdiff_worker::stored_model::Extent;

use crate::clock::Clock;
use crate::described::{Described, unprepared};
use crate::fit::{self, OnDevice};
use crate::job::JobFile;
use crate::measured::WorkerMeasurements;
use crate::progress::Progress;
use crate::prompts::JobPrompts;
use crate::report::OutputDocuments;
use crate::run::{Inputs, available_memory};
use crate::sampling::EncodingPhase;
use crate::{Error, Result};

/// A process whose worker received a job.
pub(super) struct ReceivingProcess<'a> {
    pub(super) job: &'a JobFile,
    pub(super) plan: &'a Plan,
    /// The memory that the worker may take, where it is known.
    pub(super) memory: Option<ByteSize>,
    pub(super) device: &'a ComputeDevice,
    pub(super) measured: &'a WorkerMeasurements,
    pub(super) clock: &'a Clock,
    pub(super) progress: &'a Progress,
}

impl WorkerProcess for ReceivingProcess<'_> {
    type Error = Error;
    type Accepted = Inputs;

    fn model_folder(&self, extent: Extent) -> Result<PathBuf> {
        self.job.model_folder(extent)
    }

    fn accept(&self, received: &ReceivedJob) -> Result<Inputs> {
        let inputs = inputs(received, self.plan);
        if let Some(memory) = self.memory {
            fit::check(self.job, &inputs.described, &inputs.plan, 1, memory)?;
        }
        if let Some(available) = available_memory(self.device)? {
            OnDevice::new(self.job, &inputs.described, &inputs.plan).once_open().check(1, available)?;
        }
        Ok(inputs)
    }

    fn encoding(&self, prompts: usize) -> impl ShowEncoding {
        EncodingPhase::new(prompts, self.progress)
    }

    fn describe<'a>(&'a self, inputs: &'a Inputs) -> impl Describe + 'a {
        let spec = &self.job.spec;
        let planned_memory = inputs.predicted_peak(self.job, 1);
        self.measured.open(planned_memory.0, spec.hessian.damping);
        OutputDocuments::new(spec, inputs, (self.device, planned_memory), self.clock.clone())
    }

    fn unprepared(&self, error: PreparationError) -> Error {
        unprepared(self.job, error)
    }
}

/// The job's inputs on this host: its model, and the prompts from its store.
fn inputs(received: &ReceivedJob, plan: &Plan) -> Inputs {
    let ReceivedJob { model, weights, model_files, record, prompts, kept } = received;
    Inputs {
        described: Described::new(model.clone()),
        weights: weights.clone(),
        prompts: JobPrompts {
            calibration: prompts.calibration.clone(),
            held_out: prompts.held_out.clone(),
            digest: Some(record.prompts.to_string()),
            held_out_digest: None,
            note: None,
        },
        conditioning: None,
        plan: plan.clone(),
        written: false,
        finished: None,
        model_files: model_files.clone(),
        prompt_files: record.prompt_files.clone(),
        kept: kept.clone(),
    }
}

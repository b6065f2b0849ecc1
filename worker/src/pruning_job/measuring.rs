//! What the worker measures that wrote a pipeline, where no process sees all of the job.

use std::ops::Range;
use std::time::Duration;

use obsdiff_engine::calibrate::Denoised;
use obsdiff_engine::export::{HeldOutError, Measured, PruningRecord};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::Pruner;
use obsdiff_files::OnProgress;

use super::{PruningJob, peak_resident};
use crate::device::WorkError;
use crate::preparation::compute_type;

/// What is needed to measure an export.
pub struct Measuring<'a> {
    /// The ids of the prompts that were held out.
    pub held_out: Range<u32>,
    /// The time since the process began.
    pub clock: &'a (dyn Fn() -> Duration + Sync),
}

impl PruningJob<'_> {
    /// Adds to the record of the written pipeline how far it is from the dense model, and what the process took. The pruner's model makes
    /// room for the dense and then for the written one, which are computed where it was.
    ///
    /// # Errors
    /// When a model cannot be read or fails, or the record cannot be written.
    pub(super) fn measure(
        &self,
        measuring: &Measuring<'_>,
        mut record: PruningRecord,
        expected_velocity_error: Option<f64>,
        pruner: &mut Pruner,
        on_progress: &OnProgress,
    ) -> Result<(), WorkError> {
        let _span = tracing::info_span!("held-out prompts").entered();
        let models = if measuring.held_out.is_empty() {
            None
        } else {
            pruner.drop_model()?;
            let dense = self.latents(&self.model.pipeline, &measuring.held_out, on_progress)?;
            let written = self.output.open_written(self.model.pipeline.path())?;
            let pruned = self.latents(&written.pipeline, &measuring.held_out, on_progress)?;
            Some([dense, pruned])
        };
        let error = |[dense, pruned]: &[Denoised; 2]| {
            HeldOutError::between(&dense.latents, &pruned.latents)?.along(&dense.steps, &pruned.steps)
        };
        let held_out = models.as_ref().map(error).transpose()?;
        record.measured = Some(Measured {
            held_out,
            baseline: None,
            expected_velocity_error,
            seconds: (measuring.clock)().as_secs_f64(),
            other_seconds: 0.0,
            phases: Vec::new(),
            peak_memory_bytes: peak_resident().map(|peak| peak.0),
            // The coordinator adds it.
            course: None,
        });
        let models = models.as_ref().map(<[_; 2]>::each_ref);
        let documents = self.describe.measured(&mut record, models);
        self.output.replace(&record, &documents, self.disk)?;
        Ok(())
    }

    /// What a pipeline's transformer makes of prompts, in batches as the job calibrates. The transformer is gone afterwards.
    fn latents(
        &self,
        pipeline: &PipelineFolder,
        prompts: &Range<u32>,
        on_progress: &OnProgress,
    ) -> Result<Denoised, WorkError> {
        let (weights, dtype) = (pipeline.transformer_weights()?, compute_type(self.spec.model.dtype));
        let mut model = pipeline.transformer_config().load(&weights, dtype)?;
        model.move_blocks(&self.device);
        let batch = if self.plan.shards.is_empty() {
            1
        } else {
            prompts.start.clamp(1, self.spec.calibration.shard_size.max(1))
        };
        let denoised = self.trajectories.denoised(&*model, prompts.clone(), batch as usize, &mut |_| {
            on_progress();
            Ok(())
        });
        Ok(denoised?)
    }
}

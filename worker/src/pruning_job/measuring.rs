//! What the worker measures that wrote a pipeline, where no process sees all of the job.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use obsdiff_engine::export::{HeldOutError, Measured, PruningRecord};
use obsdiff_engine::pipeline::PipelineFolder;
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
    /// Adds to the record of the written pipeline how far it is from the dense model, and what the process took.
    ///
    /// # Errors
    /// When a model cannot be read or fails, or the record cannot be written.
    pub(super) fn measure(
        &self,
        measuring: &Measuring<'_>,
        mut record: PruningRecord,
        expected_velocity_error: Option<f64>,
        on_progress: &OnProgress,
    ) -> Result<(), WorkError> {
        let _span = tracing::info_span!("held-out prompts").entered();
        let written = Path::new(&self.spec.output.path);
        let held_out = if measuring.held_out.is_empty() {
            None
        } else {
            let dense = self.latents(&self.model.pipeline, &measuring.held_out, on_progress)?;
            let pruned = PipelineFolder::open_without_text(written)?;
            let pruned = self.latents(&pruned, &measuring.held_out, on_progress)?;
            Some(HeldOutError::between(&dense, &pruned)?)
        };
        record.measured = Some(Measured {
            held_out,
            baseline: None,
            expected_velocity_error,
            seconds: (measuring.clock)().as_secs_f64(),
            other_seconds: 0.0,
            phases: Vec::new(),
            peak_memory_bytes: peak_resident().map(|peak| peak.0),
        });
        Ok(record.replace(written, self.disk)?)
    }

    /// Final latents of a pipeline's transformer, in batches as the job calibrates. The transformer is gone afterwards.
    fn latents(
        &self,
        pipeline: &PipelineFolder,
        prompts: &Range<u32>,
        on_progress: &OnProgress,
    ) -> Result<Tensor, WorkError> {
        let (weights, dtype) = (pipeline.transformer_weights()?, compute_type(self.spec.model.dtype));
        let model = pipeline.transformer_config().load(&weights, dtype, &Device::Cpu)?;
        let batch = if self.plan.shards.is_empty() {
            1
        } else {
            prompts.start.clamp(1, self.spec.calibration.shard_size.max(1))
        };
        let starts = prompts.clone().step_by(batch as usize);
        let latents = starts.map(|start| {
            let batch = start..prompts.end.min(start.saturating_add(batch));
            self.trajectories.final_latents(&*model, batch, &mut || {
                on_progress();
                Ok(())
            })
        });
        let latents = latents.collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&latents, 0).map_err(obsdiff_engine::Error::from)?)
    }
}

//! Prompts are encoded and weights loaded, once for each worker's process.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use obsdiff_engine::Result;
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_proto::JobSpec;

use super::{JobModel, compute_type};

/// Encodes prompts of a job, and the empty one that guidance leads away from. Those that memory is not to hold go to a file in `folder`.
/// `on_encoded` is told how much is done, and of how much.
///
/// # Errors
/// When the encoders cannot be used.
pub fn encode(
    spec: &JobSpec,
    model: &JobModel,
    prompts: &[&str],
    folder: &Path,
    on_encoded: &mut dyn FnMut(u64, u64),
) -> Result<Encoded> {
    let tokens = spec.calibration.max_sequence_length as usize;
    let encoders = model.pipeline.text_encoders(tokens, &Device::Cpu)?;
    Encoded::new(&encoders, prompts, (compute_type(spec.model.dtype), &Device::Cpu), folder, on_encoded)
}

/// Loads a job's model, and plans the trajectories of its encoded prompts.
///
/// # Errors
/// When the weights or the scheduler cannot be used.
pub fn load(
    spec: &JobSpec,
    model: &JobModel,
    weights: &Weights,
    encoded: Encoded,
) -> Result<(Box<dyn DiffusionModel>, Arc<Trajectories>)> {
    let calibration = &spec.calibration;
    let transformer = {
        let _span = tracing::info_span!("load weights").entered();
        model.config.load(weights, compute_type(spec.model.dtype), &Device::Cpu)?
    };
    let schedule = model.pipeline.schedule(calibration.steps as usize, model.size.tokens)?;
    let trajectories = Trajectories::new(schedule, model.guidance, calibration.seed, model.size, encoded);
    Ok((transformer, Arc::new(trajectories)))
}

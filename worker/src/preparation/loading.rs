//! Loading the weights, once in each worker's process.

use std::sync::Arc;

use obsdiff_engine::Result;
use obsdiff_engine::calibrate::{Conditionings, Trajectories};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_proto::JobSpec;

use super::{JobModel, compute_type};

/// Loads a job's model, and plans the trajectories of its prompts.
///
/// # Errors
/// When the weights or the scheduler cannot be used.
pub fn load(
    spec: &JobSpec,
    model: &JobModel,
    weights: &Weights,
    conditionings: impl Conditionings + 'static,
) -> Result<(Box<dyn DiffusionModel>, Arc<Trajectories>)> {
    let calibration = &spec.calibration;
    let transformer = {
        let _span = tracing::info_span!("load weights").entered();
        model.config.load(weights, compute_type(spec.model.dtype))?
    };
    let schedule = model.pipeline.schedule(calibration.steps as usize, model.size.tokens)?;
    let trajectories =
        Trajectories::new(schedule, model.guidance, calibration.seed, model.size, conditionings);
    Ok((transformer, Arc::new(trajectories)))
}

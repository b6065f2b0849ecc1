//! The size of a model after structured pruning.

use candle_core::Tensor;
use obsdiff_engine::export::{ModelSizes, Shrink};
use obsdiff_engine::pruner::{kept_parts, selections};
use obsdiff_proto::{LinearId, OutputLayout};

use super::PruningJob;
use crate::device::{PrunedTensors, WorkError};

/// The model's sizes before and after, and how the export makes it smaller if it does.
pub(super) fn shrunk(
    work: &PruningJob<'_>,
    pruned: &PrunedTensors,
) -> Result<(Option<ModelSizes>, Option<Shrink>), WorkError> {
    let model = work.model;
    let inventory = &model.inventory;
    let kept = kept_parts(inventory, work.spec.sparsity.align, &mut |id: LinearId| {
        let linear = inventory.linear(id);
        let name = format!("{}.weight", linear.name);
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        match pruned.tensor(&name)? {
            Some(tensor) => Ok(values(&tensor).map_err(obsdiff_engine::Error::from)?),
            None => {
                let shape = [linear.rows, inventory.site(linear.site).width];
                Ok::<_, WorkError>(work.weights.rows(&name, shape, 0..linear.rows)?)
            }
        }
    })?;
    let config = model.config.shrunk(&kept.iter().map(Vec::len).collect::<Vec<_>>());
    let sizes = ModelSizes {
        parameters: [inventory.parameters, config.inventory().parameters],
        forward_flops: [&*model.config, &*config].map(|config| model.forward_flops(config).total()),
    };
    if work.spec.output.layout == OutputLayout::Masked {
        return Ok((Some(sizes), None));
    }
    let source = model.pipeline.path().join("transformer");
    let files = config.shrunk_files(&source)?;
    Ok((Some(sizes), Some(Shrink { kept: selections(inventory, &kept), files })))
}

//! Pieces of an encoder, read from the files of weights when they are needed.

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use crate::checkpoint::Weights;
use crate::model::ops::{TextLinear, TextOps};
use crate::{Error, HOST, Result};

/// The layers of an encoder: each is read when it is needed, and then kept where all are to be kept.
#[derive(Debug)]
pub(super) struct Layers<L> {
    count: usize,
    /// None where no layer is kept.
    kept: Vec<OnceLock<Arc<L>>>,
}

impl<L> Layers<L> {
    /// So many layers, each of them read whenever it is needed.
    pub(super) const fn new(count: usize) -> Self {
        Self { count, kept: Vec::new() }
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Keeps each from when it is read.
    pub(super) fn keep(&mut self) {
        self.kept.resize_with(self.count, OnceLock::new);
    }

    /// A layer, which is read unless it is kept.
    pub(super) fn get(&self, index: usize, read: impl FnOnce() -> Result<L>) -> Result<Arc<L>> {
        let place = self.kept.get(index);
        if let Some(kept) = place.and_then(OnceLock::get) {
            return Ok(kept.clone());
        }
        let layer = Arc::new(read()?);
        Ok(place.map_or(layer.clone(), |place| place.get_or_init(|| layer).clone()))
    }
}

/// Reads `name.weight`, `outputs x inputs`, and, `with_bias`, `name.bias`.
pub(super) fn read_linear(
    ops: &dyn TextOps,
    weights: &Weights,
    name: &str,
    shape: [usize; 2],
    with_bias: bool,
) -> Result<TextLinear> {
    let bias = || ops.vector(weights, &format!("{name}.bias"), shape[0]);
    Ok(TextLinear {
        weight: ops.weight(weights, &format!("{name}.weight"), shape)?,
        bias: with_bias.then(bias).transpose()?,
    })
}

/// The rows `ids` of an embedding table of shape `[count, width]`, as `ids x width` in f32. Only these rows are read from the file.
pub(super) fn rows(weights: &Weights, name: &str, [count, width]: [usize; 2], ids: &[u32]) -> Result<Tensor> {
    let mut gathered = Vec::with_capacity(ids.len() * width);
    for &id in ids {
        let id = id as usize;
        if id >= count {
            let problem = format!(
                "tensor `{name}` has {count} rows, but the tokenizer gives id {id}: they do not belong together"
            );
            return Err(Error::content(weights.folder(), problem));
        }
        gathered.extend(weights.rows(name, [count, width], id..id + 1)?);
    }
    Ok(Tensor::from_vec(gathered, (ids.len(), width), &HOST)?)
}

//! Tensors of a model that blocks read.

use std::ops::Deref;
#[cfg(feature = "cuda")]
use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

#[cfg(feature = "cuda")]
use crate::Result;
#[cfg(feature = "cuda")]
use crate::model::Matrix;

/// A tensor of a model, in the host's memory. A device that computes blocks keeps its own copy with it, which clones share.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    tensor: Tensor,
    #[cfg(feature = "cuda")]
    on_device: Arc<OnceLock<Matrix>>,
}

#[cfg(feature = "cuda")]
impl Parameter {
    /// The device's copy: what `copy` made at the first call. A model and its clones compute on one device.
    pub(crate) fn on_device(&self, copy: impl FnOnce(&Tensor) -> Result<Matrix>) -> Result<&Matrix> {
        if let Some(matrix) = self.on_device.get() {
            return Ok(matrix);
        }
        let matrix = copy(&self.tensor)?;
        Ok(self.on_device.get_or_init(|| matrix))
    }
}

impl Deref for Parameter {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

impl From<Tensor> for Parameter {
    fn from(tensor: Tensor) -> Self {
        Self {
            tensor,
            #[cfg(feature = "cuda")]
            on_device: Arc::default(),
        }
    }
}

/// One `nn.Linear`.
#[derive(Clone, Debug)]
pub(crate) struct LinearTensors {
    /// `out x n`.
    pub(crate) weight: Parameter,
    /// `out`.
    pub(crate) bias: Parameter,
}

impl LinearTensors {
    pub(crate) fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight: weight.into(), bias: bias.into() }
    }
}

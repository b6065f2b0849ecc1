//! Tensors of a model that blocks read.

use std::ops::Deref;

use candle_core::Tensor;

/// A tensor of a model. It is always in the host's memory.
#[derive(Clone, Debug)]
pub(crate) struct Parameter(Tensor);

impl Deref for Parameter {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

impl From<Tensor> for Parameter {
    fn from(tensor: Tensor) -> Self {
        Self(tensor)
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

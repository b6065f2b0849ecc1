//! A forward call's inputs, brought to where the model computes.

use candle_core::{DType, Tensor, TensorId};

use super::Matrix;
use super::kept::Kept;
use super::ops::ModelOps;
use crate::Result;

/// The conditioning that the last call brought. On a device of its own it stays there, because every step of a trajectory brings the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptInputs {
    text: Kept<TensorId, Matrix>,
    pooled: Kept<TensorId, Matrix>,
}

/// Brings tensors of the host to where a model computes, in its type.
#[derive(Clone, Copy)]
pub(crate) struct Importer<'a> {
    pub(crate) ops: &'a ModelOps,
    pub(crate) dtype: DType,
    pub(crate) kept: &'a KeptInputs,
}

impl Importer<'_> {
    /// In the model's type, on the host.
    pub(crate) fn typed(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.to_dtype(self.dtype)?.contiguous()?)
    }

    /// `batch x tokens x features` to `(batch * tokens) x features`.
    pub(crate) fn text(self, text: &Tensor) -> Result<Matrix> {
        self.kept(&self.kept.text, text, |text| Ok(text.flatten(0, 1)?))
    }

    /// `batch x features`.
    pub(crate) fn pooled(self, pooled: &Tensor) -> Result<Matrix> {
        self.kept(&self.kept.pooled, pooled, Ok)
    }

    fn kept(
        self,
        kept: &Kept<TensorId, Matrix>,
        tensor: &Tensor,
        shaped: impl FnOnce(Tensor) -> Result<Tensor>,
    ) -> Result<Matrix> {
        let import = || self.ops.device().import(shaped(self.typed(tensor)?)?.into());
        if self.ops.is_elsewhere() { kept.get(tensor.id(), import) } else { import() }
    }
}

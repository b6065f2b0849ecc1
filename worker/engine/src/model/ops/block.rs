//! The operations of blocks as a device offers them: the processor is one, and each other device has its own.

use std::fmt;

use candle_core::{DType, Tensor};

use super::{CpuOps, LinearTensors, Modulation, Parameter, PictureOps, Projected, Rotary, TextOps};
use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::CudaOps;
use crate::device::ComputeDevice;
use crate::model::Matrix;

/// What blocks are computed with. Matrices are the device's own, except where [`BlockOps::import`] takes one from the host.
pub(crate) trait BlockOps: fmt::Debug + Send + Sync {
    /// Brings what is computed on the host to the device.
    fn import(&self, matrix: Matrix) -> Result<Matrix>;

    /// Whether work is spread over threads of the host.
    fn spreads_work(&self) -> bool;

    /// Takes back an activation that nobody reads any more, for a later operation to use its memory.
    fn give(&self, activation: Matrix) -> Result<()>;

    /// `x W^T + b`: `rows x n` to `rows x out`.
    fn linear(&self, x: &Matrix, layer: &LinearTensors) -> Result<Matrix>;

    /// [`Self::linear`], then GELU by its tanh approximation.
    fn linear_gelu(&self, x: &Matrix, layer: &LinearTensors) -> Result<Matrix>;

    /// x / (1 + e^-x) of every number. The matrix is nobody else's.
    fn silu(&self, x: Matrix) -> Result<Matrix>;

    /// A matrix that is added to every so many rows of another: `items * rows x width` and `rows x width`. The first is nobody else's.
    fn add_rows(&self, x: Matrix, added: &Matrix) -> Result<Matrix>;

    /// The last `count` tokens of each of `batch` items.
    fn last_tokens(&self, tokens: &Matrix, batch: usize, count: usize) -> Result<Matrix>;

    /// [`Self::linear`], then every head divided by its root mean square and multiplied by `norm`, where there is one.
    fn linear_head_norm(&self, x: &Matrix, layer: &LinearTensors, norm: Option<&Parameter>)
    -> Result<Matrix>;

    /// `residual + gate * (x W^T + b)` with the gate of each row's batch item. The residual is nobody else's.
    fn add_gated_linear(
        &self,
        residual: Matrix,
        x: &Matrix,
        layer: &LinearTensors,
        by: &Modulation<Matrix>,
        gate: usize,
    ) -> Result<Matrix>;

    /// Layer norm without affine parameters, times 1 + scale, plus shift, with the scale and shift of each row's batch item.
    fn norm_modulate(
        &self,
        x: &Matrix,
        by: &Modulation<Matrix>,
        shift: usize,
        scale: usize,
    ) -> Result<Matrix>;

    /// The features of two matrices side by side: `rows x a` and `rows x b` to `rows x (a + b)`.
    fn joined(&self, left: &Matrix, right: &Matrix) -> Result<Matrix>;

    /// The tokens of two streams as one: of each of `batch` items first those of `first`, then those of `second`.
    fn sequence(&self, first: &Matrix, second: &Matrix, batch: usize) -> Result<Matrix>;

    /// Every number brought into `-limit..=limit`. The matrix is nobody else's.
    fn limited(&self, x: Matrix, limit: f32) -> Result<Matrix>;

    /// Turns every head of the last tokens of each batch item by the tokens' angles. The heads are nobody else's.
    fn rotate(&self, x: Matrix, by: &Rotary<Matrix>, batch: usize) -> Result<Matrix>;

    /// Softmax attention of the streams' queries on the keys of all streams together, per batch item and head; one output
    /// (`rows x width`) for each stream with queries.
    fn attention(&self, streams: &[Projected<'_, Matrix>], batch: usize, heads: usize)
    -> Result<Vec<Matrix>>;
}

impl dyn BlockOps + '_ {
    /// Does several operations without leaving the threads that do them in between.
    pub(crate) fn section<A: Send>(&self, work: impl FnOnce() -> A + Send) -> A {
        if self.spreads_work() { rayon::join(work, || ()).0 } else { work() }
    }

    /// Does two operations at the same time, where threads allow it. Neither result depends on the other's progress.
    pub(crate) fn both<A: Send, B: Send>(
        &self,
        first: impl FnOnce() -> Result<A> + Send,
        second: impl FnOnce() -> Result<B> + Send,
    ) -> Result<(A, B)> {
        let (a, b) = if self.spreads_work() { rayon::join(first, second) } else { (first(), second()) };
        Ok((a?, b?))
    }
}

/// What a model computes with, on one device: the host, until [`Self::move_blocks`]. A clone has buffers of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelOps {
    host: CpuOps,
    #[cfg(feature = "cuda")]
    cuda: Option<CudaOps>,
}

impl ModelOps {
    /// Blocks that compute in `dtype` (f32, bf16 or f16) do so on a GPU from now on.
    #[cfg(feature = "cuda")]
    pub(crate) fn move_blocks(&mut self, device: &ComputeDevice, dtype: DType) {
        self.cuda = match device {
            ComputeDevice::Cpu => None,
            ComputeDevice::Cuda(device) => CudaOps::new(device, dtype),
        };
    }

    /// Blocks stay on the host: this build knows no other device.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn move_blocks(&mut self, _: &ComputeDevice, _: DType) {}

    /// Where the model computes: all but the latents that come in and the velocity that goes out is there.
    pub(crate) fn device(&self) -> &dyn BlockOps {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return cuda;
        }
        &self.host
    }

    /// What text encoders are computed with.
    pub(crate) fn text(&self) -> &dyn TextOps {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return cuda;
        }
        &self.host
    }

    /// What decoders of pictures are computed with.
    pub(crate) fn picture(&self) -> &dyn PictureOps {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return cuda;
        }
        &self.host
    }

    /// Whether what the host computes has to be brought to where the model computes.
    pub(crate) fn is_elsewhere(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.cuda.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Floating-point operations of all matrix products so far, a multiplication and an addition counted as two.
    pub(crate) fn counted(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return self.host.counted() + cuda.counted();
        }
        self.host.counted()
    }
}

impl BlockOps for CpuOps {
    fn import(&self, matrix: Matrix) -> Result<Matrix> {
        Ok(matrix)
    }

    fn spreads_work(&self) -> bool {
        true
    }

    fn give(&self, activation: Matrix) -> Result<()> {
        Self::give(self, activation.into_host()?)
    }

    fn linear(&self, x: &Matrix, layer: &LinearTensors) -> Result<Matrix> {
        Ok(Self::linear(self, x.host()?, layer)?.into())
    }

    fn linear_gelu(&self, x: &Matrix, layer: &LinearTensors) -> Result<Matrix> {
        Ok(Self::linear_gelu(self, x.host()?, layer)?.into())
    }

    fn silu(&self, x: Matrix) -> Result<Matrix> {
        Ok(x.host()?.silu()?.into())
    }

    fn add_rows(&self, x: Matrix, added: &Matrix) -> Result<Matrix> {
        let (x, added) = (x.host()?, added.host()?);
        if x.dims() == added.dims() {
            return Ok((x + added)?.into());
        }
        let rows = added.dim(0)?.max(1);
        let items = x.reshape((x.dim(0)? / rows, rows, ()))?;
        Ok(items.broadcast_add(&added.unsqueeze(0)?)?.flatten(0, 1)?.into())
    }

    fn last_tokens(&self, tokens: &Matrix, batch: usize, count: usize) -> Result<Matrix> {
        let tokens = tokens.host()?;
        let tokens = tokens.reshape((batch, tokens.dim(0)? / batch.max(1), ()))?;
        let first = tokens.dim(1)?.saturating_sub(count);
        Ok(tokens.narrow(1, first, count)?.flatten(0, 1)?.contiguous()?.into())
    }

    fn linear_head_norm(
        &self,
        x: &Matrix,
        layer: &LinearTensors,
        norm: Option<&Parameter>,
    ) -> Result<Matrix> {
        Ok(Self::linear_head_norm(self, x.host()?, layer, norm.map(|norm| &**norm))?.into())
    }

    fn add_gated_linear(
        &self,
        residual: Matrix,
        x: &Matrix,
        layer: &LinearTensors,
        by: &Modulation<Matrix>,
        gate: usize,
    ) -> Result<Matrix> {
        let residual = residual.into_host()?;
        Ok(Self::add_gated_linear(self, residual, x.host()?, layer, &by.host()?, gate)?.into())
    }

    fn norm_modulate(
        &self,
        x: &Matrix,
        by: &Modulation<Matrix>,
        shift: usize,
        scale: usize,
    ) -> Result<Matrix> {
        Ok(Self::norm_modulate(self, x.host()?, &by.host()?, shift, scale)?.into())
    }

    fn joined(&self, left: &Matrix, right: &Matrix) -> Result<Matrix> {
        Ok(Self::joined(self, left.host()?, right.host()?)?.into())
    }

    fn sequence(&self, first: &Matrix, second: &Matrix, batch: usize) -> Result<Matrix> {
        let items = |tokens: &Tensor| tokens.reshape((batch, tokens.dim(0)? / batch.max(1), ()));
        Ok(Tensor::cat(&[items(first.host()?)?, items(second.host()?)?], 1)?.flatten(0, 1)?.into())
    }

    fn limited(&self, x: Matrix, limit: f32) -> Result<Matrix> {
        Ok(x.host()?.clamp(-limit, limit)?.into())
    }

    fn rotate(&self, x: Matrix, by: &Rotary<Matrix>, batch: usize) -> Result<Matrix> {
        Ok(Self::rotate(self, x.into_host()?, &by.host()?, batch)?.into())
    }

    fn attention(
        &self,
        streams: &[Projected<'_, Matrix>],
        batch: usize,
        heads: usize,
    ) -> Result<Vec<Matrix>> {
        let streams = streams.iter().map(Projected::host).collect::<Result<Vec<_>>>()?;
        let attended = Self::attention(self, &streams, batch, heads)?;
        Ok(attended.into_iter().map(Matrix::from).collect())
    }
}

impl Modulation<Matrix> {
    fn host(&self) -> Result<Modulation> {
        Ok(Modulation { values: self.values.host()?.clone(), width: self.width })
    }
}

impl Rotary<Matrix> {
    fn host(&self) -> Result<Rotary> {
        Ok(Rotary { cosines: self.cosines.host()?.clone(), sines: self.sines.host()?.clone() })
    }
}

impl<'a> Projected<'a, Matrix> {
    fn host(&self) -> Result<Projected<'a>> {
        let queries = self.queries.map(Matrix::host).transpose()?;
        Ok(Projected { queries, keys: self.keys.host()?, values: self.values.host()? })
    }
}

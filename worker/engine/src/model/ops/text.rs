//! The operations of text encoders as a device offers them. A prompt is a matrix `tokens x features`, in f32 where it is the stream of tokens or
//! the bias of an attention. A device may take what goes into its products in a smaller type.

use std::fmt;

use candle_core::{DType, Tensor};

use super::CpuOps;
use crate::Result;
use crate::checkpoint::Weights;
use crate::model::Matrix;

/// An activation function of a text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationFunction {
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// x * Phi(x), by the error function.
    Gelu,
    /// The same by a hyperbolic tangent.
    GeluTanh,
    Relu,
    Silu,
}

/// `y = x W^T + b`.
#[derive(Clone, Debug)]
pub(crate) struct TextLinear {
    /// `outputs x inputs`, as [`TextOps::weight`] gives it.
    pub(crate) weight: Matrix,
    /// `outputs`, as [`TextOps::vector`] gives it.
    pub(crate) bias: Option<Matrix>,
}

/// Scales each row to a variance of 1 about its mean where there is a bias, and otherwise to a root mean square of 1; then by a weight.
#[derive(Clone, Debug)]
pub(crate) struct TextNorm {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Matrix>,
    /// Added to a variance or a mean square before its root is taken.
    pub(crate) epsilon: f32,
}

/// In which type a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrittenIn {
    /// That of a product's inputs.
    ProductType,
    F32,
}

/// What text encoders are computed with. Matrices are the device's own.
pub(crate) trait TextOps: fmt::Debug {
    /// Brings a matrix of f32 to the device.
    fn import_rows(&self, matrix: Tensor) -> Result<Matrix>;

    /// Brings what is made of a prompt, in f32, to the host.
    fn export(&self, matrix: &Matrix) -> Result<Tensor>;

    /// Reads a matrix `rows x columns` from its file, as products take it.
    fn weight(&self, weights: &Weights, name: &str, shape: [usize; 2]) -> Result<Matrix>;

    /// Reads a vector from its file, in f32.
    fn vector(&self, weights: &Weights, name: &str, length: usize) -> Result<Matrix>;

    fn norm(&self, x: &Matrix, by: &TextNorm, written: WrittenIn) -> Result<Matrix>;

    fn linear(&self, x: &Matrix, layer: &TextLinear, written: WrittenIn) -> Result<Matrix>;

    /// `residual + x W^T + b`. The residual is nobody else's.
    fn add_linear(&self, residual: Matrix, x: &Matrix, layer: &TextLinear) -> Result<Matrix>;

    /// The hidden layer of a feed-forward network: a function of one linear, times another one where there is a gate.
    fn activated(
        &self,
        x: &Matrix,
        up: &TextLinear,
        gate: Option<&TextLinear>,
        function: ActivationFunction,
    ) -> Result<Matrix>;

    /// Softmax(scale q k^T + bias) v with `heads` heads side by side in q, k and v. The bias is `heads * tokens x tokens`, or `tokens x tokens`
    /// the same for all heads. A token whose bias is minus infinity gets no share.
    fn biased_attention(
        &self,
        projected: [&Matrix; 3],
        bias: &Matrix,
        heads: usize,
        scale: f64,
    ) -> Result<Matrix>;

    /// One row, as a matrix.
    fn row(&self, x: &Matrix, row: usize) -> Result<Matrix>;
}

impl ActivationFunction {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Relu => x.relu()?,
            Self::Silu => x.silu()?,
        })
    }
}

impl TextLinear {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.host()?.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias.host()?)?,
            None => y,
        })
    }
}

/// All of it in f32, in candle's operations.
impl TextOps for CpuOps {
    fn import_rows(&self, matrix: Tensor) -> Result<Matrix> {
        Ok(matrix.into())
    }

    fn export(&self, matrix: &Matrix) -> Result<Tensor> {
        Ok(matrix.host()?.clone())
    }

    fn weight(&self, weights: &Weights, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Ok(weights.tensor(name, &shape, DType::F32)?.into())
    }

    fn vector(&self, weights: &Weights, name: &str, length: usize) -> Result<Matrix> {
        Ok(weights.tensor(name, &[length], DType::F32)?.into())
    }

    fn norm(&self, x: &Matrix, by: &TextNorm, _: WrittenIn) -> Result<Matrix> {
        let (x, weight) = (x.host()?.contiguous()?, by.weight.host()?);
        let normed = match &by.bias {
            Some(bias) => candle_nn::ops::layer_norm(&x, weight, bias.host()?, by.epsilon)?,
            None => candle_nn::ops::rms_norm(&x, weight, by.epsilon)?,
        };
        Ok(normed.into())
    }

    fn linear(&self, x: &Matrix, layer: &TextLinear, _: WrittenIn) -> Result<Matrix> {
        Ok(layer.forward(x.host()?)?.into())
    }

    fn add_linear(&self, residual: Matrix, x: &Matrix, layer: &TextLinear) -> Result<Matrix> {
        Ok((residual.into_host()? + layer.forward(x.host()?)?)?.into())
    }

    fn activated(
        &self,
        x: &Matrix,
        up: &TextLinear,
        gate: Option<&TextLinear>,
        function: ActivationFunction,
    ) -> Result<Matrix> {
        let x = x.host()?;
        let hidden = function.apply(&up.forward(x)?)?;
        match gate {
            Some(gate) => Ok((hidden * gate.forward(x)?)?.into()),
            None => Ok(hidden.into()),
        }
    }

    fn biased_attention(
        &self,
        [q, k, v]: [&Matrix; 3],
        bias: &Matrix,
        heads: usize,
        scale: f64,
    ) -> Result<Matrix> {
        let (q, k, v, bias) = (q.host()?, k.host()?, v.host()?, bias.host()?);
        let (tokens, width) = q.dims2()?;
        let split =
            |x: &Tensor| x.reshape((tokens, heads, width / heads.max(1)))?.transpose(0, 1)?.contiguous();
        let q = if scale == 1.0 { q.clone() } else { (q * scale)? };
        let bias = bias.reshape((bias.dim(0)? / tokens.max(1), tokens, tokens))?;
        let scores = split(&q)?.matmul(&split(k)?.transpose(1, 2)?)?.broadcast_add(&bias)?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&split(v)?)?;
        Ok(mixed.transpose(0, 1)?.reshape((tokens, width))?.into())
    }

    fn row(&self, x: &Matrix, row: usize) -> Result<Matrix> {
        Ok(x.host()?.narrow(0, row, 1)?.into())
    }
}

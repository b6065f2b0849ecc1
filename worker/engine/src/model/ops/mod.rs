//! The operations a transformer block is made of. Activations are matrices: `rows x features`, the tokens of every batch item
//! after one another.

mod composed;

use candle_core::Tensor;

use crate::Result;

/// One `nn.Linear`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `rows x n`.
    pub(crate) weight: Tensor,
    /// `rows`.
    pub(crate) bias: Tensor,
}

/// Shifts, scales and gates of one stream of one block: `batch x (parts * width)`, the parts side by side.
#[derive(Clone, Debug)]
pub(crate) struct Modulation {
    pub(crate) values: Tensor,
    pub(crate) width: usize,
}

/// Queries, keys and values of one token stream, each `rows x width` with the heads side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projected<'a> {
    /// None where nobody reads what this stream would attend to.
    pub(crate) queries: Option<&'a Tensor>,
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
}

/// Added to variances and mean squares before their root is taken, as diffusers has it.
pub(crate) const EPSILON: f64 = 1e-6;

/// `x W^T + b`: `rows x n` to `rows x out`.
pub(crate) fn linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    Ok(composed::linear(x, layer)?)
}

/// [`linear`], then GELU by its tanh approximation.
pub(crate) fn linear_gelu(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    Ok(composed::linear(x, layer)?.gelu()?)
}

/// [`linear`], then every head divided by its root mean square and multiplied by `norm`, where there is one.
pub(crate) fn linear_head_norm(x: &Tensor, layer: &Linear, norm: Option<&Tensor>) -> Result<Tensor> {
    let y = composed::linear(x, layer)?;
    match norm {
        Some(norm) => Ok(composed::head_norm(&y, norm)?),
        None => Ok(y),
    }
}

/// `residual + gate * (x W^T + b)` with the gate of each row's batch item.
pub(crate) fn add_gated_linear(
    residual: Tensor,
    x: &Tensor,
    layer: &Linear,
    by: &Modulation,
    gate: usize,
) -> Result<Tensor> {
    let y = composed::linear(x, layer)?;
    Ok(composed::add_gated(&residual, &y, by, gate)?)
}

/// Layer norm without affine parameters, times 1 + scale, plus shift, with the scale and shift of each row's batch item.
pub(crate) fn norm_modulate(x: &Tensor, by: &Modulation, shift: usize, scale: usize) -> Result<Tensor> {
    Ok(composed::norm_modulate(x, by, shift, scale)?)
}

/// Softmax attention of the streams' queries on the keys of all streams together, per batch item and head; one output
/// (`rows x width`) for each stream with queries.
pub(crate) fn attention(streams: &[Projected<'_>], batch: usize, heads: usize) -> Result<Vec<Tensor>> {
    Ok(composed::attention(streams, batch, heads)?)
}

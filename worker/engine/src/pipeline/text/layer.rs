//! Pieces of an encoder layer, read from the mapped weights when they are needed. All compute in f32.

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::Weights;
use crate::{Error, Result};

/// `y = x W^T + b`, for x of `tokens x inputs`.
pub(super) struct TextLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl TextLinear {
    /// Reads `name.weight`, `outputs x inputs`, and, `with_bias`, `name.bias`.
    pub(super) fn read(
        weights: &Weights,
        name: &str,
        (outputs, inputs): (usize, usize),
        with_bias: bool,
        device: &Device,
    ) -> Result<Self> {
        let weight = weights.tensor(&format!("{name}.weight"), &[outputs, inputs], DType::F32, device)?;
        let bias = if with_bias {
            Some(weights.tensor(&format!("{name}.bias"), &[outputs], DType::F32, device)?)
        } else {
            None
        };
        Ok(Self { weight, bias })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Softmax(q k^T + bias) v with `heads` heads: q, k and v are `tokens x width`, the bias `heads x tokens x tokens` or
/// `1 x tokens x tokens`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
    let (tokens, width) = q.dims2()?;
    let split = |x: &Tensor| x.reshape((tokens, heads, width / heads))?.transpose(0, 1)?.contiguous();
    let scores = split(q)?.matmul(&split(k)?.transpose(1, 2)?)?.broadcast_add(bias)?;
    let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&split(v)?)?;
    Ok(mixed.transpose(0, 1)?.reshape((tokens, width))?)
}

/// The rows `ids` of an embedding table of width `width`, as `ids x width`. Only these rows are read from the mapped file.
pub(super) fn rows(
    weights: &Weights,
    name: &str,
    width: usize,
    ids: &[u32],
    device: &Device,
) -> Result<Tensor> {
    let entry = weights.entry(name)?;
    let &[count, found] = entry.shape() else { return Err(not_a_table(weights, name, entry.shape(), width)) };
    if found != width || count == 0 {
        return Err(not_a_table(weights, name, entry.shape(), width));
    }
    let bytes = weights.bytes(name)?;
    let row = bytes.len() / count;
    let mut gathered = Vec::with_capacity(ids.len() * row);
    for &id in ids {
        let start = id as usize * row;
        let bytes = bytes.get(start..start + row).ok_or_else(|| {
            let problem = format!("tensor `{name}` has {count} rows, but the tokenizer gives id {id}: they do not belong together");
            Error::content(weights.folder(), problem)
        })?;
        gathered.extend_from_slice(bytes);
    }
    let stored = Tensor::from_raw_buffer(&gathered, entry.dtype(), &[ids.len(), width], &Device::Cpu)?;
    Ok(stored.to_dtype(DType::F32)?.to_device(device)?)
}

fn not_a_table(weights: &Weights, name: &str, found: &[usize], width: usize) -> Error {
    let problem =
        format!("tensor `{name}` has shape {found:?}, but the configuration asks for rows of {width}");
    Error::content(weights.folder(), problem)
}

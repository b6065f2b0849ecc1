//! CLIP's text encoder (transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`).

use std::path::Path;

use candle_core::Tensor;

use super::activation::named;
use super::layer::{Layers, read_linear, rows};
use super::{CONFIG, EncodedText, check_finite};
use crate::checkpoint::{Library, Weights};
use crate::device::memory::EncoderSizes;
use crate::model::Matrix;
use crate::model::ops::{ActivationFunction, TextLinear, TextNorm, TextOps, WrittenIn};
use crate::pipeline::keys::Keys;
use crate::{HOST, Result};

/// Where the end of a prompt is found when the configuration still has the id that all of them had once.
const OLD_EOS: u32 = 2;

/// What the names of all its tensors begin with, except for the projection's; in some files they have no beginning.
const PREFIX: &str = "text_model.";
const FINAL_NORM: &str = "final_layer_norm";

/// A CLIP text encoder whose weights are read when they are needed.
#[derive(Debug)]
pub(super) struct ClipEncoder {
    weights: Weights,
    prefix: &'static str,
    width: usize,
    hidden: usize,
    layers: Layers<ClipLayer>,
    heads: usize,
    vocabulary: usize,
    positions: usize,
    /// Width of the projection of its pooled features, where it has one.
    projection: Option<usize>,
    eos: u32,
    epsilon: f32,
    activation: ActivationFunction,
}

impl ClipEncoder {
    /// Reads the configuration, and opens the weights, of an encoder that must take prompts of `length` tokens.
    pub(super) fn open(folder: &Path, length: usize, projected: bool) -> Result<Self> {
        // The configuration of a whole CLIP has that of its text encoder in it.
        let keys = Keys::open(&folder.join(CONFIG))?.within("text_config")?;
        let weights = Weights::open(folder, Library::Transformers)?;
        let encoder = Self {
            prefix: if weights.contains(&format!("{FINAL_NORM}.weight")) { "" } else { PREFIX },
            weights,
            width: keys.size_or("hidden_size", 512)?,
            hidden: keys.size_or("intermediate_size", 2048)?,
            layers: Layers::new(keys.size_or("num_hidden_layers", 12)?),
            heads: keys.size_or("num_attention_heads", 8)?,
            vocabulary: keys.size_or("vocab_size", 49_408)?,
            positions: keys.size_or("max_position_embeddings", 77)?,
            projection: projected.then_some(keys.size_or("projection_dim", 512)?),
            eos: keys.id_or("eos_token_id", 49_407)?,
            epsilon: keys.number_or("layer_norm_eps", 1e-5)? as f32,
            activation: named(&keys, "hidden_act", keys.text_or("hidden_act", "quick_gelu")?)?,
        };
        if !encoder.width.is_multiple_of(encoder.heads) {
            let problem = format!("`hidden_size` is {}: heads must divide it", encoder.width);
            return Err(keys.refuse("num_attention_heads", &problem));
        }
        if encoder.positions < length {
            let problem = format!(
                "the first tokenizer's `model_max_length` is {length}: there is no position for every token"
            );
            return Err(keys.refuse("max_position_embeddings", &problem));
        }
        Ok(encoder)
    }

    /// The weights that it reads, in their files.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Keeps each layer once it is read.
    pub(super) fn keep_layers(&mut self) {
        self.layers.keep();
    }

    /// How many layers it has.
    pub(super) fn depth(&self) -> usize {
        self.layers.count()
    }

    /// Width of the tokens it makes.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Width of the pooled vector it makes.
    pub(super) fn pooled_width(&self) -> usize {
        self.projection.unwrap_or(self.width)
    }

    /// Multiply-adds to encode a prompt.
    pub(super) fn work(&self, tokens: usize) -> u64 {
        self.layers.count() as u64 * self.work_of_a_layer(tokens)
    }

    fn work_of_a_layer(&self, tokens: usize) -> u64 {
        let weights = (4 * self.width + 2 * self.hidden) as u64 * self.width as u64;
        weights * tokens as u64
    }

    /// What it takes to encode so many prompts.
    pub(super) fn sizes(&self, prompts: usize, tokens: usize) -> EncoderSizes {
        EncoderSizes {
            prompts,
            tokens,
            width: self.width,
            attended: self.width,
            heads: self.heads,
            own_biases: false,
            hidden: self.hidden,
            gated: false,
        }
    }

    /// Encodes prompts of equal length, given as ids. `progress` gets the multiply-adds of each layer as it is done.
    pub(super) fn encode(
        &self,
        prompts: &[&[u32]],
        ops: &dyn TextOps,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<EncodedText>> {
        let mut states: Vec<Matrix> =
            prompts.iter().map(|ids| ops.import_rows(self.embed(ids)?)).collect::<Result<_>>()?;
        let tokens = prompts.first().map_or(0, |ids| ids.len());
        let mask = ops.import_rows(causal_mask(tokens)?)?;
        let mut hidden = Vec::new();
        for index in 0..self.layers.count() {
            if index + 1 == self.layers.count() {
                hidden = states.iter().map(|state| ops.export(state)).collect::<Result<_>>()?;
            }
            let layer = self.layers.get(index, || ClipLayer::read(self, index, ops))?;
            let through = |state| {
                let state = layer.forward(ops, state, &mask)?;
                progress(self.work_of_a_layer(tokens));
                Ok(state)
            };
            states = states.into_iter().map(through).collect::<Result<_>>()?;
        }
        let pool = ClipPooling::read(self, ops)?;
        let pooled = prompts.iter().zip(&states).map(|(ids, state)| pool.forward(ops, state, self.end(ids)));
        let mut encoded = Vec::with_capacity(hidden.len());
        for (hidden, pooled) in hidden.into_iter().zip(pooled) {
            let pooled = pooled?;
            check_finite(&hidden, &self.weights)?;
            check_finite(&pooled, &self.weights)?;
            encoded.push(EncodedText { hidden, pooled: Some(pooled) });
        }
        Ok(encoded)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let table = |kind: &str, count, ids| {
            let name = format!("{}embeddings.{kind}_embedding.weight", self.prefix);
            rows(&self.weights, &name, [count, self.width], ids)
        };
        let positions: Vec<u32> = (0..).take(ids.len()).collect();
        Ok((table("token", self.vocabulary, ids)? + table("position", self.positions, &positions)?)?)
    }

    /// The position of a prompt's end token: the first one, or the largest id in encoders whose configuration is too old to
    /// say which one it is. 0 where there is none, as in transformers.
    fn end(&self, ids: &[u32]) -> usize {
        let end = match self.eos {
            OLD_EOS => ids.iter().max().copied().unwrap_or(0),
            eos => eos,
        };
        ids.iter().position(|&id| id == end).unwrap_or(0)
    }

    fn norm(&self, name: &str, ops: &dyn TextOps) -> Result<TextNorm> {
        let read = |part: &str| ops.vector(&self.weights, &format!("{name}.{part}"), self.width);
        Ok(TextNorm { weight: read("weight")?, bias: Some(read("bias")?), epsilon: self.epsilon })
    }
}

/// `tokens x tokens`: minus infinity where a token would look ahead.
fn causal_mask(tokens: usize) -> Result<Tensor> {
    let look = |query, key| if key > query { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..tokens).flat_map(|query| (0..tokens).map(move |key| look(query, key))).collect();
    Ok(Tensor::from_vec(mask, (tokens, tokens), &HOST)?)
}

/// One layer: attention to earlier tokens, then a feed-forward network, each on normed inputs and added to them.
#[derive(Debug)]
struct ClipLayer {
    norm1: TextNorm,
    q: TextLinear,
    k: TextLinear,
    v: TextLinear,
    out: TextLinear,
    norm2: TextNorm,
    fc1: TextLinear,
    fc2: TextLinear,
    activation: ActivationFunction,
    heads: usize,
    scale: f64,
}

impl ClipLayer {
    fn read(encoder: &ClipEncoder, index: usize, ops: &dyn TextOps) -> Result<Self> {
        let prefix = format!("{}encoder.layers.{index}", encoder.prefix);
        let (width, hidden) = (encoder.width, encoder.hidden);
        let linear = |name: &str, outputs, inputs| {
            read_linear(ops, &encoder.weights, &format!("{prefix}.{name}"), [outputs, inputs], true)
        };
        Ok(Self {
            norm1: encoder.norm(&format!("{prefix}.layer_norm1"), ops)?,
            q: linear("self_attn.q_proj", width, width)?,
            k: linear("self_attn.k_proj", width, width)?,
            v: linear("self_attn.v_proj", width, width)?,
            out: linear("self_attn.out_proj", width, width)?,
            norm2: encoder.norm(&format!("{prefix}.layer_norm2"), ops)?,
            fc1: linear("mlp.fc1", hidden, width)?,
            fc2: linear("mlp.fc2", width, hidden)?,
            activation: encoder.activation,
            heads: encoder.heads,
            scale: ((width / encoder.heads) as f64).powf(-0.5),
        })
    }

    fn forward(&self, ops: &dyn TextOps, x: Matrix, mask: &Matrix) -> Result<Matrix> {
        let attended = {
            let normed = ops.norm(&x, &self.norm1, WrittenIn::ProductType)?;
            let project = |layer: &TextLinear| ops.linear(&normed, layer, WrittenIn::ProductType);
            let (q, k, v) = (project(&self.q)?, project(&self.k)?, project(&self.v)?);
            ops.biased_attention([&q, &k, &v], mask, self.heads, self.scale)?
        };
        let x = ops.add_linear(x, &attended, &self.out)?;
        drop(attended);
        let hidden = {
            let normed = ops.norm(&x, &self.norm2, WrittenIn::ProductType)?;
            ops.activated(&normed, &self.fc1, None, self.activation)?
        };
        ops.add_linear(x, &hidden, &self.fc2)
    }
}

/// The last norm, and the projection where there is one.
struct ClipPooling {
    norm: TextNorm,
    projection: Option<TextLinear>,
}

impl ClipPooling {
    fn read(encoder: &ClipEncoder, ops: &dyn TextOps) -> Result<Self> {
        let read =
            |outputs| read_linear(ops, &encoder.weights, "text_projection", [outputs, encoder.width], false);
        Ok(Self {
            norm: encoder.norm(&format!("{}{FINAL_NORM}", encoder.prefix), ops)?,
            projection: encoder.projection.map(read).transpose()?,
        })
    }

    fn forward(&self, ops: &dyn TextOps, state: &Matrix, end: usize) -> Result<Tensor> {
        let end = ops.row(state, end)?;
        let pooled = match &self.projection {
            Some(projection) => {
                let normed = ops.norm(&end, &self.norm, WrittenIn::ProductType)?;
                ops.linear(&normed, projection, WrittenIn::F32)?
            }
            None => ops.norm(&end, &self.norm, WrittenIn::F32)?,
        };
        Ok(ops.export(&pooled)?.squeeze(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_hides_later_tokens() {
        let mask: Vec<Vec<f32>> = causal_mask(3).unwrap().to_vec2().unwrap();
        let hidden = f32::NEG_INFINITY;
        assert_eq!(mask, [[0.0, hidden, hidden], [0.0, 0.0, hidden], [0.0, 0.0, 0.0]]);
    }
}

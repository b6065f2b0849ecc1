//! CLIP's text encoder (transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`).

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::activation::ActivationFunction;
use super::layer::{TextLinear, attention, rows};
use super::{CONFIG, EncodedText, check_finite};
use crate::Result;
use crate::checkpoint::{Library, Weights};
use crate::pipeline::keys::Keys;

/// Where the end of a prompt is found when the configuration still has the id that all of them had once.
const OLD_EOS: u32 = 2;

/// A CLIP text encoder whose weights stay mapped.
#[derive(Debug)]
pub(super) struct ClipEncoder {
    weights: Weights,
    width: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
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
        let keys = Keys::open(&folder.join(CONFIG))?;
        let encoder = Self {
            weights: Weights::open(folder, Library::Transformers)?,
            width: keys.size("hidden_size")?.unwrap_or(512),
            hidden: keys.size("intermediate_size")?.unwrap_or(2048),
            layers: keys.size("num_hidden_layers")?.unwrap_or(12),
            heads: keys.size("num_attention_heads")?.unwrap_or(8),
            positions: keys.size("max_position_embeddings")?.unwrap_or(77),
            projection: projected.then_some(keys.size("projection_dim")?.unwrap_or(512)),
            eos: keys.id("eos_token_id")?.unwrap_or(49_407),
            epsilon: keys.number("layer_norm_eps")?.unwrap_or(1e-5) as f32,
            activation: ActivationFunction::named(
                &keys,
                "hidden_act",
                keys.text("hidden_act")?.unwrap_or("quick_gelu"),
            )?,
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
        self.layers as u64 * self.work_of_a_layer(tokens)
    }

    fn work_of_a_layer(&self, tokens: usize) -> u64 {
        let weights = (4 * self.width + 2 * self.hidden) as u64 * self.width as u64;
        weights * tokens as u64
    }

    /// Encodes prompts of equal length, given as ids. `progress` is told the multiply-adds of each layer as it is done.
    pub(super) fn encode(
        &self,
        prompts: &[&[u32]],
        device: &Device,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<EncodedText>> {
        let mut states: Vec<Tensor> =
            prompts.iter().map(|ids| self.embed(ids, device)).collect::<Result<_>>()?;
        let tokens = prompts.first().map_or(0, |ids| ids.len());
        let mask = causal_mask(tokens, device)?;
        let mut hidden = Vec::new();
        for index in 0..self.layers {
            if index + 1 == self.layers {
                hidden = states.clone();
            }
            let layer = ClipLayer::read(self, index, device)?;
            for state in &mut states {
                *state = layer.forward(state, &mask)?;
                progress(self.work_of_a_layer(tokens));
            }
        }
        let pool = ClipPooling::read(self, device)?;
        let pooled = prompts.iter().zip(&states).map(|(ids, state)| pool.forward(state, self.end(ids)));
        let mut encoded = Vec::with_capacity(hidden.len());
        for (hidden, pooled) in hidden.into_iter().zip(pooled) {
            let pooled = pooled?;
            check_finite(&hidden, &self.weights)?;
            check_finite(&pooled, &self.weights)?;
            encoded.push(EncodedText { hidden, pooled: Some(pooled) });
        }
        Ok(encoded)
    }

    fn embed(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        let tokens =
            rows(&self.weights, "text_model.embeddings.token_embedding.weight", self.width, ids, device)?;
        let positions: Vec<u32> = (0..).take(ids.len()).collect();
        let name = "text_model.embeddings.position_embedding.weight";
        Ok((tokens + rows(&self.weights, name, self.width, &positions, device)?)?)
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

    fn norm(&self, name: &str, device: &Device) -> Result<ClipNorm> {
        let read =
            |part: &str| self.weights.tensor(&format!("{name}.{part}"), &[self.width], DType::F32, device);
        Ok(ClipNorm { weight: read("weight")?, bias: read("bias")?, epsilon: self.epsilon })
    }
}

/// `1 x tokens x tokens`: minus infinity where a token would look ahead.
fn causal_mask(tokens: usize, device: &Device) -> Result<Tensor> {
    let look = |query, key| if key > query { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..tokens).flat_map(|query| (0..tokens).map(move |key| look(query, key))).collect();
    Ok(Tensor::from_vec(mask, (1, tokens, tokens), device)?)
}

struct ClipNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl ClipNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::layer_norm(&x.contiguous()?, &self.weight, &self.bias, self.epsilon)?)
    }
}

/// One layer: attention to earlier tokens, then a feed-forward network, each on normed inputs and added to them.
struct ClipLayer {
    norm1: ClipNorm,
    q: TextLinear,
    k: TextLinear,
    v: TextLinear,
    out: TextLinear,
    norm2: ClipNorm,
    fc1: TextLinear,
    fc2: TextLinear,
    activation: ActivationFunction,
    heads: usize,
    scale: f64,
}

impl ClipLayer {
    fn read(encoder: &ClipEncoder, index: usize, device: &Device) -> Result<Self> {
        let prefix = format!("text_model.encoder.layers.{index}");
        let (width, hidden) = (encoder.width, encoder.hidden);
        let linear = |name: &str, outputs, inputs| {
            TextLinear::read(&encoder.weights, &format!("{prefix}.{name}"), (outputs, inputs), true, device)
        };
        Ok(Self {
            norm1: encoder.norm(&format!("{prefix}.layer_norm1"), device)?,
            q: linear("self_attn.q_proj", width, width)?,
            k: linear("self_attn.k_proj", width, width)?,
            v: linear("self_attn.v_proj", width, width)?,
            out: linear("self_attn.out_proj", width, width)?,
            norm2: encoder.norm(&format!("{prefix}.layer_norm2"), device)?,
            fc1: linear("mlp.fc1", hidden, width)?,
            fc2: linear("mlp.fc2", width, hidden)?,
            activation: encoder.activation,
            heads: encoder.heads,
            scale: ((width / encoder.heads) as f64).powf(-0.5),
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let q = (self.q.forward(&normed)? * self.scale)?;
        let (k, v) = (self.k.forward(&normed)?, self.v.forward(&normed)?);
        let x = (x + self.out.forward(&attention(&q, &k, &v, mask, self.heads)?)?)?;
        let hidden = self.activation.apply(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok((x + self.fc2.forward(&hidden)?)?)
    }
}

/// The last norm, and the projection where there is one.
struct ClipPooling {
    norm: ClipNorm,
    projection: Option<TextLinear>,
}

impl ClipPooling {
    fn read(encoder: &ClipEncoder, device: &Device) -> Result<Self> {
        let read = |outputs| {
            TextLinear::read(&encoder.weights, "text_projection", (outputs, encoder.width), false, device)
        };
        Ok(Self {
            norm: encoder.norm("text_model.final_layer_norm", device)?,
            projection: encoder.projection.map(read).transpose()?,
        })
    }

    fn forward(&self, state: &Tensor, end: usize) -> Result<Tensor> {
        let end = self.norm.forward(&state.narrow(0, end, 1)?)?;
        let pooled =
            self.projection.as_ref().map_or(Ok(end.clone()), |projection| projection.forward(&end))?;
        Ok(pooled.squeeze(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_hides_later_tokens() {
        let mask: Vec<Vec<Vec<f32>>> = causal_mask(3, &Device::Cpu).unwrap().to_vec3().unwrap();
        let hidden = f32::NEG_INFINITY;
        assert_eq!(mask, [[[0.0, hidden, hidden], [0.0, 0.0, hidden], [0.0, 0.0, 0.0]]]);
    }
}

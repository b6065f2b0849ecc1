//! T5's encoder (transformers' `T5EncoderModel`, versions 1.0 and 1.1). In f16 its activations overflow: they are f32 or bf16.

use std::path::Path;

use candle_core::{DType, Tensor};

use super::CONFIG;
use super::activation::named;
use super::check_finite;
use super::layer::{Layers, read_linear, rows};
use crate::checkpoint::{Library, Weights};
use crate::device::memory::EncoderSizes;
use crate::model::Matrix;
use crate::model::ops::{ActivationFunction, TextLinear, TextNorm, TextOps, WrittenIn};
use crate::pipeline::keys::Keys;
use crate::{HOST, Result};

/// A T5 encoder whose weights are read when they are needed.
#[derive(Debug)]
pub(super) struct T5Encoder {
    weights: Weights,
    vocabulary: usize,
    width: usize,
    hidden: usize,
    layers: Layers<T5Layer>,
    heads: usize,
    head_width: usize,
    buckets: Buckets,
    epsilon: f32,
    activation: ActivationFunction,
    gated: bool,
}

impl T5Encoder {
    /// Reads the configuration, and opens the weights, of an encoder that must make tokens of `joint_width`.
    pub(super) fn open(folder: &Path, joint_width: usize) -> Result<Self> {
        let keys = Keys::open(&folder.join(CONFIG))?;
        let (activation, gated) = read_activation(&keys)?;
        let width_key = deciding(&keys, "hidden_size", "d_model");
        let encoder = Self {
            weights: Weights::open(folder, Library::Transformers)?,
            vocabulary: keys.size_or("vocab_size", 32_128)?,
            width: keys.size_or(width_key, 512)?,
            hidden: keys.size_or("d_ff", 2048)?,
            layers: Layers::new(keys.size_or(deciding(&keys, "num_hidden_layers", "num_layers"), 6)?),
            heads: keys.size_or(deciding(&keys, "num_attention_heads", "num_heads"), 8)?,
            head_width: keys.size_or("d_kv", 64)?,
            buckets: Buckets::read(&keys)?,
            epsilon: keys.number_or("layer_norm_epsilon", 1e-6)? as f32,
            activation,
            gated,
        };
        if encoder.width != joint_width {
            let problem =
                format!("the transformer's `joint_attention_dim` is {joint_width}: they must agree");
            return Err(keys.refuse(width_key, &problem));
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

    /// Multiply-adds to encode a prompt.
    pub(super) fn work(&self, tokens: usize) -> u64 {
        self.layers.count() as u64 * self.work_of_a_layer(tokens)
    }

    fn work_of_a_layer(&self, tokens: usize) -> u64 {
        let ups = if self.gated { 2 } else { 1 };
        let weights = 4 * (self.heads * self.head_width) as u64 + (ups + 1) * self.hidden as u64;
        weights * self.width as u64 * tokens as u64
    }

    /// What it takes to encode so many prompts.
    pub(super) fn sizes(&self, prompts: usize, tokens: usize) -> EncoderSizes {
        EncoderSizes {
            prompts,
            tokens,
            width: self.width,
            attended: self.heads * self.head_width,
            heads: self.heads,
            own_biases: true,
            hidden: self.hidden,
            gated: self.gated,
        }
    }

    /// Encodes prompts of equal length, given as ids, as `tokens x width` each. Padding is read like any other token: diffusers
    /// gives T5 no mask. `progress` gets the multiply-adds of each layer as it is done.
    pub(super) fn encode(
        &self,
        prompts: &[&[u32]],
        ops: &dyn TextOps,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Tensor>> {
        let table = [self.vocabulary, self.width];
        let embed = |ids: &&[u32]| ops.import_rows(rows(&self.weights, self.embedding(), table, ids)?);
        let mut states: Vec<Matrix> = prompts.iter().map(embed).collect::<Result<_>>()?;
        let tokens = prompts.first().map_or(0, |ids| ids.len());
        let bias = ops.import_rows(self.position_bias(tokens)?)?;
        for index in 0..self.layers.count() {
            let layer = self.layers.get(index, || T5Layer::read(self, index, ops))?;
            let through = |state| {
                let state = layer.forward(ops, state, &bias)?;
                progress(self.work_of_a_layer(tokens));
                Ok(state)
            };
            states = states.into_iter().map(through).collect::<Result<_>>()?;
        }
        let norm = self.norm("encoder.final_layer_norm", ops)?;
        let finish = |state: Matrix| ops.export(&ops.norm(&state, &norm, WrittenIn::F32)?);
        let outputs: Vec<Tensor> = states.into_iter().map(finish).collect::<Result<_>>()?;
        outputs.iter().try_for_each(|output| check_finite(output, &self.weights))?;
        Ok(outputs)
    }

    fn embedding(&self) -> &'static str {
        if self.weights.contains("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" }
    }

    /// `heads * tokens x tokens`: what a head adds to a score for the distance of the two tokens, the same in all layers.
    fn position_bias(&self, tokens: usize) -> Result<Tensor> {
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let table = self.weights.tensor(name, &[self.buckets.count, self.heads], DType::F32)?;
        let bucket = |query: usize, key: usize| self.buckets.of(key as i64 - query as i64);
        let ids: Vec<u32> =
            (0..tokens).flat_map(|query| (0..tokens).map(move |key| bucket(query, key))).collect();
        let bias = table.index_select(&Tensor::from_vec(ids, tokens * tokens, &HOST)?, 0)?;
        Ok(bias.t()?.contiguous()?.reshape((self.heads * tokens, tokens))?)
    }

    fn norm(&self, name: &str, ops: &dyn TextOps) -> Result<TextNorm> {
        let weight = ops.vector(&self.weights, &format!("{name}.weight"), self.width)?;
        Ok(TextNorm { weight, bias: None, epsilon: self.epsilon })
    }
}

/// The key of a size that transformers reads by two names: its general one decides where a file has both.
fn deciding<'a>(keys: &Keys, general: &'a str, own: &'a str) -> &'a str {
    if keys.value(general).is_some() { general } else { own }
}

/// `feed_forward_proj` is an activation's name, with `gated-` before it where the network has a gate. transformers writes what it makes of
/// that to `dense_act_fn` and `is_gated_act`, and reads them in its place.
fn read_activation(keys: &Keys) -> Result<(ActivationFunction, bool)> {
    let (key, name_key) = ("feed_forward_proj", "dense_act_fn");
    let value = keys.text_or(key, "relu")?;
    let (name, gated) = match value.strip_prefix("gated-") {
        Some(name) => (name, true),
        None => (value, false),
    };
    let gated = keys.flag_or("is_gated_act", gated)?;
    let function = match keys.text(name_key)? {
        Some(name) => named(keys, name_key, name)?,
        // By this name T5 1.1 means the gelu by a hyperbolic tangent.
        None if value == "gated-gelu" => ActivationFunction::GeluTanh,
        None => named(keys, key, name)?,
    };
    Ok((function, gated))
}

/// How distances between tokens fall into buckets.
#[derive(Clone, Copy, Debug)]
struct Buckets {
    /// Even: one half for tokens before, one for tokens after.
    count: usize,
    max_distance: usize,
}

impl Buckets {
    fn read(keys: &Keys) -> Result<Self> {
        let (count_key, distance_key) = ("relative_attention_num_buckets", "relative_attention_max_distance");
        let buckets =
            Self { count: keys.size_or(count_key, 32)?, max_distance: keys.size_or(distance_key, 128)? };
        if buckets.count < 4 || !buckets.count.is_multiple_of(2) {
            return Err(keys.refuse(count_key, "it must be even, and 4 at least"));
        }
        if buckets.max_distance <= buckets.count / 4 {
            return Err(keys.refuse(distance_key, &format!("it must be above a quarter of `{count_key}`")));
        }
        Ok(buckets)
    }

    /// The bucket of a token that lies `distance` to the right: short distances have one each, longer ones share them on a
    /// logarithmic scale up to the largest (Raffel et al., arXiv 1910.10683). In f32, as PyTorch computes it.
    fn of(self, distance: i64) -> u32 {
        let half = self.count / 2;
        let exact = half / 2;
        let side = if distance > 0 { half } else { 0 };
        let distance = distance.unsigned_abs() as usize;
        let bucket = if distance < exact {
            distance
        } else {
            let share =
                (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
            (exact + (share * (half - exact) as f32) as usize).min(half - 1)
        };
        (side + bucket) as u32
    }
}

/// One layer: attention without scaling, then a feed-forward network, each on normed inputs and added to them.
#[derive(Debug)]
struct T5Layer {
    norm1: TextNorm,
    q: TextLinear,
    k: TextLinear,
    v: TextLinear,
    out: TextLinear,
    norm2: TextNorm,
    up: TextLinear,
    /// The second half of a gated network: its output is multiplied by the activated first.
    gated_up: Option<TextLinear>,
    down: TextLinear,
    activation: ActivationFunction,
    heads: usize,
}

impl T5Layer {
    fn read(encoder: &T5Encoder, index: usize, ops: &dyn TextOps) -> Result<Self> {
        let prefix = format!("encoder.block.{index}");
        let (width, hidden, inner) = (encoder.width, encoder.hidden, encoder.heads * encoder.head_width);
        let linear = |name: &str, outputs, inputs| {
            let name = format!("{prefix}.layer.{name}");
            read_linear(ops, &encoder.weights, &name, [outputs, inputs], false)
        };
        let (up, gated_up) = if encoder.gated {
            (
                linear("1.DenseReluDense.wi_0", hidden, width)?,
                Some(linear("1.DenseReluDense.wi_1", hidden, width)?),
            )
        } else {
            (linear("1.DenseReluDense.wi", hidden, width)?, None)
        };
        Ok(Self {
            norm1: encoder.norm(&format!("{prefix}.layer.0.layer_norm"), ops)?,
            q: linear("0.SelfAttention.q", inner, width)?,
            k: linear("0.SelfAttention.k", inner, width)?,
            v: linear("0.SelfAttention.v", inner, width)?,
            out: linear("0.SelfAttention.o", width, inner)?,
            norm2: encoder.norm(&format!("{prefix}.layer.1.layer_norm"), ops)?,
            up,
            gated_up,
            down: linear("1.DenseReluDense.wo", width, hidden)?,
            activation: encoder.activation,
            heads: encoder.heads,
        })
    }

    fn forward(&self, ops: &dyn TextOps, x: Matrix, bias: &Matrix) -> Result<Matrix> {
        let attended = {
            let normed = ops.norm(&x, &self.norm1, WrittenIn::ProductType)?;
            let project = |layer: &TextLinear| ops.linear(&normed, layer, WrittenIn::ProductType);
            let (q, k, v) = (project(&self.q)?, project(&self.k)?, project(&self.v)?);
            ops.biased_attention([&q, &k, &v], bias, self.heads, 1.0)?
        };
        let x = ops.add_linear(x, &attended, &self.out)?;
        drop(attended);
        let hidden = {
            let normed = ops.norm(&x, &self.norm2, WrittenIn::ProductType)?;
            ops.activated(&normed, &self.up, self.gated_up.as_ref(), self.activation)?
        };
        ops.add_linear(x, &hidden, &self.down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buckets printed by transformers 4.51.3.
    #[test]
    fn buckets_are_those_of_transformers() {
        let buckets = Buckets { count: 32, max_distance: 128 };
        let distances = [0, -1, -7, -8, -11, -12, -63, -64, -127, -500, 1, 7, 8, 90, 91, 500];
        let expected = [0, 1, 7, 8, 8, 9, 13, 14, 15, 15, 17, 23, 24, 30, 31, 31];
        assert_eq!(distances.map(|distance| buckets.of(distance)), expected);
    }
}

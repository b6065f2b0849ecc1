//! The whole transformer: embeddings, joint blocks, the prediction.

use candle_core::{DType, Tensor};
use obsdiff_proto::{Inventory, LinearId};

use super::embedding::PatchEmbed;
use super::{Sd3Config, block};
use crate::Result;
use crate::architecture::TransformerConfig;
use crate::architecture::shared::call::CallShapes;
use crate::architecture::shared::check_dtype;
use crate::checkpoint::Weights;
use crate::device::ComputeDevice;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::inputs::{Importer, KeptInputs};
use crate::model::joint::JointBlock;
use crate::model::linears::Linears;
use crate::model::loading::Loader;
use crate::model::ops::{LinearTensors, ModelOps, Modulation};
use crate::model::state::{name, no_block};
use crate::model::stream::BlockContext;
use crate::model::{Denoise, DiffusionModel, Matrix, State, Tap};

/// An `SD3Transformer2DModel` with its weights. A clone shares them until either replaces one.
#[derive(Clone, Debug)]
pub struct Sd3Transformer {
    config: Sd3Config,
    inventory: Inventory,
    dtype: DType,
    linears: Linears,
    patches: PatchEmbed,
    conditioning: TimeTextEmbed,
    text: LinearTensors,
    blocks: Vec<JointBlock>,
    last_modulation: LinearTensors,
    prediction: LinearTensors,
    ops: ModelOps,
    kept: KeptInputs,
}

impl Sd3Transformer {
    /// Reads a transformer to compute in `dtype` (f32, bf16 or f16).
    ///
    /// # Errors
    /// When the checkpoint is not the one that `config` describes (see [`TransformerConfig::check`]), or holds a value that is not
    /// finite in `dtype`.
    pub fn load(config: Sd3Config, weights: &Weights, dtype: DType) -> Result<Self> {
        config.validate()?;
        config.check(weights)?;
        check_dtype(dtype)?;
        let loader = Loader { weights, dtype };
        let inventory = config.inventory();
        let width = config.width();
        let linears = Linears::load(&inventory, &loader)?;
        let block = |index| block::load(&config, &inventory, index, &loader);
        let blocks = (0..config.num_layers).map(block).collect::<Result<_>>()?;
        let predicted = config.patch_size * config.patch_size * config.output_channels();
        Ok(Self {
            linears,
            blocks,
            patches: PatchEmbed::load(&config, &loader)?,
            conditioning: TimeTextEmbed::load(width, config.pooled_projection_dim, false, &loader)?,
            text: loader.linear("context_embedder", width, config.joint_attention_dim)?,
            last_modulation: loader.linear("norm_out.linear", 2 * width, width)?,
            prediction: loader.linear("proj_out", predicted, width)?,
            ops: ModelOps::default(),
            kept: KeptInputs::default(),
            dtype,
            config,
            inventory,
        })
    }

    /// The sizes it was read with.
    pub fn config(&self) -> &Sd3Config {
        &self.config
    }

    /// The type it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Checks a call's shapes; gives image tokens on each side.
    fn check(&self, call: &Denoise<'_>) -> Result<(usize, usize)> {
        let shapes = CallShapes {
            channels: self.config.in_channels,
            joint: self.config.joint_attention_dim,
            pooled: self.config.pooled_projection_dim,
            guided: false,
        };
        let (height, width) = shapes.check(call)?;
        self.config.image_tokens(height, width)?;
        Ok((height / self.config.patch_size, width / self.config.patch_size))
    }

    fn importer(&self) -> Importer<'_> {
        Importer { ops: &self.ops, dtype: self.dtype, kept: &self.kept }
    }

    /// Image tokens to the predicted velocity: `batch x channels x height x width`.
    fn predict(
        &self,
        image: &Matrix,
        conditioning: &Matrix,
        (rows, columns): (usize, usize),
    ) -> Result<Tensor> {
        let ops = self.ops.device();
        let values = ops.linear(conditioning, &self.last_modulation)?;
        let by = Modulation { values, width: self.config.width() };
        let normed = ops.norm_modulate(image, &by, 1, 0)?;
        let predicted = ops.linear(&normed, &self.prediction)?.predicted()?;
        let (patch, channels) = (self.config.patch_size, self.config.output_channels());
        let batch = conditioning.rows()?;
        let picture = predicted
            .reshape(&[batch, rows, columns, patch, patch, channels])?
            .permute([0, 5, 1, 3, 2, 4])?
            .reshape((batch, channels, rows * patch, columns * patch))?;
        Ok(picture)
    }
}

impl DiffusionModel for Sd3Transformer {
    fn duplicate(&self) -> Box<dyn DiffusionModel> {
        Box::new(self.clone())
    }

    fn move_blocks(&mut self, device: &ComputeDevice) {
        self.ops.move_blocks(device, self.dtype);
        self.kept = KeptInputs::default();
        self.patches.moved();
    }

    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn operations(&self) -> u64 {
        self.ops.counted()
    }

    fn block_count(&self) -> usize {
        self.blocks.len()
    }

    fn start(&self, call: &Denoise<'_>) -> Result<State> {
        let sides = self.check(call)?;
        let (ops, inputs) = (self.ops.device(), self.importer());
        let conditioning = self.conditioning.forward(inputs, call.timestep, None, call.pooled)?;
        let image = self.patches.forward(ops, &inputs.typed(call.latents)?)?;
        let text = ops.linear(&inputs.text(call.text)?, &self.text)?;
        let state = State::default().with(name::CONDITIONING, conditioning);
        state.with(name::IMAGE, image).with(name::TEXT, text).with_sides(sides)
    }

    fn block(&self, index: usize, mut state: State, tap: &mut dyn Tap) -> Result<State> {
        let block = self.blocks.get(index).ok_or_else(|| no_block(index, self.blocks.len()))?;
        let (image, text) = (state.take_matrix(name::IMAGE)?, state.take_matrix(name::TEXT)?);
        let conditioning = state.matrix(name::CONDITIONING)?;
        let ops = self.ops.device();
        let shared = BlockContext { ops, linears: &self.linears, conditioning, rotary: None };
        let (image, text) = block.forward(image, text, shared, tap)?;
        let state = state.with(name::IMAGE, image);
        // The last block ends the text stream.
        Ok(match text {
            Some(text) => state.with(name::TEXT, text),
            None => state,
        })
    }

    fn finish(&self, mut state: State) -> Result<Tensor> {
        let image = state.take_matrix(name::IMAGE)?;
        self.predict(&image, state.matrix(name::CONDITIONING)?, state.sides()?)
    }

    fn weight(&self, linear: LinearId) -> Result<&Tensor> {
        self.linears.weight(linear)
    }

    fn replace(&mut self, linear: LinearId, weight: Tensor) -> Result<()> {
        self.linears.replace(linear, &weight, &self.inventory)
    }

    fn bias(&self, linear: LinearId) -> Result<Option<&Tensor>> {
        self.linears.bias(linear, &self.inventory)
    }

    fn replace_bias(&mut self, linear: LinearId, bias: Tensor) -> Result<()> {
        self.linears.replace_bias(linear, &bias, &self.inventory)
    }
}

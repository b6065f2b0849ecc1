//! The whole transformer: embeddings, double-stream and single-stream blocks, the prediction.

use candle_core::{DType, Tensor};
use obsdiff_proto::{Inventory, LinearId};

use super::FluxConfig;
use super::config::PATCH;
use super::loading::Blocks;
use super::places;
use super::single::SingleBlock;
use crate::architecture::TransformerConfig;
use crate::architecture::shared::call::CallShapes;
use crate::architecture::shared::check_dtype;
use crate::checkpoint::Weights;
use crate::device::ComputeDevice;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::inputs::{Importer, KeptInputs};
use crate::model::joint::JointBlock;
use crate::model::kept::Kept;
use crate::model::linears::Linears;
use crate::model::loading::Loader;
use crate::model::ops::{LinearTensors, ModelOps, Modulation, Rotary};
use crate::model::state::{name, no_block};
use crate::model::stream::BlockContext;
use crate::model::{Denoise, DiffusionModel, Matrix, State, Tap};
use crate::{Error, Result};

/// The largest number that f16 holds. In f16 diffusers keeps tokens within it.
const LARGEST_F16: f32 = 65504.0;

/// In a call's state: by what places turn queries and keys, `image tokens x head / 2`.
const COSINES: &str = "rotary_cosines";
const SINES: &str = "rotary_sines";
/// In its place of both streams from the first single-stream block on: each item's text tokens, then its image tokens.
const TOKENS: &str = "tokens";

/// A `FluxTransformer2DModel` with its weights. A clone shares them until either replaces one.
///
/// It takes latents as the autoencoder gives them, and packs 2 x 2 of their pixels into a token as diffusers' pipeline does.
#[derive(Clone, Debug)]
pub struct FluxTransformer {
    config: FluxConfig,
    inventory: Inventory,
    dtype: DType,
    linears: Linears,
    image: LinearTensors,
    text: LinearTensors,
    conditioning: TimeTextEmbed,
    double: Vec<JointBlock>,
    single: Vec<SingleBlock>,
    last_modulation: LinearTensors,
    prediction: LinearTensors,
    ops: ModelOps,
    kept: KeptInputs,
    /// Cosines and sines of pictures of so many rows and columns of tokens.
    tables: Kept<(usize, usize), [Matrix; 2]>,
}

impl FluxTransformer {
    /// Reads a transformer to compute in `dtype` (f32, bf16 or f16).
    ///
    /// # Errors
    /// When the checkpoint is not the one that `config` describes (see [`TransformerConfig::check`]), or holds a value that is not
    /// finite in `dtype`.
    pub fn load(config: FluxConfig, weights: &Weights, dtype: DType) -> Result<Self> {
        config.validate()?;
        config.check(weights)?;
        check_dtype(dtype)?;
        let loader = Loader { weights, dtype };
        let inventory = config.inventory();
        let blocks = Blocks { config: &config, inventory: &inventory, loader: &loader };
        let width = config.width();
        let (pooled, guided) = (config.pooled_projection_dim, config.guidance_embeds);
        Ok(Self {
            linears: Linears::load(&inventory, &loader)?,
            image: loader.linear("x_embedder", width, config.in_channels)?,
            text: loader.linear("context_embedder", width, config.joint_attention_dim)?,
            conditioning: TimeTextEmbed::load(width, pooled, guided, &loader)?,
            double: (0..config.num_layers).map(|index| blocks.double(index)).collect::<Result<_>>()?,
            single: (0..config.num_single_layers).map(|index| blocks.single(index)).collect::<Result<_>>()?,
            last_modulation: loader.linear("norm_out.linear", 2 * width, width)?,
            prediction: loader.linear("proj_out", config.output_features(), width)?,
            ops: ModelOps::default(),
            kept: KeptInputs::default(),
            tables: Kept::default(),
            dtype,
            config,
            inventory,
        })
    }

    /// The sizes it was read with.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The type it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Checks a call's shapes; gives image tokens on each side.
    fn check(&self, call: &Denoise<'_>) -> Result<(usize, usize)> {
        let shapes = CallShapes {
            channels: self.config.channels(),
            joint: self.config.joint_attention_dim,
            pooled: self.config.pooled_projection_dim,
            guided: self.config.guidance_embeds,
        };
        let (height, width) = shapes.check(call)?;
        self.config.image_tokens(height, width)?;
        Ok((height / PATCH, width / PATCH))
    }

    fn importer(&self) -> Importer<'_> {
        Importer { ops: &self.ops, dtype: self.dtype, kept: &self.kept }
    }

    /// `batch x channels x height x width` to image tokens: `(batch * tokens) x width`.
    fn embed(&self, latents: &Tensor) -> Result<Matrix> {
        let (batch, channels, height, width) = latents.dims4()?;
        let (rows, columns) = (height / PATCH, width / PATCH);
        let packed = latents
            .reshape(&[batch, channels, rows, PATCH, columns, PATCH])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((batch * rows * columns, channels * PATCH * PATCH))?;
        let ops = self.ops.device();
        ops.linear(&ops.import(packed.into())?, &self.image)
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
        let (batch, channels) = (conditioning.rows()?, self.config.output_features() / (PATCH * PATCH));
        let picture = predicted
            .reshape(&[batch, rows, columns, channels, PATCH, PATCH])?
            .permute([0, 3, 1, 4, 2, 5])?
            .reshape((batch, channels, rows * PATCH, columns * PATCH))?;
        Ok(picture)
    }

    /// The two streams as one sequence, of which each item's text tokens come first: `(batch * tokens) x width`.
    fn joined(&self, state: &mut State) -> Result<Matrix> {
        let (image, text) = (state.take_matrix(name::IMAGE)?, state.take_matrix(name::TEXT)?);
        let batch = state.matrix(name::CONDITIONING)?.rows()?;
        self.ops.device().sequence(&text, &image, batch)
    }

    /// Keeps tokens finite in f16, as diffusers does.
    fn limited(&self, tokens: Matrix) -> Result<Matrix> {
        match self.dtype {
            DType::F16 => self.ops.device().limited(tokens, LARGEST_F16),
            _ => Ok(tokens),
        }
    }
}

impl DiffusionModel for FluxTransformer {
    fn duplicate(&self) -> Box<dyn DiffusionModel> {
        Box::new(self.clone())
    }

    fn move_blocks(&mut self, device: &ComputeDevice) {
        self.ops.move_blocks(device, self.dtype);
        (self.kept, self.tables) = Default::default();
    }

    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn operations(&self) -> u64 {
        self.ops.counted()
    }

    fn block_count(&self) -> usize {
        self.double.len() + self.single.len()
    }

    fn start(&self, call: &Denoise<'_>) -> Result<State> {
        let (rows, columns) = self.check(call)?;
        // As the timestep, it is embedded in thousandths.
        let thousandfold =
            |guidance: &Tensor| -> Result<Tensor> { Ok((guidance.to_dtype(DType::F32)? * 1000.0)?) };
        let guidance = call.guidance.map(thousandfold).transpose()?;
        let (ops, inputs) = (self.ops.device(), self.importer());
        let conditioning =
            self.conditioning.forward(inputs, call.timestep, guidance.as_ref(), call.pooled)?;
        let tables = || {
            let Rotary { cosines, sines } = places::rotary(&self.config, rows, columns)?;
            Ok([ops.import(cosines.into())?, ops.import(sines.into())?])
        };
        let [cosines, sines] = self.tables.get((rows, columns), tables)?;
        let image = self.embed(&inputs.typed(call.latents)?)?;
        let text = ops.linear(&inputs.text(call.text)?, &self.text)?;
        let state = State::default().with(name::CONDITIONING, conditioning);
        let state = state.with(COSINES, cosines).with(SINES, sines);
        state.with(name::IMAGE, image).with(name::TEXT, text).with_sides((rows, columns))
    }

    /// Double-stream blocks come first, then the single-stream blocks.
    fn block(&self, index: usize, mut state: State, tap: &mut dyn Tap) -> Result<State> {
        let conditioning = state.matrix(name::CONDITIONING)?.clone();
        let rotary = Rotary { cosines: state.matrix(COSINES)?.clone(), sines: state.matrix(SINES)?.clone() };
        let shared = BlockContext {
            ops: self.ops.device(),
            linears: &self.linears,
            conditioning: &conditioning,
            rotary: Some(&rotary),
        };
        if let Some(block) = self.double.get(index) {
            let (image, text) = (state.take_matrix(name::IMAGE)?, state.take_matrix(name::TEXT)?);
            let (image, Some(text)) = block.forward(image, text, shared, tap)? else {
                return Err(Error::Argument("a double-stream block ends the text stream".to_owned()));
            };
            return Ok(state.with(name::IMAGE, image).with(name::TEXT, self.limited(text)?));
        }
        let single = self.single.get(index - self.double.len());
        let block = single.ok_or_else(|| no_block(index, self.block_count()))?;
        let tokens = if state.has(TOKENS) { state.take_matrix(TOKENS)? } else { self.joined(&mut state)? };
        Ok(state.with(TOKENS, self.limited(block.forward(tokens, shared, tap)?)?))
    }

    fn finish(&self, mut state: State) -> Result<Tensor> {
        let (rows, columns) = state.sides()?;
        let tokens = state.take_matrix(TOKENS)?;
        let conditioning = state.matrix(name::CONDITIONING)?;
        let image = self.ops.device().last_tokens(&tokens, conditioning.rows()?, rows * columns)?;
        self.predict(&image, conditioning, (rows, columns))
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

//! The transformer: a forward call written with candle's own operations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Tensor};
use obsdiff_engine::architecture::TransformerConfig;
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::model::{Denoise, DiffusionModel, State, Tap};
use obsdiff_engine::{Error, HOST, Result};
use obsdiff_proto::{Inventory, LinearId, SiteId};

use crate::architecture::{PATCH, TwoBranchConfig};

/// In a call's state: `(batch * tokens) x width`.
const TOKENS: &str = "tokens";
/// In a call's state: `batch`, whole numbers that say how many pictures there are, then rows and columns of tokens.
const SIZES: &str = "sizes";

/// The transformer with its weights.
#[derive(Clone, Debug)]
pub(crate) struct TwoBranches {
    config: TwoBranchConfig,
    inventory: Inventory,
    embed: Tensor,
    context: Tensor,
    predict: Tensor,
    /// By the ids of linears.
    weights: Vec<Tensor>,
    biases: Vec<Option<Tensor>>,
    operations: Arc<AtomicU64>,
}

impl TwoBranches {
    pub(crate) fn load(config: &TwoBranchConfig, weights: &Weights, dtype: DType) -> Result<Self> {
        let inventory = config.inventory();
        let read = |name: &str, shape: &[usize]| weights.tensor(name, shape, dtype);
        let (width, features) = (config.width, config.token_features());
        let weight = |linear: &obsdiff_proto::Linear| {
            read(&format!("{}.weight", linear.name), &[linear.rows, inventory.site(linear.site).width])
        };
        let bias = |linear: &obsdiff_proto::Linear| {
            linear.bias.then(|| read(&format!("{}.bias", linear.name), &[linear.rows])).transpose()
        };
        Ok(Self {
            embed: read("embed.weight", &[width, features])?,
            context: read("context.weight", &[width, config.text_width])?,
            predict: read("predict.weight", &[features, width])?,
            weights: inventory.linears.iter().map(weight).collect::<Result<_>>()?,
            biases: inventory.linears.iter().map(bias).collect::<Result<_>>()?,
            operations: Arc::default(),
            config: config.clone(),
            inventory,
        })
    }

    /// x W^T, for x of `rows x n`.
    fn product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let operations = 2 * x.dim(0)? * weight.elem_count();
        self.operations.fetch_add(operations as u64, Ordering::Relaxed);
        Ok(x.matmul(&weight.t()?)?)
    }

    /// x W^T + b.
    fn linear(&self, x: &Tensor, id: usize) -> Result<Tensor> {
        let product = self.product(x, &self.weights[id])?;
        Ok(match &self.biases[id] {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        })
    }

    fn place(&self, linear: LinearId) -> Result<usize> {
        let place = linear.0 as usize;
        if place < self.weights.len() {
            return Ok(place);
        }
        Err(Error::Argument(format!("there is no linear {place}")))
    }
}

impl DiffusionModel for TwoBranches {
    fn duplicate(&self) -> Box<dyn DiffusionModel> {
        Box::new(Self { operations: Arc::default(), ..self.clone() })
    }

    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    fn block_count(&self) -> usize {
        self.config.blocks
    }

    /// Tokens of 2 x 2 latent pixels; to each is added what the mean of the text tokens becomes, scaled by the time.
    fn start(&self, call: &Denoise<'_>) -> Result<State> {
        let (batch, channels, height, width) = call.latents.dims4()?;
        let (rows, columns) = (height / PATCH, width / PATCH);
        let tokens = call
            .latents
            .reshape(&[batch, channels, rows, PATCH, columns, PATCH])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((batch * rows * columns, self.config.token_features()))?;
        let time = (call.timestep.to_dtype(tokens.dtype())? / 1000.0)?.reshape((batch, 1))?;
        let context = self.product(&call.text.mean(1)?.broadcast_mul(&time)?, &self.context)?;
        let tokens = self.product(&tokens, &self.embed)?.reshape((batch, rows * columns, ()))?;
        let tokens = tokens.broadcast_add(&context.unsqueeze(1)?)?;
        let sizes = [batch, rows, columns].map(|size| size as u32);
        Ok(State::default().with(TOKENS, tokens.flatten(0, 1)?).with(SIZES, Tensor::new(&sizes, &HOST)?))
    }

    fn block(&self, index: usize, mut state: State, tap: &mut dyn Tap) -> Result<State> {
        let tokens = state.take(TOKENS)?;
        let (site, linear) = (2 * index as u32, 3 * index);
        // As an RMS norm without weights.
        let scale = (tokens.sqr()?.mean_keepdim(1)? + 1e-6)?.sqrt()?;
        let normed = tokens.broadcast_div(&scale)?;
        if tap.wants(SiteId(site)) {
            tap.observe(SiteId(site), &normed.clone().into())?;
        }
        let wide = self.linear(&normed, linear)?.silu()?;
        let narrow = self.linear(&normed, linear + 1)?.tanh()?;
        let both = Tensor::cat(&[wide, narrow], 1)?;
        if tap.wants(SiteId(site + 1)) {
            tap.observe(SiteId(site + 1), &both.clone().into())?;
        }
        Ok(state.with(TOKENS, (tokens + self.linear(&both, linear + 2)?)?))
    }

    fn finish(&self, mut state: State) -> Result<Tensor> {
        let tokens = self.product(&state.take(TOKENS)?, &self.predict)?;
        let sizes: Vec<usize> =
            state.get(SIZES)?.to_vec1::<u32>()?.into_iter().map(|size| size as usize).collect();
        let (batch, rows, columns, channels) = (sizes[0], sizes[1], sizes[2], self.config.channels);
        Ok(tokens
            .reshape(&[batch, rows, columns, channels, PATCH, PATCH])?
            .permute([0, 3, 1, 4, 2, 5])?
            .reshape((batch, channels, rows * PATCH, columns * PATCH))?)
    }

    fn weight(&self, linear: LinearId) -> Result<&Tensor> {
        Ok(&self.weights[self.place(linear)?])
    }

    fn replace(&mut self, linear: LinearId, weight: Tensor) -> Result<()> {
        let place = self.place(linear)?;
        self.weights[place] = weight;
        Ok(())
    }

    fn bias(&self, linear: LinearId) -> Result<Option<&Tensor>> {
        Ok(self.biases[self.place(linear)?].as_ref())
    }

    fn replace_bias(&mut self, linear: LinearId, bias: Tensor) -> Result<()> {
        let place = self.place(linear)?;
        self.biases[place] = Some(bias);
        Ok(())
    }
}

//! What transformers of all architectures have in common: the interface that others use, and the parts that blocks are made of.

pub(crate) mod conditioning;
pub(crate) mod inputs;
pub(crate) mod joint;
pub(crate) mod kept;
pub(crate) mod linears;
pub(crate) mod listing;
pub(crate) mod loading;
mod matrix;
pub(crate) mod ops;
pub(crate) mod parts;
pub(crate) mod state;
pub(crate) mod stream;

use candle_core::Tensor;
use obsdiff_proto::{Inventory, LinearId, SiteId};

use crate::Result;
use crate::device::ComputeDevice;

pub use matrix::Matrix;
pub use ops::THREAD_BYTES;
pub use state::State;

/// Where a forward call shows the activations of its sites.
pub trait Tap {
    /// Whether `site` is open. A model asks before it makes an activation contiguous or keeps it for a tap.
    fn wants(&self, site: SiteId) -> bool;

    /// Takes the observation that this call brings to an open site: `rows` is `tokens x n`, the tokens of every batch item after
    /// one another, on the device that computes blocks. It is only borrowed: what a tap wants of it, it takes at once.
    ///
    /// # Errors
    /// When the observation cannot be taken.
    fn observe(&mut self, site: SiteId, rows: &Matrix) -> Result<()>;

    /// Called after each block of a forward call.
    ///
    /// # Errors
    /// Where the call is to end here.
    fn block_passed(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A tap with no open site.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _: SiteId) -> bool {
        false
    }

    fn observe(&mut self, _: SiteId, _: &Matrix) -> Result<()> {
        Ok(())
    }
}

/// The inputs of one forward call.
#[derive(Clone, Debug)]
pub struct Denoise<'a> {
    /// `batch x channels x height x width`, in latent pixels.
    pub latents: &'a Tensor,
    /// `batch`: each item's timestep, 0..1000.
    pub timestep: &'a Tensor,
    /// `batch x text tokens x joint width`.
    pub text: &'a Tensor,
    /// `batch x pooled width`.
    pub pooled: &'a Tensor,
    /// `batch`: each item's guidance, of models that take it as an input.
    pub guidance: Option<&'a Tensor>,
}

/// A transformer that predicts a flow's velocity.
pub trait DiffusionModel: Send {
    /// The same model. The two share their weights until either replaces one.
    fn duplicate(&self) -> Box<dyn DiffusionModel>;

    /// Computes blocks on a device from now on, as all clones of the model are to do: their weights go there when a block first uses
    /// them, and states stay there between blocks. Without an implementation of its own a model keeps its blocks on the host.
    fn move_blocks(&mut self, _device: &ComputeDevice) {}

    /// What of it can be pruned.
    fn inventory(&self) -> &Inventory;

    /// Floating-point operations of the matrix products of all forward calls so far, a multiplication and an addition counted as
    /// two. A duplicate counts its own.
    fn operations(&self) -> u64;

    /// How many blocks there are.
    fn block_count(&self) -> usize;

    /// Starts a forward call: the state before the first block. The inputs may be of any type.
    ///
    /// # Errors
    /// When shapes do not fit the model.
    fn start(&self, call: &Denoise<'_>) -> Result<State>;

    /// Takes a forward call through block `index`, and shows every open site of it to `tap`.
    ///
    /// # Errors
    /// When there is no such block, the state is not the one before it, or the tap fails.
    fn block(&self, index: usize, state: State, tap: &mut dyn Tap) -> Result<State>;

    /// Ends a forward call after its last block: the velocity, `batch x channels x height x width`, in the model's type.
    ///
    /// # Errors
    /// When the state is not the one after the last block.
    fn finish(&self, state: State) -> Result<Tensor>;

    /// Predicts the velocity, `batch x channels x height x width`, and shows every open site to `tap` on the way.
    ///
    /// # Errors
    /// When shapes do not fit the model, or the tap fails or ends the call.
    fn forward(&self, call: &Denoise<'_>, tap: &mut dyn Tap) -> Result<Tensor> {
        let mut state = self.start(call)?;
        for index in 0..self.block_count() {
            state = self.block(index, state, tap)?;
            tap.block_passed()?;
        }
        self.finish(state)
    }

    /// A linear's weight, `rows x n`, in the model's compute type.
    ///
    /// # Errors
    /// When the id is not of this model.
    fn weight(&self, linear: LinearId) -> Result<&Tensor>;

    /// Replaces a linear's weight by one of the same shape.
    ///
    /// # Errors
    /// When the id is not of this model, or the shape differs.
    fn replace(&mut self, linear: LinearId, weight: Tensor) -> Result<()>;

    /// A linear's bias, `rows`, in the model's compute type; none where it adds none.
    ///
    /// # Errors
    /// When the id is not of this model.
    fn bias(&self, linear: LinearId) -> Result<Option<&Tensor>>;

    /// Replaces a linear's bias by one of the same shape.
    ///
    /// # Errors
    /// When the id is not of this model, the linear has no bias, or the shape differs.
    fn replace_bias(&mut self, linear: LinearId, bias: Tensor) -> Result<()>;
}

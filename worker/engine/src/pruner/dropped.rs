//! What is left of a model that made room for another one.

use candle_core::Tensor;
use obsdiff_proto::{Inventory, LinearId};

use crate::model::{Denoise, DiffusionModel, State, Tap};
use crate::{Error, Result};

/// A model without weights: its inventory still says what could be pruned.
#[derive(Clone)]
pub(super) struct DroppedModel {
    inventory: Inventory,
    operations: u64,
}

impl DroppedModel {
    /// What is left of this one.
    pub(super) fn of(model: &dyn DiffusionModel) -> Self {
        Self { inventory: model.inventory().clone(), operations: model.operations() }
    }
}

impl DiffusionModel for DroppedModel {
    fn duplicate(&self) -> Box<dyn DiffusionModel> {
        Box::new(self.clone())
    }

    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn operations(&self) -> u64 {
        self.operations
    }

    fn block_count(&self) -> usize {
        0
    }

    fn start(&self, _: &Denoise<'_>) -> Result<State> {
        Err(dropped())
    }

    fn block(&self, _: usize, _: State, _: &mut dyn Tap) -> Result<State> {
        Err(dropped())
    }

    fn finish(&self, _: State) -> Result<Tensor> {
        Err(dropped())
    }

    fn weight(&self, _: LinearId) -> Result<&Tensor> {
        Err(dropped())
    }

    fn replace(&mut self, _: LinearId, _: Tensor) -> Result<()> {
        Err(dropped())
    }

    fn bias(&self, _: LinearId) -> Result<Option<&Tensor>> {
        Err(dropped())
    }

    fn replace_bias(&mut self, _: LinearId, _: Tensor) -> Result<()> {
        Err(dropped())
    }
}

fn dropped() -> Error {
    Error::Argument(
        "the transformer was dropped once its pruned weights were written: start this worker again"
            .to_owned(),
    )
}

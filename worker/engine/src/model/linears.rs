//! A model's prunable linears, by id.

use candle_core::Tensor;
use obsdiff_proto::{Inventory, LinearId};

use super::loading::Loader;
use super::ops::Linear;
use crate::{Error, Result};

/// By [`LinearId`].
#[derive(Clone, Debug)]
pub(crate) struct Linears(Vec<Linear>);

impl Linears {
    pub(crate) fn load(inventory: &Inventory, loader: &Loader<'_>) -> Result<Self> {
        let linear = |linear: &obsdiff_proto::Linear| {
            loader.linear(&linear.name, linear.rows, inventory.site(linear.site).width)
        };
        Ok(Self(inventory.linears.iter().map(linear).collect::<Result<_>>()?))
    }

    pub(crate) fn get(&self, id: LinearId) -> Result<&Linear> {
        self.0.get(id.0 as usize).ok_or_else(|| unknown(id))
    }

    pub(crate) fn replace(&mut self, id: LinearId, weight: &Tensor, inventory: &Inventory) -> Result<()> {
        let linear = self.0.get_mut(id.0 as usize).ok_or_else(|| unknown(id))?;
        linear.weight = replacement(&linear.weight, weight, &inventory.linear(id).name)?;
        Ok(())
    }

    pub(crate) fn replace_bias(&mut self, id: LinearId, bias: &Tensor, inventory: &Inventory) -> Result<()> {
        let linear = self.0.get_mut(id.0 as usize).ok_or_else(|| unknown(id))?;
        linear.bias = replacement(&linear.bias, bias, &inventory.linear(id).name)?;
        Ok(())
    }
}

fn unknown(id: LinearId) -> Error {
    Error::Argument(format!("linear {id} is not of this model"))
}

/// `new` in the type and place of the `old` tensor of a linear, if it has its shape.
fn replacement(old: &Tensor, new: &Tensor, name: &str) -> Result<Tensor> {
    if old.shape() != new.shape() {
        let (old, new) = (old.dims(), new.dims());
        return Err(Error::Argument(format!("{name} has shape {old:?}, but its replacement {new:?}")));
    }
    Ok(new.to_device(old.device())?.to_dtype(old.dtype())?.contiguous()?)
}

//! A model's prunable linears, by id. One without a bias adds zeros, so that the kernels know one kind of linear.

use candle_core::Tensor;
use obsdiff_proto::{Inventory, LinearId};

use super::loading::Loader;
use super::ops::LinearTensors;
use crate::{Error, Result};

/// By [`LinearId`].
#[derive(Clone, Debug)]
pub(crate) struct Linears(Vec<LinearTensors>);

impl Linears {
    pub(crate) fn load(inventory: &Inventory, loader: &Loader<'_>) -> Result<Self> {
        let linear = |linear: &obsdiff_proto::Linear| {
            let width = inventory.site(linear.site).width;
            if linear.bias {
                loader.linear(&linear.name, linear.rows, width)
            } else {
                loader.linear_without_bias(&linear.name, linear.rows, width)
            }
        };
        Ok(Self(inventory.linears.iter().map(linear).collect::<Result<_>>()?))
    }

    pub(crate) fn get(&self, id: LinearId) -> Result<&LinearTensors> {
        self.0.get(id.0 as usize).ok_or_else(|| unknown(id))
    }

    /// A linear's weight.
    pub(crate) fn weight(&self, id: LinearId) -> Result<&Tensor> {
        Ok(&self.get(id)?.weight)
    }

    /// A linear's bias, where it has one.
    pub(crate) fn bias(&self, id: LinearId, inventory: &Inventory) -> Result<Option<&Tensor>> {
        let linear = self.get(id)?;
        Ok(inventory.linear(id).bias.then_some(&*linear.bias))
    }

    pub(crate) fn replace(&mut self, id: LinearId, weight: &Tensor, inventory: &Inventory) -> Result<()> {
        let linear = self.0.get_mut(id.0 as usize).ok_or_else(|| unknown(id))?;
        linear.weight = replacement(&linear.weight, weight, &inventory.linear(id).name)?.into();
        Ok(())
    }

    pub(crate) fn replace_bias(&mut self, id: LinearId, bias: &Tensor, inventory: &Inventory) -> Result<()> {
        let linear = self.0.get_mut(id.0 as usize).ok_or_else(|| unknown(id))?;
        let described = inventory.linear(id);
        if !described.bias {
            return Err(Error::Argument(format!("{} has no bias to replace", described.name)));
        }
        linear.bias = replacement(&linear.bias, bias, &described.name)?.into();
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
    Ok(new.to_dtype(old.dtype())?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use obsdiff_proto::{Site, SiteId, Stream, StreamId};

    use super::*;
    use crate::checkpoint::Weights;

    #[test]
    fn a_linear_without_a_bias_adds_nothing_and_takes_none() {
        let described = |name: &str, bias| obsdiff_proto::Linear {
            name: name.to_owned(),
            rows: 2,
            bias,
            site: SiteId(0),
        };
        let [with, without] = [LinearId(0), LinearId(1)];
        let inventory = Inventory {
            streams: vec![Stream::new("image", 1, false)],
            sites: vec![Site {
                name: "with".to_owned(),
                width: 3,
                stream: StreamId(0),
                joined: Vec::new(),
                linears: vec![with, without],
            }],
            linears: vec![described("with", true), described("without", false)],
            ..Inventory::default()
        };
        assert_eq!(inventory.parameters_of(&inventory.linears[0]), 8);
        assert_eq!(inventory.parameters_of(&inventory.linears[1]), 6);
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &crate::HOST).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let tensors =
            [("with.weight", ones(&[2, 3])), ("with.bias", ones(&[2])), ("without.weight", ones(&[2, 3]))];
        candle_core::safetensors::save(&tensors.into_iter().collect(), file.path()).unwrap();
        let weights = Weights::open_file(file.path()).unwrap();
        let loader = Loader { weights: &weights, dtype: DType::F32 };
        let mut linears = Linears::load(&inventory, &loader).unwrap();
        assert_eq!(linears.get(without).unwrap().bias.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        assert!(linears.bias(with, &inventory).unwrap().is_some());
        assert!(linears.bias(without, &inventory).unwrap().is_none());
        linears.replace_bias(with, &ones(&[2]), &inventory).unwrap();
        let refused = linears.replace_bias(without, &ones(&[2]), &inventory).unwrap_err().to_string();
        assert_eq!(refused, "without has no bias to replace");
        assert!(linears.bias(LinearId(2), &inventory).unwrap_err().to_string().contains("linear 2"));
    }
}

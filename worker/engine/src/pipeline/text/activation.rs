//! ActivationFunction functions, by the names that transformers gives them.

use candle_core::Tensor;

use crate::Result;
use crate::pipeline::keys::Keys;

/// An activation function of a text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ActivationFunction {
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// x * Phi(x), by the error function.
    Gelu,
    /// The same by a hyperbolic tangent.
    GeluTanh,
    Relu,
    Silu,
}

impl ActivationFunction {
    /// The activation that `name`, the value of `key`, stands for.
    pub(super) fn named(keys: &Keys, key: &str, name: &str) -> Result<Self> {
        match name {
            "quick_gelu" => Ok(Self::QuickGelu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            _ => Err(keys.refuse(
                key,
                "obsdiff supports quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu and silu",
            )),
        }
    }

    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Relu => x.relu()?,
            Self::Silu => x.silu()?,
        })
    }
}

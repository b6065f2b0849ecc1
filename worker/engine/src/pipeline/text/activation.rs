//! Activation functions, by the names that transformers gives them.

use crate::Result;
use crate::model::ops::ActivationFunction;
use crate::pipeline::keys::Keys;

/// The activation that `name`, the value of `key`, stands for.
pub(super) fn named(keys: &Keys, key: &str, name: &str) -> Result<ActivationFunction> {
    match name {
        "quick_gelu" => Ok(ActivationFunction::QuickGelu),
        "gelu" => Ok(ActivationFunction::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(ActivationFunction::GeluTanh),
        "relu" => Ok(ActivationFunction::Relu),
        "silu" | "swish" => Ok(ActivationFunction::Silu),
        _ => {
            Err(keys
                .refuse(key, "obsdiff supports quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu and silu"))
        }
    }
}

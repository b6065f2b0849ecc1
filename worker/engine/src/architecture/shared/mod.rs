//! What the architectures of this folder have in common: how a configuration is read, sizes of blocks that differ, how a call is checked.

pub(super) mod block_sizes;
pub(super) mod call;
pub(super) mod config;
pub(super) mod cost;

use candle_core::DType;

use crate::{Error, Result};

/// Why a transformer whose blocks have different sizes has no checkpoint in its authors' layout.
pub(super) const LOST_PARTS: &str = "its blocks have lost heads or neurons, which no program reads from one file: prune with \
                                     output.layout = \"masked\", which keeps all shapes";

/// The Python functions by which each architecture's module makes its linears smaller. They stand at the module's end.
macro_rules! module {
    ($file:literal) => {
        concat!(include_str!($file), "\n\n", include_str!("../shared/smaller_linears.py"))
    };
}
pub(super) use module;

/// Refuses a type that no transformer computes in.
pub(super) fn check_dtype(dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
        return Ok(());
    }
    Err(Error::Argument(format!("a transformer computes in f32, bf16 or f16, not in {dtype:?}")))
}

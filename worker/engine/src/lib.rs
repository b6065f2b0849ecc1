//! obsdiff's synchronous numerics: it reads a diffusers pipeline, runs it, gathers Grams along the denoising trajectory, prunes
//! by them and writes the pipeline back.
//!
//! `architecture` and `model` know [`model::Tap`] but no Gram; `solve` knows matrices only.

pub mod architecture;
pub mod calibrate;
pub mod checkpoint;
mod contained;
#[cfg(any(test, feature = "cuda"))]
pub mod cuda;
pub mod device;
mod error;
pub mod export;
pub mod gram;
mod hardware;
pub mod model;
pub mod pipeline;
pub mod pruner;
pub mod solve;

pub use contained::is_contained;
pub use error::{Error, Result};
pub use hardware::hardware;

/// Where tensors of candle's lie. What a GPU computes with is a [`model::Matrix`] in its own memory.
pub const HOST: candle_core::Device = candle_core::Device::Cpu;

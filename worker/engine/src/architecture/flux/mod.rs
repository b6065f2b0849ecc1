//! `FluxTransformer2DModel`: the transformer of FLUX.1 dev and schnell. Double-stream blocks keep image and text tokens apart, as SD3's
//! do; single-stream blocks take them as one sequence, attention and feed-forward network side by side.

mod architecture;
mod block_sizes;
mod config;
mod cost;
mod inventory;
mod loading;
mod places;
mod shrunk;
mod single;
mod single_file;
mod transformer;

pub use architecture::ARCHITECTURE;
pub use block_sizes::BlockSizes;
pub use config::FluxConfig;
pub use shrunk::{MODULE, MODULE_FILE};
pub use transformer::FluxTransformer;

#[cfg(test)]
mod tests;

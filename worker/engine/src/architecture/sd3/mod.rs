//! `SD3Transformer2DModel`: the joint transformer of SD3-medium, SD3.5-medium and SD3.5-large (arXiv 2403.03206).

mod architecture;
mod block;
mod block_sizes;
mod config;
mod cost;
mod embedding;
mod inventory;
mod shrunk;
mod single_file;
mod transformer;

pub use architecture::ARCHITECTURE;
pub use block_sizes::BlockSizes;
pub use config::Sd3Config;
pub use shrunk::{MODULE, MODULE_FILE};
pub use transformer::Sd3Transformer;

#[cfg(test)]
mod tests;

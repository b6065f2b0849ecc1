//! `SD3Transformer2DModel`: the joint transformer of SD3-medium, SD3.5-medium and SD3.5-large (arXiv 2403.03206).

mod arithmetic;
mod block;
mod config;
mod cost;
mod embedding;
mod inventory;
mod loading;
mod stream;
mod transformer;

pub use config::Sd3Config;
pub use transformer::Sd3Transformer;

#[cfg(test)]
mod tests;

//! `FluxTransformer2DModel`: the transformer of FLUX.1 dev and schnell. Double-stream blocks keep image and text tokens apart, as SD3's
//! do; single-stream blocks take them as one sequence, attention and feed-forward network side by side.

mod architecture;
mod config;
mod cost;
mod inventory;
mod loading;
mod places;
mod single;
mod transformer;

pub use architecture::ARCHITECTURE;
pub use config::FluxConfig;
pub use transformer::FluxTransformer;

#[cfg(test)]
mod tests;

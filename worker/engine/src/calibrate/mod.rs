//! Calibration: shards of prompts denoised on the model as pruned so far, every open site's observations summed into its Gram.

mod observed;
mod taps;
mod trajectories;
mod weighting;

pub use taps::{Energy, EnergyTap, GramTap, WeightedTap};
pub use trajectories::{Encoded, Trajectories};
pub use weighting::alphas;

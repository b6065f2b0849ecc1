//! Calibration: shards of prompts denoised on the model as pruned so far, every open site's observations summed into its Gram.

mod encoded;
mod observed;
mod taps;
mod trajectories;
mod weighting;

pub use encoded::{Conditionings, Encoded};
pub use taps::{Energy, EnergyTap, GramTap, WeightedTap};
pub use trajectories::Trajectories;
pub use weighting::alphas;

//! Calibration: shards of prompts denoised on the model as pruned so far, every open site's observations summed into its Gram.

mod denoised;
mod encoded;
mod observed;
mod taps;
mod trajectories;
mod weighting;

pub use denoised::Denoised;
pub use encoded::{Conditionings, Encoded};
pub(crate) use taps::of_sums;
pub use taps::{Energy, EnergyTap, GramTap, WeightedTap};
pub use trajectories::{Passed, Trajectories};
pub use weighting::alphas;

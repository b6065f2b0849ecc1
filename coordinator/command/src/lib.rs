//! The `obsdiff` command: jobs, prompts, plans, pictures and progress, around obsdiff's coordinator and workers.

mod advice;
mod budget;
pub mod cli;
pub mod commands;
pub mod conditioning;
pub mod context;
pub mod described;
pub mod device_needs;
mod downloads;
pub mod error;
pub mod fit;
pub mod job;
pub mod kubeflow;
pub mod machine;
mod measured;
mod needs;
pub mod panics;
pub mod picture;
pub mod progress;
pub mod prompts;
mod rates;
mod report;
pub mod run;
mod run_time;
pub mod runtime;
pub mod sampling;
mod shares;
pub mod signals;
pub mod spans;
pub mod status;
pub mod sweep;
pub mod text;
pub mod traces;
pub mod zeros;

pub use error::{Error, Result};
pub use obsdiff_coordinator::clock;

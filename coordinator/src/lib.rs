//! The `obsdiff` command: jobs, prompts, plans, pictures and progress, around obsdiff's coordinator and workers.

pub mod clock;
mod error;
pub mod job;
pub mod picture;
pub mod progress;
pub mod prompts;
pub mod run;
pub mod spans;
pub mod text;

pub use error::{Error, Result};

//! How processes end that are stopped, starved or left alone: with the exit code that is documented, in words, and never not at all.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod finished;
mod limits;
mod panics;
mod patience;
#[path = "../process/mod.rs"]
mod process;
mod refusals;
mod signals;
mod source;

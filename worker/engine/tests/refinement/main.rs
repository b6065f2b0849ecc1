//! Refinement comes close to the exact optimum of a mask: row by row in f64, on the goldens of the solver and on Grams of the shipped
//! pipeline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod goldens;
mod optimum;
mod pipeline;

use std::path::{Path, PathBuf};

pub(crate) fn assets(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets")).join(path)
}

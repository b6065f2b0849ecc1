//! What the `obsdiff` command takes of the machine: memory, pages and processor time, measured by the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod buffers;
mod sparse;
mod usage;

use std::path::{Path, PathBuf};

/// A file or folder of the assets.
pub(crate) fn asset(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets")).join(name)
}

//! The architectures of transformers that obsdiff can prune, one folder each.

pub mod flux;
pub mod sd3;

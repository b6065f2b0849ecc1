//! Reading diffusers and transformers checkpoints: configuration files, and weights memory-mapped from safetensors.

mod config;
mod digest;
mod joined;
mod library;
mod mapped;
mod weights;

pub use config::read_json;
pub use digest::{digests, sha256};
pub use joined::{JoinedTensor, TensorRows};
pub(crate) use joined::{MovedBlocks, MovedModule, joined, renamed, stacked, swapped};
pub use library::Library;
pub use mapped::MappedFile;
pub use weights::{TensorEntry, Weights};

#[cfg(test)]
mod tests;

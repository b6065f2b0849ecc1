//! Reading diffusers and transformers checkpoints: configuration files, and weights memory-mapped from safetensors.

mod config;
mod digest;
mod joined;
mod library;
mod mapped;
mod weights;

pub use config::read_json;
pub use digest::{digests, sha256};
pub(crate) use joined::{BlockPlaces, Place, joined, renamed, stacked, swapped};
pub use joined::{JoinedTensor, Rows};
pub use library::Library;
pub use mapped::MappedFile;
pub use weights::{Entry, Weights};

#[cfg(test)]
mod tests;

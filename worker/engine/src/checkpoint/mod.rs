//! Reading diffusers and transformers checkpoints: configuration files, and weights from safetensors.

mod config;
mod digest;
mod joined;
mod library;
mod sources;
mod tensor_file;
mod weights;

pub(crate) use config::quantised;
pub use config::read_json;
pub use digest::sha256;
pub use joined::{JoinedTensor, TensorRows};
pub(crate) use joined::{MovedBlocks, MovedModule, joined, renamed, stacked, swapped};
pub use library::Library;
pub use sources::SourceFiles;
pub use tensor_file::TensorFile;
pub use weights::{TensorEntry, Weights};

#[cfg(test)]
mod tests;

//! A diffusers pipeline except for its transformer: folder, tokenizers, text encoders, schedule, noise, autoencoder,
//! and the denoising loop. Every number is held to what diffusers 0.33 and PyTorch compute for the same files.

mod download;
mod folder;
mod keys;
mod noise;
mod schedule;
mod size;
mod text;
mod tokenizer;
mod trajectory;
mod vae;

#[cfg(test)]
pub(crate) mod testing;

pub use download::{
    INDEX_FILE, TextFiles, files_of_pipeline, files_of_transformer, weight_indexes, weights_left_out,
};
pub use folder::PipelineFolder;
pub use noise::noise;
pub use schedule::{LevelSource, Schedule, Scheduler};
pub use size::LatentSize;
pub use text::{Conditioning, EncodedText, EncoderKind, EncoderSlot, EncoderWidths, TextEncoders};
pub use tokenizer::PromptTokenizer;
pub use trajectory::Trajectory;
pub use vae::{Picture, Vae};

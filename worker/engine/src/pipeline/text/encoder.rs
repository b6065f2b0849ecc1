//! A text encoder of either kind.

use std::path::{Path, PathBuf};

use super::clip::ClipEncoder;
use super::t5::T5Encoder;
use super::{CONFIG, EncodedText, EncoderWidths};
use crate::Result;
use crate::checkpoint::Weights;
use crate::device::memory::{EncoderSizes, encoder_bytes, encoder_layer_bytes};
use crate::model::ops::TextOps;

/// An encoder whose weights are read when they are needed.
#[derive(Debug)]
pub(super) enum Encoder {
    Clip(ClipEncoder),
    T5(T5Encoder),
}

impl Encoder {
    fn weights(&self) -> &Weights {
        match self {
            Self::Clip(clip) => clip.weights(),
            Self::T5(t5) => t5.weights(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        self.weights().folder()
    }

    /// The files that it was opened from: its configuration and its weights.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.folder().join(CONFIG)).chain(self.weights().paths().map(Path::to_owned))
    }

    pub(super) fn widths(&self) -> EncoderWidths {
        match self {
            Self::Clip(clip) => EncoderWidths { hidden: clip.width(), pooled: Some(clip.pooled_width()) },
            Self::T5(t5) => EncoderWidths { hidden: t5.width(), pooled: None },
        }
    }

    pub(super) fn work(&self, tokens: usize) -> u64 {
        match self {
            Self::Clip(clip) => clip.work(tokens),
            Self::T5(t5) => t5.work(tokens),
        }
    }

    /// Bytes of a device's own memory that it takes for so many prompts, where products take numbers of `bytes` each.
    pub(super) fn device_bytes(&self, prompts: usize, tokens: usize, bytes: usize) -> u64 {
        encoder_bytes(self.sizes(prompts, tokens), bytes)
    }

    fn sizes(&self, prompts: usize, tokens: usize) -> EncoderSizes {
        match self {
            Self::Clip(clip) => clip.sizes(prompts, tokens),
            Self::T5(t5) => t5.sizes(prompts, tokens),
        }
    }

    /// Bytes of a device's own memory that all of its layers take.
    pub(super) fn bytes_of_layers(&self, bytes: usize) -> u64 {
        let depth = match self {
            Self::Clip(clip) => clip.depth(),
            Self::T5(t5) => t5.depth(),
        };
        depth as u64 * encoder_layer_bytes(self.sizes(1, 1), bytes as u64)
    }

    /// Keeps each layer once it is read.
    pub(super) fn keep_layers(&mut self) {
        match self {
            Self::Clip(clip) => clip.keep_layers(),
            Self::T5(t5) => t5.keep_layers(),
        }
    }

    pub(super) fn encode(
        &self,
        prompts: &[&[u32]],
        ops: &dyn TextOps,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<EncodedText>> {
        match self {
            Self::Clip(clip) => clip.encode(prompts, ops, progress),
            Self::T5(t5) => {
                let hidden = t5.encode(prompts, ops, progress)?;
                Ok(hidden.into_iter().map(|hidden| EncodedText { hidden, pooled: None }).collect())
            }
        }
    }
}

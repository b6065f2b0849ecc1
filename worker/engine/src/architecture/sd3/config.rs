//! `transformer/config.json` of a diffusers pipeline.

use std::path::Path;

use serde::Deserialize;

use super::block_sizes::{self, BlockSizes};
use crate::architecture::shared::config::{ConfigKeys, Configuration, read, sizes_problem, validate};
use crate::{Error, Result};

pub(super) const CLASS: &str = "SD3Transformer2DModel";
/// The class of a model whose blocks differ, which a Python module beside its configuration holds.
pub(super) const PRUNED_CLASS: &str = "PrunedSD3Transformer2DModel";

/// The sizes of an `SD3Transformer2DModel`, by diffusers' names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sd3Config {
    /// Height and width of the latents the model was made for.
    pub sample_size: usize,
    /// Latent pixels on a side of a patch.
    pub patch_size: usize,
    /// Latent channels.
    pub in_channels: usize,
    /// Joint blocks; the last one's text stream ends at its attention.
    pub num_layers: usize,
    /// Features of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Features of a text token as the encoders give it.
    pub joint_attention_dim: usize,
    /// Features of a text token inside the blocks: the width.
    pub caption_projection_dim: usize,
    /// Features of the pooled text embedding.
    pub pooled_projection_dim: usize,
    /// Predicted channels; `null` means as many as `in_channels`.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Patches on a side of the positional table, of which a picture takes the middle.
    pub pos_embed_max_size: usize,
    /// Blocks with a second attention of the image stream on itself (SD3.5-medium).
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
    /// How queries and keys are normed: not at all, or by `"rms_norm"` (SD3.5).
    #[serde(default)]
    pub qk_norm: Option<String>,
    /// What blocks have kept, where they differ.
    #[serde(flatten)]
    pub blocks: BlockSizes,
}

impl Sd3Config {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, names another class, lacks a size, holds a key this version does not know (it might change
    /// the arithmetic), or holds a value that no such model can have.
    pub fn read(folder: &Path) -> Result<Self> {
        read(folder)
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// Naming the first key whose value cannot be used.
    pub fn validate(&self) -> Result<()> {
        validate(self)
    }

    /// Features of a token inside the blocks.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Features of a feed-forward network's hidden layer.
    pub fn hidden_width(&self) -> usize {
        4 * self.width()
    }

    /// Channels of the prediction.
    pub fn output_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Image tokens of latents of `height x width` latent pixels.
    ///
    /// # Errors
    /// When a side is not a multiple of the patch, or longer than the positional table.
    pub fn image_tokens(&self, height: usize, width: usize) -> Result<usize> {
        for (side, pixels) in [("height", height), ("width", width)] {
            if pixels == 0 || !pixels.is_multiple_of(self.patch_size) {
                let problem =
                    format!("latent {side} {pixels} is not a multiple of `patch_size` {}", self.patch_size);
                return Err(Error::Argument(problem));
            }
            if pixels / self.patch_size > self.pos_embed_max_size {
                return Err(Error::Argument(format!(
                    "latent {side} {pixels} is {} patches, more than `pos_embed_max_size` {}",
                    pixels / self.patch_size,
                    self.pos_embed_max_size
                )));
            }
        }
        Ok(height / self.patch_size * (width / self.patch_size))
    }

    pub(super) fn norms_queries(&self) -> bool {
        self.qk_norm.is_some()
    }

    pub(super) fn is_dual(&self, block: usize) -> bool {
        self.dual_attention_layers.contains(&block)
    }

    /// Whether the block's text stream ends at its attention.
    pub(super) fn is_last(&self, block: usize) -> bool {
        block + 1 == self.num_layers
    }
}

impl Configuration for Sd3Config {
    const KEYS: ConfigKeys = ConfigKeys {
        class: CLASS,
        pruned_class: PRUNED_CLASS,
        sizes: &[
            "sample_size",
            "patch_size",
            "in_channels",
            "num_layers",
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "caption_projection_dim",
            "pooled_projection_dim",
            "pos_embed_max_size",
        ],
        others: &["out_channels", "dual_attention_layers", "qk_norm", "auto_map"],
        block_sizes: &block_sizes::KEYS,
    };

    fn problem(&self) -> Option<String> {
        let layers = [("num_layers", self.num_layers)];
        let sizes = [
            ("sample_size", self.sample_size),
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("caption_projection_dim", self.caption_projection_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("out_channels", self.output_channels()),
            ("pos_embed_max_size", self.pos_embed_max_size),
        ];
        let problem = sizes_problem(&layers, &sizes, self.num_attention_heads, self.attention_head_dim);
        if problem.is_some() {
            return problem;
        }
        if self.caption_projection_dim != self.width() {
            return Some(format!(
                "`caption_projection_dim` is {}, but must be `num_attention_heads` times `attention_head_dim` = {}",
                self.caption_projection_dim,
                self.width()
            ));
        }
        if !self.sample_size.is_multiple_of(self.patch_size) {
            return Some(format!(
                "`sample_size` {} is not a multiple of `patch_size` {}",
                self.sample_size, self.patch_size
            ));
        }
        if self.sample_size / self.patch_size > self.pos_embed_max_size {
            return Some(format!(
                "`sample_size` {} is {} patches on a side, more than `pos_embed_max_size` {}",
                self.sample_size,
                self.sample_size / self.patch_size,
                self.pos_embed_max_size
            ));
        }
        if let Some(layer) = self.dual_attention_layers.iter().find(|layer| **layer >= self.num_layers) {
            return Some(format!(
                "`dual_attention_layers` names {layer}, but `num_layers` is {}",
                self.num_layers
            ));
        }
        match self.qk_norm.as_deref() {
            None | Some("rms_norm") => self.blocks_problem(),
            Some(other) => {
                Some(format!("`qk_norm` is \"{other}\", but only null and \"rms_norm\" are supported"))
            }
        }
    }
}

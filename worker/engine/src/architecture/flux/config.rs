//! `transformer/config.json` of a diffusers pipeline.

use std::path::Path;

use serde::Deserialize;

use super::block_sizes::{self, BlockSizes};
use crate::architecture::shared::config::{ConfigKeys, Configuration, read, sizes_problem, validate};
use crate::{Error, Result};

pub(super) const CLASS: &str = "FluxTransformer2DModel";
/// The class of a model whose blocks differ, which a Python module beside its configuration holds.
pub(super) const PRUNED_CLASS: &str = "PrunedFluxTransformer2DModel";

/// Latent pixels on a side of a token's square. The pipeline packs it, so that the transformer's own patch is one.
pub(super) const PATCH: usize = 2;

/// The sizes of a `FluxTransformer2DModel`, by diffusers' names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FluxConfig {
    /// Tokens on a side of the transformer's patch: 1, since the pipeline has packed the latents already.
    pub patch_size: usize,
    /// Features of a packed image token: four times the latent channels.
    pub in_channels: usize,
    /// Predicted features of an image token; `null` means as many as `in_channels`.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Double-stream blocks, which come first.
    pub num_layers: usize,
    /// Single-stream blocks.
    pub num_single_layers: usize,
    /// Features of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Features of a text token as the encoder gives it.
    pub joint_attention_dim: usize,
    /// Features of the pooled text embedding.
    pub pooled_projection_dim: usize,
    /// Whether guidance is an input (dev) or not (schnell).
    #[serde(default)]
    pub guidance_embeds: bool,
    /// Features of a head that are turned by each of a token's three places.
    #[serde(default = "published_axes")]
    pub axes_dims_rope: Vec<usize>,
    /// What blocks have kept, where they differ.
    #[serde(flatten)]
    pub blocks: BlockSizes,
}

/// Of FLUX.1, whose files do not say them.
fn published_axes() -> Vec<usize> {
    vec![16, 56, 56]
}

impl FluxConfig {
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

    fn axes_problem(&self) -> Option<String> {
        let axes = &self.axes_dims_rope;
        if axes.len() != 3 {
            return Some(format!("`axes_dims_rope` has {} numbers, but a token has 3 places", axes.len()));
        }
        if let Some(odd) = axes.iter().find(|axis| !axis.is_multiple_of(2)) {
            return Some(format!("`axes_dims_rope` holds {odd}, but features are turned in pairs"));
        }
        let sum = axes.iter().fold(0, |sum: usize, axis| sum.saturating_add(*axis));
        (sum != self.attention_head_dim).then(|| {
            format!(
                "`axes_dims_rope` adds up to {sum}, but `attention_head_dim` is {}",
                self.attention_head_dim
            )
        })
    }

    /// Features of a token inside the blocks.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Features of a feed-forward network's hidden layer.
    pub fn hidden_width(&self) -> usize {
        4 * self.width()
    }

    /// Predicted features of an image token.
    pub(super) fn output_features(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Latent channels.
    pub fn channels(&self) -> usize {
        self.in_channels / (PATCH * PATCH)
    }

    /// Image tokens of latents of `height x width` latent pixels.
    ///
    /// # Errors
    /// When a side is odd or nothing.
    pub fn image_tokens(&self, height: usize, width: usize) -> Result<usize> {
        for (side, pixels) in [("height", height), ("width", width)] {
            if pixels == 0 || !pixels.is_multiple_of(PATCH) {
                return Err(Error::Argument(format!("latent {side} {pixels} is not a multiple of {PATCH}")));
            }
        }
        Ok(height / PATCH * (width / PATCH))
    }
}

impl Configuration for FluxConfig {
    const KEYS: ConfigKeys = ConfigKeys {
        class: CLASS,
        pruned_class: PRUNED_CLASS,
        sizes: &[
            "patch_size",
            "in_channels",
            "num_layers",
            "num_single_layers",
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "pooled_projection_dim",
        ],
        others: &["out_channels", "guidance_embeds", "axes_dims_rope", "auto_map"],
        block_sizes: &block_sizes::KEYS,
    };

    fn problem(&self) -> Option<String> {
        let layers = [("num_layers", self.num_layers), ("num_single_layers", self.num_single_layers)];
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.output_features()),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
        ];
        let problem = sizes_problem(&layers, &sizes, self.num_attention_heads, self.attention_head_dim);
        if problem.is_some() {
            return problem;
        }
        if self.patch_size != 1 {
            return Some(format!("`patch_size` is {}, but only 1 is supported", self.patch_size));
        }
        for (key, features) in [("in_channels", self.in_channels), ("out_channels", self.output_features())] {
            if !features.is_multiple_of(PATCH * PATCH) {
                return Some(format!("`{key}` is {features}, but must be a multiple of {}", PATCH * PATCH));
            }
        }
        if self.output_features() != self.in_channels {
            return Some(format!(
                "it takes more than latents (Fill, Control): `in_channels` is {} and `out_channels` {}, but obsdiff prunes only models \
                 that take what they predict",
                self.in_channels,
                self.output_features()
            ));
        }
        self.axes_problem().or_else(|| self.blocks_problem())
    }
}

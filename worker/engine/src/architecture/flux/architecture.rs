//! What this architecture provides.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_proto::{ForwardFlops, Inventory};

use super::config::{CLASS, PATCH, PRUNED_CLASS};
use super::{BlockSizes, FluxConfig, FluxTransformer, MODULE, MODULE_FILE};
use crate::architecture::shared::LOST_PARTS;
use crate::architecture::{
    Architecture, ConditioningWidths, Guidance, LatentLayout, PipelineDefaults, TransformerConfig,
};
use crate::checkpoint::{JoinedTensor, Weights};
use crate::device::memory;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::{DiffusionModel, ops};
use crate::pipeline::{Conditioning, EncodedText, EncoderKind, EncoderSlot, EncoderWidths, LevelSource};
use crate::{Error, Result};

/// FLUX.1 dev and schnell.
pub static ARCHITECTURE: Architecture = Architecture {
    name: "FLUX.1",
    pipeline_class: "FluxPipeline",
    transformer_class: CLASS,
    shrunk_class: PRUNED_CLASS,
    text_encoders: &TEXT_ENCODERS,
    levels: LevelSource::Pipeline,
    true_guidance: true,
    read: |folder| Ok(Arc::new(FluxConfig::read(folder)?)),
    small: || {
        Arc::new(FluxConfig {
            patch_size: 1,
            in_channels: 16,
            out_channels: None,
            num_layers: 1,
            num_single_layers: 2,
            attention_head_dim: 32,
            num_attention_heads: 4,
            joint_attention_dim: 96,
            pooled_projection_dim: 64,
            guidance_embeds: true,
            axes_dims_rope: vec![8, 12, 12],
            blocks: BlockSizes::default(),
        })
    },
};

/// CLIP for the pooled text, T5 for the tokens.
const TEXT_ENCODERS: [EncoderSlot; 2] = [
    EncoderSlot { encoder: "text_encoder", tokenizer: "tokenizer", kind: EncoderKind::Clip, optional: false },
    EncoderSlot {
        encoder: "text_encoder_2",
        tokenizer: "tokenizer_2",
        kind: EncoderKind::T5,
        optional: false,
    },
];

/// Latent pixels on a side of the pictures that diffusers' pipeline makes where no size is asked for.
const SAMPLE: usize = 128;

/// Places are no table, so any picture has them. This many tokens on a side are more than any model makes sense of, and keep
/// products of sizes from overflowing.
const MAX_PATCHES: usize = 1024;

impl TransformerConfig for FluxConfig {
    fn architecture(&self) -> &'static Architecture {
        &ARCHITECTURE
    }

    /// Those of the pipeline. A model that takes no guidance (schnell) is called with 0 and 256 tokens in diffusers' documentation.
    fn defaults(&self) -> PipelineDefaults {
        if self.guidance_embeds {
            PipelineDefaults { guidance: 3.5, max_sequence_length: 512 }
        } else {
            PipelineDefaults { guidance: 0.0, max_sequence_length: 256 }
        }
    }

    fn inventory(&self) -> Inventory {
        self.inventory()
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.shapes()
    }

    /// Whoever makes a model that takes no guidance of one that does may leave its embedder in the file.
    fn ignores(&self, tensor: &str) -> bool {
        !self.guidance_embeds && TimeTextEmbed::is_of_guidance(tensor)
    }

    fn load(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn DiffusionModel>> {
        Ok(Box::new(FluxTransformer::load(self.clone(), weights, dtype)?))
    }

    fn flops(&self, batch: usize, image: usize, text: usize) -> ForwardFlops {
        self.flops(batch, image, text)
    }

    fn activation_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        ops::peak_bytes(self.sizes(batch, image, text), dtype)
    }

    fn gpu_activation_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        memory::call_bytes(self.sizes(batch, image, text), dtype.size_in_bytes())
    }

    fn kept_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        ops::kept_bytes(self.sizes(batch, image, text), dtype)
    }

    fn state_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        ops::state_bytes(self.sizes(batch, image, text), dtype)
    }

    fn latents(&self) -> LatentLayout {
        LatentLayout {
            channels: self.channels(),
            patch: PATCH,
            sample: SAMPLE,
            max_patches: MAX_PATCHES,
            channels_key: "`in_channels` / 4",
        }
    }

    fn conditioning(&self) -> ConditioningWidths {
        ConditioningWidths { text: self.joint_attention_dim, pooled: self.pooled_projection_dim }
    }

    /// An input of models distilled from guided ones (dev). Others were distilled to need none (schnell).
    fn guidance(&self, scale: f64) -> Guidance {
        Guidance { classifier_free: 1.0, input: self.guidance_embeds.then_some(scale) }
    }

    fn text_tokens(&self, encoders: &[Option<usize>], _: usize) -> usize {
        encoders.get(1).copied().flatten().unwrap_or(0)
    }

    fn reads_further_vectors(&self) -> bool {
        true
    }

    fn check_encoders(&self, encoders: &[Option<EncoderWidths>]) -> Result<(), (usize, String)> {
        let pooled = self.pooled_projection_dim;
        let found = encoders.first().copied().flatten().and_then(|clip| clip.pooled).unwrap_or(0);
        if found == pooled {
            return Ok(());
        }
        Err((
            0,
            format!(
                "gives {found} pooled features, but the transformer's `pooled_projection_dim` is {pooled}"
            ),
        ))
    }

    /// T5's tokens and CLIP's pooled features.
    fn join_texts(&self, texts: &[Option<EncodedText>], _: usize) -> Result<Conditioning> {
        let [Some(clip), Some(t5)] = texts else {
            return Err(Error::Argument("a CLIP encoder and T5 are expected".to_owned()));
        };
        Ok(Conditioning { text: t5.hidden.clone(), pooled: clip.pooled()?.clone() })
    }

    fn with_fewer_blocks(&self, parameters: u64) -> Arc<dyn TransformerConfig> {
        let of = |double: usize, single: usize| Self {
            num_layers: double,
            num_single_layers: single,
            blocks: BlockSizes::default(),
            ..self.clone()
        };
        // Blocks of both kinds in about the proportion in which the model has them.
        let (double, single) = (self.num_layers, self.num_single_layers);
        let scaled =
            |single_blocks: usize| of((single_blocks * double / single).clamp(1, double), single_blocks);
        let fits = |single_blocks: &usize| scaled(*single_blocks).inventory().parameters <= parameters;
        Arc::new(scaled((1..=single).rev().find(fits).unwrap_or(1)))
    }

    fn shrunk(&self, kept: &[usize]) -> Arc<dyn TransformerConfig> {
        Arc::new(self.shrunk(kept))
    }

    fn shrunk_files(&self, source: &Path) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(vec![
            ("config.json".to_owned(), self.pruned_json(source)?),
            (MODULE_FILE.to_owned(), MODULE.as_bytes().to_vec()),
        ])
    }

    fn single_file(&self) -> std::result::Result<Vec<JoinedTensor>, String> {
        if self.blocks != BlockSizes::default() {
            return Err(LOST_PARTS.to_owned());
        }
        let shapes = self.shapes();
        let names = shapes.iter().map(|(name, _)| name.as_str());
        Self::in_one_file(names).map_err(|name| format!("`{name}` has no place in it"))
    }

    fn same_but_for_blocks(&self, other: &dyn TransformerConfig) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<Self>().is_some_and(|other| self.same_but_for_blocks(other))
    }
}

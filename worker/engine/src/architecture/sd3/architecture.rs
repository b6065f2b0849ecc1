//! What this architecture provides.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_proto::{ForwardFlops, Inventory};

use super::config::{CLASS, PRUNED_CLASS};
use super::{BlockSizes, MODULE, MODULE_FILE, Sd3Config, Sd3Transformer};
use crate::architecture::shared::LOST_PARTS;
use crate::architecture::{
    Architecture, ConditioningWidths, Guidance, LatentLayout, PipelineDefaults, TransformerConfig,
};
use crate::checkpoint::{JoinedTensor, Weights};
use crate::device::memory;
use crate::model::{DiffusionModel, ops};
use crate::pipeline::{Conditioning, EncodedText, EncoderKind, EncoderSlot, EncoderWidths, LevelSource};
use crate::{Error, Result};

/// Stable Diffusion 3 and 3.5.
pub static ARCHITECTURE: Architecture = Architecture {
    name: "Stable Diffusion 3 and 3.5",
    pipeline_class: "StableDiffusion3Pipeline",
    transformer_class: CLASS,
    shrunk_class: PRUNED_CLASS,
    text_encoders: &TEXT_ENCODERS,
    levels: LevelSource::Scheduler,
    true_guidance: false,
    read: |folder| Ok(Arc::new(Sd3Config::read(folder)?)),
    small: || {
        Arc::new(Sd3Config {
            sample_size: 32,
            patch_size: 2,
            in_channels: 4,
            num_layers: 3,
            attention_head_dim: 32,
            num_attention_heads: 4,
            joint_attention_dim: 96,
            caption_projection_dim: 128,
            pooled_projection_dim: 64,
            out_channels: None,
            pos_embed_max_size: 24,
            dual_attention_layers: vec![0],
            qk_norm: Some("rms_norm".to_owned()),
            blocks: BlockSizes::default(),
        })
    },
};

/// Two CLIP encoders side by side, followed by T5. diffusers puts zeros in the place of a T5 that is missing: since 0.36 as many as T5
/// would give tokens, earlier as many as CLIP gives.
const TEXT_ENCODERS: [EncoderSlot; 3] = [
    EncoderSlot {
        encoder: "text_encoder",
        tokenizer: "tokenizer",
        kind: EncoderKind::ClipWithProjection,
        optional: false,
    },
    EncoderSlot {
        encoder: "text_encoder_2",
        tokenizer: "tokenizer_2",
        kind: EncoderKind::ClipWithProjection,
        optional: false,
    },
    EncoderSlot {
        encoder: "text_encoder_3",
        tokenizer: "tokenizer_3",
        kind: EncoderKind::T5,
        optional: true,
    },
];

impl TransformerConfig for Sd3Config {
    fn architecture(&self) -> &'static Architecture {
        &ARCHITECTURE
    }

    fn defaults(&self) -> PipelineDefaults {
        PipelineDefaults { guidance: 7.0, max_sequence_length: 256 }
    }

    fn inventory(&self) -> Inventory {
        self.inventory()
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.shapes()
    }

    fn load(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn DiffusionModel>> {
        Ok(Box::new(Sd3Transformer::load(self.clone(), weights, dtype)?))
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
            channels: self.in_channels,
            patch: self.patch_size,
            sample: self.sample_size,
            max_patches: self.pos_embed_max_size,
            channels_key: "`in_channels`",
        }
    }

    fn conditioning(&self) -> ConditioningWidths {
        ConditioningWidths { text: self.joint_attention_dim, pooled: self.pooled_projection_dim }
    }

    fn guidance(&self, scale: f64) -> Guidance {
        Guidance { classifier_free: scale, input: None }
    }

    fn text_tokens(&self, encoders: &[Option<usize>], max_sequence_length: usize) -> usize {
        let of = |encoder: usize| encoders.get(encoder).copied().flatten();
        of(0).unwrap_or(0) + of(2).unwrap_or(max_sequence_length)
    }

    fn check_encoders(&self, encoders: &[Option<EncoderWidths>]) -> Result<(), (usize, String)> {
        let (joint, pooled) = (self.joint_attention_dim, self.pooled_projection_dim);
        let [Some(l), Some(g), _] = encoders else { return Ok(()) };
        let projections = [l, g].map(|encoder| encoder.pooled.unwrap_or(0));
        let problem = if l.hidden + g.hidden > joint {
            format!(
                "widths {} and {} exceed the transformer's `joint_attention_dim`, {joint}",
                l.hidden, g.hidden
            )
        } else if projections.iter().sum::<usize>() != pooled {
            let [l, g] = projections;
            format!("projections {l} and {g} are not the transformer's `pooled_projection_dim`, {pooled}")
        } else {
            return Ok(());
        };
        Err((1, format!("does not fit beside `text_encoder`: their {problem}")))
    }

    /// The CLIP tokens, the features of both encoders side by side and zeros up to the joint width, then the T5 tokens, or zeros.
    /// The pooled features of both CLIP encoders side by side.
    fn join_texts(&self, texts: &[Option<EncodedText>], max_sequence_length: usize) -> Result<Conditioning> {
        let [Some(l), Some(g), t5] = texts else {
            return Err(Error::Argument("two CLIP encoders and T5 are expected".to_owned()));
        };
        let clip = Tensor::cat(&[&l.hidden, &g.hidden], 1)?;
        let clip = clip.pad_with_zeros(1, 0, self.joint_attention_dim - clip.dim(1)?)?;
        let t5 = match t5 {
            Some(t5) => t5.hidden.clone(),
            None => Tensor::zeros((max_sequence_length, clip.dim(1)?), clip.dtype(), clip.device())?,
        };
        Ok(Conditioning {
            text: Tensor::cat(&[&clip, &t5], 0)?,
            pooled: Tensor::cat(&[l.pooled()?, g.pooled()?], 0)?,
        })
    }

    fn with_fewer_blocks(&self, parameters: u64) -> Arc<dyn TransformerConfig> {
        let of = |layers: usize| {
            let dual = self.dual_attention_layers.iter().copied().filter(|block| block + 1 < layers);
            Self {
                num_layers: layers,
                dual_attention_layers: dual.collect(),
                blocks: BlockSizes::default(),
                ..self.clone()
            }
        };
        let fits = |layers: &usize| of(*layers).inventory().parameters <= parameters;
        let least = self.num_layers.min(2);
        Arc::new(of((least..=self.num_layers).rev().find(fits).unwrap_or(least)))
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
        self.in_one_file(names).map_err(|name| format!("`{name}` has no place in it"))
    }

    fn same_but_for_blocks(&self, other: &dyn TransformerConfig) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<Self>().is_some_and(|other| self.same_but_for_blocks(other))
    }
}

//! What an architecture provides, and what the configuration of one of its transformers does.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_proto::{ForwardFlops, Inventory};

use crate::checkpoint::{JoinedTensor, Weights};
use crate::model::{DiffusionModel, loading};
use crate::pipeline::{Conditioning, EncodedText, EncoderSlot, EncoderWidths, LevelSource};
use crate::{Error, Result};

/// One family of transformers, with the diffusers pipeline that they are a part of.
#[derive(Clone, Copy)]
pub struct Architecture {
    /// What people call it.
    pub name: &'static str,
    /// The class of the pipeline, by diffusers' name.
    pub pipeline_class: &'static str,
    /// The class of the transformer, by diffusers' name.
    pub transformer_class: &'static str,
    /// The class of a transformer whose blocks have lost heads or neurons. A Python module beside its configuration defines it.
    pub shrunk_class: &'static str,
    /// The pipeline's text encoders.
    pub text_encoders: &'static [EncoderSlot],
    /// Where a trajectory's noise levels come from.
    pub levels: LevelSource,
    /// Whether classifier-free guidance has a scale of its own beside `guidance` (diffusers' `true_cfg_scale`).
    pub true_guidance: bool,
    /// Reads `config.json` in a transformer's folder.
    ///
    /// # Errors
    /// When the file cannot be read, names another class, or holds a key or a value that this architecture does not know.
    pub read: fn(&Path) -> Result<Arc<dyn TransformerConfig>>,
    /// A small transformer with every kind of block, to try a device by.
    pub small: fn() -> Arc<dyn TransformerConfig>,
}

impl Architecture {
    /// The classes that its transformers may be of.
    pub fn transformer_classes(&self) -> [&'static str; 2] {
        [self.transformer_class, self.shrunk_class]
    }

    /// How guidance acts in one of its transformers: `scale` as that takes it, and `true_scale` as classifier-free guidance where this
    /// has a scale of its own.
    ///
    /// # Errors
    /// When `true_scale` is above 1, and there is no such scale.
    pub fn guidance(
        &self,
        transformer: &dyn TransformerConfig,
        scale: f64,
        true_scale: f64,
    ) -> Result<Guidance> {
        let guidance = transformer.guidance(scale);
        if self.true_guidance {
            return Ok(Guidance { classifier_free: true_scale, ..guidance });
        }
        if true_scale > 1.0 {
            return Err(Error::Argument(format!(
                "`calibration.true_guidance` is {true_scale}, but `calibration.guidance` is classifier-free in {}: leave it out",
                self.name
            )));
        }
        Ok(guidance)
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The sizes of one transformer, as its `config.json` gives them, and everything that follows from them.
pub trait TransformerConfig: Any + fmt::Debug + Send + Sync {
    /// The architecture that it is of.
    fn architecture(&self) -> &'static Architecture;

    /// What diffusers' pipeline takes where its caller says nothing.
    fn defaults(&self) -> PipelineDefaults;

    /// Its prunable parts, in the order in which a forward call reaches them.
    fn inventory(&self) -> Inventory;

    /// Every tensor that its checkpoint holds, with its shape.
    fn shapes(&self) -> Vec<(String, Vec<usize>)>;

    /// Checks a checkpoint's headers against the configuration; no weight is read.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or a type that is no float, or is one that the configuration neither asks for nor
    /// ignores.
    fn check(&self, weights: &Weights) -> Result<()> {
        loading::check(self.shapes(), weights, |tensor| self.ignores(tensor))
    }

    /// Whether a tensor may be in its checkpoint although nothing reads it: one of a module that the configuration leaves out, which
    /// diffusers leaves aside.
    fn ignores(&self, _tensor: &str) -> bool {
        false
    }

    /// Reads the transformer, to compute in `dtype` (f32, bf16 or f16).
    ///
    /// # Errors
    /// When the checkpoint is not the one described, or holds a value that is not finite in `dtype`.
    fn load(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn DiffusionModel>>;

    /// What one forward call costs on `batch` pictures of so many image and text tokens: what the model counts as it computes.
    fn flops(&self, batch: usize, image: usize, text: usize) -> ForwardFlops;

    /// Peak bytes of such a call's activations, computed in `dtype`; its inputs and what a tap keeps are not counted.
    fn activation_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64;

    /// Peak bytes of such a call's activations in a GPU's memory, with the state that it goes by; none where the model stays on the host.
    fn gpu_activation_bytes(&self, _batch: usize, _image: usize, _text: usize, _dtype: DType) -> u64 {
        0
    }

    /// Bytes that stay allocated after such a call, and are used again only by a call of as many pictures. Those of all calls are at most
    /// [`MOST_KEPT_BYTES`](super::MOST_KEPT_BYTES).
    fn kept_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64;

    /// Bytes of the state of such a call between two blocks.
    fn state_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64;

    /// The latents that it takes.
    fn latents(&self) -> LatentLayout;

    /// The widths of its conditioning.
    fn conditioning(&self) -> ConditioningWidths;

    /// How a guidance `scale`, diffusers' `guidance_scale`, acts by itself.
    fn guidance(&self, scale: f64) -> Guidance;

    /// How many text tokens it reads where the text encoders in [`Architecture::text_encoders`] give so many each; `None` is an
    /// encoder that the pipeline does without. `max_sequence_length` is the number of tokens that a T5 encoder is asked for.
    fn text_tokens(&self, encoders: &[Option<usize>], max_sequence_length: usize) -> usize;

    /// Whether its pipeline reads a textual inversion of several vectors as all of them: whether it is one of diffusers'
    /// `TextualInversionLoaderMixin`.
    fn reads_further_vectors(&self) -> bool {
        false
    }

    /// Checks that the outputs of its pipeline's text encoders, in that order, are as wide as it needs them.
    ///
    /// # Errors
    /// The index of an encoder that does not fit, and why.
    fn check_encoders(&self, encoders: &[Option<EncoderWidths>]) -> Result<(), (usize, String)>;

    /// One prompt's conditioning, of what the text encoders made of it, in that order: as many tokens as [`Self::text_tokens`] says.
    ///
    /// # Errors
    /// When the encoded texts are not those of its pipeline.
    fn join_texts(&self, texts: &[Option<EncodedText>], max_sequence_length: usize) -> Result<Conditioning>;

    /// A transformer of the same widths with as many blocks as fit into `parameters`, but at least one block of each kind.
    fn with_fewer_blocks(&self, parameters: u64) -> Arc<dyn TransformerConfig>;

    /// The same transformer with `kept[i]` parts left of structure i of its inventory.
    fn shrunk(&self, kept: &[usize]) -> Arc<dyn TransformerConfig>;

    /// The files that a shrunk transformer has beside its weights, by name: `config.json`, made of the one in the `source` folder, and
    /// the Python module by which diffusers loads it.
    ///
    /// # Errors
    /// When the source's configuration cannot be read.
    fn shrunk_files(&self, source: &Path) -> Result<Vec<(String, Vec<u8>)>>;

    /// The tensors of its checkpoint in one file, as its authors publish it, made of those in diffusers' layout.
    ///
    /// # Errors
    /// Why there is no such file of it.
    fn single_file(&self) -> std::result::Result<Vec<JoinedTensor>, String> {
        Err("its architecture has no layout in one file".to_owned())
    }

    /// Whether two transformers differ in nothing except how many heads and neurons their blocks have kept.
    fn same_but_for_blocks(&self, other: &dyn TransformerConfig) -> bool;
}

/// The latents that a transformer takes, and how it cuts them into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentLayout {
    /// Latent channels.
    pub channels: usize,
    /// Latent pixels on a side of the square that becomes a token.
    pub patch: usize,
    /// Latent pixels on a side of a picture whose size is not given.
    pub sample: usize,
    /// The most tokens on a side.
    pub max_patches: usize,
    /// The key of the configuration that gives the channels.
    pub channels_key: &'static str,
}

/// The widths of a transformer's conditioning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditioningWidths {
    /// Features of a text token.
    pub text: usize,
    /// Features of the pooled text.
    pub pooled: usize,
}

/// What diffusers' pipeline takes where its caller says nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PipelineDefaults {
    /// The guidance scale.
    pub guidance: f64,
    /// T5 tokens of a prompt.
    pub max_sequence_length: u32,
}

/// How guidance acts in a trajectory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// Classifier-free guidance (Ho and Salimans, arXiv 2207.12598), which takes a second picture in every forward call; at most 1 is
    /// none.
    pub classifier_free: f64,
    /// What the transformer takes as an input, where it was distilled from a guided one.
    pub input: Option<f64>,
}

impl Guidance {
    /// Pictures of a forward call for each prompt.
    pub fn branches(&self) -> usize {
        if self.classifier_free > 1.0 { 2 } else { 1 }
    }
}

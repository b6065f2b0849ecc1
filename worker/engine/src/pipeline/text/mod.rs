//! From prompts to what the transformer is conditioned on, by the text encoders of its pipeline.

mod activation;
mod clip;
mod encoder;
mod layer;
mod t5;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};

use self::clip::ClipEncoder;
use self::encoder::Encoder;
use self::t5::T5Encoder;
use super::PipelineFolder;
use super::tokenizer::{PromptTokenizer, max_length};
use crate::architecture::TransformerConfig;
use crate::checkpoint::Weights;
#[cfg(feature = "cuda")]
use crate::cuda::MemoryPhase;
use crate::device::ComputeDevice;
use crate::model::ops::ModelOps;
use crate::{Error, Result};

/// An encoder's configuration.
const CONFIG: &str = "config.json";

/// diffusers refuses longer T5 prompts too.
const MAX_T5_TOKENS: usize = 512;

/// Bytes of hidden states that are kept while a layer is in memory.
const CHUNK_BYTES: usize = 256 << 20;

/// Of a GPU's available memory one part in so many is left where layers stay there: a driver loses some between buffers.
const UNUSED: u64 = 8;

/// What a trajectory is conditioned on: one prompt as the transformer reads it.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `text tokens x joint width`.
    pub text: Tensor,
    /// `pooled width`.
    pub pooled: Tensor,
}

impl Conditioning {
    /// The same conditioning in another type, such as the type that the transformer computes in.
    ///
    /// # Errors
    /// When it cannot be converted.
    pub fn to(&self, dtype: DType) -> Result<Self> {
        let convert = |tensor: &Tensor| tensor.to_dtype(dtype);
        Ok(Self { text: convert(&self.text)?, pooled: convert(&self.pooled)? })
    }
}

/// A text encoder in an architecture's pipeline.
#[derive(Clone, Copy, Debug)]
pub struct EncoderSlot {
    /// The encoder's component.
    pub encoder: &'static str,
    /// Its tokenizer's component.
    pub tokenizer: &'static str,
    /// What it is.
    pub kind: EncoderKind,
    /// Whether a pipeline can do without it.
    pub optional: bool,
}

/// The kinds of text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderKind {
    /// CLIP, whose pooled features are those of a prompt's end token.
    Clip,
    /// CLIP with a projection of its pooled features.
    ClipWithProjection,
    /// T5's encoder, which gives no pooled features.
    T5,
}

impl EncoderKind {
    /// The encoder's class in transformers.
    pub fn classes(self) -> &'static [&'static str] {
        match self {
            Self::Clip => &["CLIPTextModel"],
            Self::ClipWithProjection => &["CLIPTextModelWithProjection"],
            Self::T5 => &["T5EncoderModel"],
        }
    }

    /// The classes of its tokenizer. transformers 5 gives both names to one class. The last two of T5 are those of any `tokenizer.json`,
    /// from which its tokenizer is read in any case.
    pub(super) fn tokenizer_classes(self) -> &'static [&'static str] {
        match self {
            Self::Clip | Self::ClipWithProjection => &["CLIPTokenizer", "CLIPTokenizerFast"],
            Self::T5 => &["T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"],
        }
    }
}

/// The widths of what an encoder makes of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderWidths {
    /// Features of a token.
    pub hidden: usize,
    /// Pooled features, where it gives them.
    pub pooled: Option<usize>,
}

/// What one encoder makes of a prompt.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// `tokens x width`: CLIP's output of the last layer but one, T5's of the last.
    pub hidden: Tensor,
    /// `width`: the normed output of CLIP's last layer at the prompt's end, projected where it has a projection.
    pub pooled: Option<Tensor>,
}

impl EncodedText {
    /// The pooled features.
    ///
    /// # Errors
    /// When the encoder gives none.
    pub fn pooled(&self) -> Result<&Tensor> {
        let none = || Error::Argument("a text encoder gives no pooled features".to_owned());
        self.pooled.as_ref().ok_or_else(none)
    }
}

/// The text encoders of a pipeline. Weights are read from their files; [`TextEncoders::encode`] has one layer in memory at a time, unless
/// [`TextEncoders::for_prompts`] has room for more.
#[derive(Debug)]
pub struct TextEncoders {
    /// In the architecture's order; none where the pipeline does without.
    encoders: Vec<Option<(PromptTokenizer, Encoder)>>,
    /// The tokens that T5 gives, or would give.
    max_sequence_length: usize,
    transformer: Arc<dyn TransformerConfig>,
    ops: ModelOps,
}

/// The token ids of one prompt, for each encoder.
type PromptTokens = Vec<Option<Vec<u32>>>;

impl TextEncoders {
    pub(super) fn open(pipeline: &PipelineFolder, max_sequence_length: usize) -> Result<Self> {
        if !(1..=MAX_T5_TOKENS).contains(&max_sequence_length) {
            let allowed = format!("it must be 1 to {MAX_T5_TOKENS}");
            return Err(Error::Argument(format!(
                "`calibration.max_sequence_length` is {max_sequence_length}: {allowed}"
            )));
        }
        let path = pipeline.path();
        let transformer = pipeline.transformer_config().clone();
        let mut clip_length = None;
        let of = |tokenizer: PromptTokenizer| {
            if transformer.reads_further_vectors() { tokenizer.with_further_vectors() } else { tokenizer }
        };
        let mut open = |slot: &EncoderSlot| -> Result<Option<(PromptTokenizer, Encoder)>> {
            if !pipeline.has(slot.encoder) {
                return Ok(None);
            }
            let (encoder, tokenizer) = (path.join(slot.encoder), path.join(slot.tokenizer));
            if slot.kind == EncoderKind::T5 {
                let width = transformer.conditioning().text;
                let tokenizer = of(PromptTokenizer::t5(&tokenizer, max_sequence_length)?);
                return Ok(Some((tokenizer, Encoder::T5(T5Encoder::open(&encoder, width)?))));
            }
            // All CLIP encoders read as many tokens as the first one's tokenizer says.
            let length = match clip_length {
                Some(length) => length,
                None => *clip_length.insert(max_length(&tokenizer)?),
            };
            let projected = slot.kind == EncoderKind::ClipWithProjection;
            let encoder = ClipEncoder::open(&encoder, length, projected)?;
            Ok(Some((of(PromptTokenizer::clip(&tokenizer, length)?), Encoder::Clip(encoder))))
        };
        let slots = pipeline.architecture().text_encoders;
        let encoders: Vec<_> = slots.iter().map(&mut open).collect::<Result<_>>()?;
        let opened = Self { encoders, max_sequence_length, transformer, ops: ModelOps::default() };
        opened.check_widths()?;
        Ok(opened)
    }

    /// The same encoders, for a transformer that computes in `dtype` on a device. A GPU computes them in [`Self::products_on_gpu`]; the
    /// processor always in f32.
    #[must_use]
    pub fn on(mut self, device: &ComputeDevice, dtype: DType) -> Self {
        self.ops.move_blocks(device, Self::products_on_gpu(dtype));
        self
    }

    /// The type of products on a GPU, whose sums, and all that is no product, are f32: bf16, and f32 beside a transformer that computes in
    /// that. In f16 T5 would overflow.
    pub fn products_on_gpu(dtype: DType) -> DType {
        if dtype == DType::F32 { DType::F32 } else { DType::BF16 }
    }

    /// Bytes of a GPU's memory that encoding so many prompts takes at most, beside a transformer that computes in `dtype`.
    pub fn gpu_bytes(&self, prompts: usize, dtype: DType) -> u64 {
        let prompts = prompts.min(self.prompts_together());
        let bytes = Self::products_on_gpu(dtype).size_in_bytes();
        let of = |(tokenizer, encoder): &(PromptTokenizer, Encoder)| {
            encoder.device_bytes(prompts, tokenizer.length(), bytes)
        };
        self.each(of).into_iter().flatten().max().unwrap_or(0)
    }

    /// The same encoders for so many prompts, on the device that they are on already. Where these pass in several groups and a GPU has room for
    /// all layers of all encoders beside what encoding takes, each layer stays there from its first group on. Otherwise each is loaded for
    /// each group.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn for_prompts(mut self, prompts: usize, device: &ComputeDevice, dtype: DType) -> Result<Self> {
        let Some(available) = available_memory(device)? else { return Ok(self) };
        let bytes = Self::products_on_gpu(dtype).size_in_bytes();
        let layers: u64 =
            self.each(|(_, encoder)| encoder.bytes_of_layers(bytes)).into_iter().flatten().sum();
        let room = available - available / UNUSED;
        if prompts > self.prompts_together() && layers.saturating_add(self.gpu_bytes(prompts, dtype)) <= room
        {
            self.encoders.iter_mut().flatten().for_each(|(_, encoder)| encoder.keep_layers());
        }
        Ok(self)
    }

    fn check_widths(&self) -> Result<()> {
        let widths: Vec<_> = self.each(|(_, encoder)| encoder.widths());
        let Err((index, problem)) = self.transformer.check_encoders(&widths) else { return Ok(()) };
        let encoder = self.encoders.get(index).and_then(Option::as_ref);
        Err(Error::content(encoder.map_or(Path::new("text_encoder"), |(_, it)| it.folder()), problem))
    }

    /// What `of` gives for each encoder that is there.
    fn each<'a, A>(&'a self, of: impl Fn(&'a (PromptTokenizer, Encoder)) -> A) -> Vec<Option<A>> {
        self.encoders.iter().map(|encoder| encoder.as_ref().map(&of)).collect()
    }

    /// The files that the encoders and their tokenizers were opened from.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = |(tokenizer, encoder): &(PromptTokenizer, Encoder)| {
            tokenizer.files().iter().cloned().chain(encoder.files()).collect::<Vec<_>>()
        };
        self.each(files).into_iter().flatten().flatten().collect()
    }

    /// The number of text tokens of a [`Conditioning`].
    pub fn tokens(&self) -> usize {
        let given = self.each(|(tokenizer, _)| tokenizer.length());
        self.transformer.text_tokens(&given, self.max_sequence_length)
    }

    /// The token ids of a prompt, for each encoder that the pipeline has.
    ///
    /// # Errors
    /// When a tokenizer cannot read the prompt.
    pub fn token_ids(&self, prompt: &str) -> Result<Vec<Vec<u32>>> {
        Ok(self.tokenise(prompt)?.into_iter().flatten().collect())
    }

    /// How many prompts pass through a layer while it is in memory.
    pub fn prompts_together(&self) -> usize {
        (CHUNK_BYTES / (self.tokens() * self.transformer.conditioning().text * size_of::<f32>())).max(1)
    }

    /// Encodes prompts and hands each distinct one to `keep`, in f32, as soon as it is there. A prompt is encoded by itself, so that
    /// its conditioning does not depend on the others. `progress` gets the arithmetic done and the whole, in multiply-adds.
    ///
    /// # Errors
    /// When a prompt cannot be read, a weight is missing or has another shape, a conditioning is not finite, or `keep` fails.
    pub fn encode_each(
        &self,
        prompts: &[&str],
        keep: &mut dyn FnMut(&str, Conditioning) -> Result<()>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let mut distinct: Vec<&str> = prompts.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let tokens: Vec<PromptTokens> =
            distinct.iter().map(|prompt| self.tokenise(prompt)).collect::<Result<_>>()?;
        let (mut done, total) = (0, self.work_of_a_prompt().saturating_mul(tokens.len() as u64));
        let chunk = self.prompts_together();
        for (prompts, tokens) in distinct.chunks(chunk).zip(tokens.chunks(chunk)) {
            let encoded = self.encode_chunk(tokens, &mut |work| {
                done += work;
                progress(done, total);
            })?;
            if encoded.len() != prompts.len() {
                let problem = format!("{} of {} prompts were encoded", encoded.len(), prompts.len());
                return Err(Error::Argument(problem));
            }
            prompts.iter().zip(encoded).try_for_each(|(prompt, conditioning)| keep(prompt, conditioning))?;
        }
        Ok(())
    }

    /// Encodes prompts as [`Self::encode_each`], and keeps all of them.
    ///
    /// # Errors
    /// As [`Self::encode_each`].
    pub fn encode(&self, prompts: &[&str], progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<Conditioning>> {
        let mut conditionings = BTreeMap::new();
        let mut keep = |prompt: &str, conditioning| {
            conditionings.insert(prompt.to_owned(), conditioning);
            Ok(())
        };
        self.encode_each(prompts, &mut keep, progress)?;
        let of = |prompt: &&str| conditionings.get(*prompt).cloned().ok_or_else(|| missing(prompt));
        prompts.iter().map(of).collect()
    }

    fn tokenise(&self, prompt: &str) -> Result<PromptTokens> {
        let ids = self.each(|(tokenizer, _)| tokenizer.encode(prompt));
        ids.into_iter().map(Option::transpose).collect()
    }

    fn work_of_a_prompt(&self) -> u64 {
        self.each(|(tokenizer, encoder)| encoder.work(tokenizer.length())).into_iter().flatten().sum()
    }

    fn encode_chunk(
        &self,
        prompts: &[PromptTokens],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Conditioning>> {
        let mut texts = vec![vec![None; self.encoders.len()]; prompts.len()];
        for (index, encoder) in self.encoders.iter().enumerate() {
            let Some((_, encoder)) = encoder else { continue };
            let ids: Vec<&[u32]> = prompts.iter().filter_map(|tokens| tokens[index].as_deref()).collect();
            let encoded = encoder.encode(&ids, self.ops.text(), progress).map_err(while_encoding)?;
            for (text, encoded) in texts.iter_mut().zip(encoded) {
                text[index] = Some(encoded);
            }
        }
        texts.iter().map(|text| self.transformer.join_texts(text, self.max_sequence_length)).collect()
    }
}

/// Bytes that this process can get of a GPU.
fn available_memory(device: &ComputeDevice) -> Result<Option<u64>> {
    match device {
        ComputeDevice::Cpu => Ok(None),
        #[cfg(feature = "cuda")]
        ComputeDevice::Cuda(device) => Ok(Some(device.memory()?.available())),
    }
}

/// The same error; one of a GPU's memory says what it was for.
fn while_encoding(error: Error) -> Error {
    match error {
        #[cfg(feature = "cuda")]
        Error::Cuda(error) => error.during(MemoryPhase::Encoding).into(),
        error => error,
    }
}

fn missing(prompt: &str) -> Error {
    Error::Argument(format!("the prompt \"{prompt}\" was not encoded"))
}

/// An error where an encoder's output cannot be computed with.
fn check_finite(output: &Tensor, weights: &Weights) -> Result<()> {
    // A sum is finite only if every number in it is.
    if output.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        Ok(())
    } else {
        Err(Error::content(
            weights.folder(),
            "computes embeddings that are not finite: its weights are damaged",
        ))
    }
}

#[cfg(test)]
mod tests;

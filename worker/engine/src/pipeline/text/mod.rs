//! From prompts to what the transformer is conditioned on: two CLIP encoders side by side, followed by T5.

mod activation;
mod clip;
mod layer;
mod t5;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use self::clip::ClipEncoder;
use self::t5::T5Encoder;
use super::PipelineFolder;
use super::tokenizer::{PromptTokenizer, max_length};
use crate::checkpoint::Weights;
use crate::{Error, Result};

/// An encoder's configuration.
const CONFIG: &str = "config.json";

/// diffusers refuses longer T5 prompts too.
const MAX_T5_TOKENS: usize = 512;

/// Bytes of hidden states that are kept while a layer is in memory.
const CHUNK_BYTES: usize = 256 << 20;

/// What a trajectory is conditioned on: one prompt as the transformer reads it.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `text tokens x joint width`: the CLIP tokens, the features of both encoders side by side and zeros up to the joint width,
    /// then the T5 tokens.
    pub text: Tensor,
    /// `pooled width`: the pooled features of both CLIP encoders side by side.
    pub pooled: Tensor,
}

impl Conditioning {
    /// The same conditioning on another device or in another type, such as the type that the transformer computes in.
    ///
    /// # Errors
    /// When it cannot be converted.
    pub fn to(&self, dtype: DType, device: &Device) -> Result<Self> {
        let convert = |tensor: &Tensor| tensor.to_dtype(dtype)?.to_device(device);
        Ok(Self { text: convert(&self.text)?, pooled: convert(&self.pooled)? })
    }
}

/// The text encoders of a pipeline. Weights stay mapped; [`TextEncoders::encode`] has one layer in memory at a time, in f32.
#[derive(Debug)]
pub struct TextEncoders {
    clip: [(PromptTokenizer, ClipEncoder); 2],
    t5: Option<(PromptTokenizer, T5Encoder)>,
    joint_width: usize,
    device: Device,
}

/// The token ids of one prompt, for each encoder.
struct Tokens {
    clip: [Vec<u32>; 2],
    t5: Option<Vec<u32>>,
}

impl TextEncoders {
    pub(super) fn open(
        pipeline: &PipelineFolder,
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<Self> {
        if !(1..=MAX_T5_TOKENS).contains(&max_sequence_length) {
            let allowed = format!("it must be 1 to {MAX_T5_TOKENS}");
            return Err(Error::Argument(format!(
                "`calibration.max_sequence_length` is {max_sequence_length}: {allowed}"
            )));
        }
        let path = pipeline.path();
        let transformer = pipeline.transformer_config();
        // Both CLIP encoders read as many tokens as the first one's tokenizer says.
        let length = max_length(&path.join("tokenizer"))?;
        let [slow_l, slow_g] = pipeline.slow_tokenizers();
        let clip = |tokenizer: &str, encoder: &str, slow: bool| -> Result<(PromptTokenizer, ClipEncoder)> {
            let encoder = ClipEncoder::open(&path.join(encoder), length)?;
            Ok((PromptTokenizer::clip(&path.join(tokenizer), slow, length)?, encoder))
        };
        let clip =
            [clip("tokenizer", "text_encoder", slow_l)?, clip("tokenizer_2", "text_encoder_2", slow_g)?];
        let t5 = match pipeline.has_t5() {
            true => {
                let tokenizer = PromptTokenizer::t5(&path.join("tokenizer_3"), max_sequence_length)?;
                Some((
                    tokenizer,
                    T5Encoder::open(&path.join("text_encoder_3"), transformer.joint_attention_dim)?,
                ))
            }
            false => None,
        };
        let encoders =
            Self { clip, t5, joint_width: transformer.joint_attention_dim, device: device.clone() };
        encoders.check_widths(transformer.pooled_projection_dim)?;
        Ok(encoders)
    }

    fn check_widths(&self, pooled_width: usize) -> Result<()> {
        let [(_, l), (_, g)] = &self.clip;
        let problem = if l.width() + g.width() > self.joint_width {
            format!(
                "widths {} and {} exceed the transformer's `joint_attention_dim`, {}",
                l.width(),
                g.width(),
                self.joint_width
            )
        } else if l.pooled_width() + g.pooled_width() != pooled_width {
            let widths = (l.pooled_width(), g.pooled_width());
            format!(
                "projections {} and {} are not the transformer's `pooled_projection_dim`, {pooled_width}",
                widths.0, widths.1
            )
        } else {
            return Ok(());
        };
        Err(Error::content(g.folder(), format!("does not fit beside `text_encoder`: their {problem}")))
    }

    /// The files that the encoders and their tokenizers were opened from.
    pub fn files(&self) -> Vec<PathBuf> {
        let clip = self.clip.iter().flat_map(|(t, encoder)| t.files().iter().cloned().chain(encoder.files()));
        let t5 = self.t5.iter().flat_map(|(t, encoder)| t.files().iter().cloned().chain(encoder.files()));
        clip.chain(t5).collect()
    }

    /// The number of text tokens of a [`Conditioning`].
    pub fn tokens(&self) -> usize {
        let clip = self.clip[0].0.length();
        // As in diffusers, zeros in the place of a missing T5 are as many as CLIP's tokens.
        clip + self.t5.as_ref().map_or(clip, |(tokenizer, _)| tokenizer.length())
    }

    /// The token ids of a prompt: CLIP-L, CLIP-G, and T5 where the pipeline has it.
    ///
    /// # Errors
    /// When a tokenizer cannot read the prompt.
    pub fn token_ids(&self, prompt: &str) -> Result<Vec<Vec<u32>>> {
        let Tokens { clip: [l, g], t5 } = self.tokenise(prompt)?;
        Ok([Some(l), Some(g), t5].into_iter().flatten().collect())
    }

    /// Encodes prompts, in f32, and hands each distinct one to `keep` as soon as it is there. A prompt is encoded by itself, so that
    /// its conditioning does not depend on the others. `progress` is told the arithmetic done and that to do, in multiply-adds.
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
        let tokens: Vec<Tokens> =
            distinct.iter().map(|prompt| self.tokenise(prompt)).collect::<Result<_>>()?;
        let (mut done, total) = (0, self.work_of_a_prompt().saturating_mul(tokens.len() as u64));
        let chunk = (CHUNK_BYTES / (self.tokens() * self.joint_width * size_of::<f32>())).max(1);
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

    fn tokenise(&self, prompt: &str) -> Result<Tokens> {
        let [(l, _), (g, _)] = &self.clip;
        let t5 = self.t5.as_ref().map(|(tokenizer, _)| tokenizer.encode(prompt)).transpose()?;
        Ok(Tokens { clip: [l.encode(prompt)?, g.encode(prompt)?], t5 })
    }

    fn work_of_a_prompt(&self) -> u64 {
        let clip: u64 = self.clip.iter().map(|(tokenizer, encoder)| encoder.work(tokenizer.length())).sum();
        clip + self.t5.as_ref().map_or(0, |(tokenizer, encoder)| encoder.work(tokenizer.length()))
    }

    fn encode_chunk(&self, prompts: &[Tokens], progress: &mut dyn FnMut(u64)) -> Result<Vec<Conditioning>> {
        let [(_, l), (_, g)] = &self.clip;
        let ids = |which: usize| -> Vec<&[u32]> {
            prompts.iter().map(|tokens| tokens.clip[which].as_slice()).collect()
        };
        let clip_l = l.encode(&ids(0), &self.device, progress)?;
        let clip_g = g.encode(&ids(1), &self.device, progress)?;
        let t5 = match &self.t5 {
            Some((_, encoder)) => {
                let ids: Vec<&[u32]> = prompts.iter().filter_map(|tokens| tokens.t5.as_deref()).collect();
                encoder.encode(&ids, &self.device, progress)?
            }
            None => {
                let shape = (self.clip[0].0.length(), self.joint_width);
                vec![Tensor::zeros(shape, DType::F32, &self.device)?; prompts.len()]
            }
        };
        let parts = clip_l.into_iter().zip(clip_g).zip(t5);
        parts.map(|((l, g), t5)| self.join(&l, &g, &t5)).collect()
    }

    fn join(&self, l: &clip::Encoded, g: &clip::Encoded, t5: &Tensor) -> Result<Conditioning> {
        let clip = Tensor::cat(&[&l.hidden, &g.hidden], 1)?;
        let clip = clip.pad_with_zeros(1, 0, self.joint_width - clip.dim(1)?)?;
        Ok(Conditioning {
            text: Tensor::cat(&[&clip, t5], 0)?,
            pooled: Tensor::cat(&[&l.pooled, &g.pooled], 0)?,
        })
    }
}

fn missing(prompt: &str) -> Error {
    Error::Argument(format!("the prompt \"{prompt}\" was not encoded"))
}

/// An error where an encoder's output cannot be computed with.
fn check_finite(output: &Tensor, weights: &Weights) -> Result<()> {
    // A sum is finite only if every number in it is.
    match output.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        true => Ok(()),
        false => Err(Error::content(
            weights.folder(),
            "computes embeddings that are not finite: its weights are damaged",
        )),
    }
}

#[cfg(test)]
mod tests;

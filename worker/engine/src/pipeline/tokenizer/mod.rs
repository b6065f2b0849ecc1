//! From a prompt to token ids of a fixed number, as transformers' CLIP and T5 tokenizers make them.

mod clip;
mod limits;
mod special;
mod vectors;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use tokenizers::tokenizer::PostProcessor;
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use self::special::SpecialTokens;
use self::vectors::FurtherVectors;
use super::keys::Keys;
use crate::contained::contained;
use crate::{Error, Result};

/// A tokenizer's configuration.
const CONFIG: &str = "tokenizer_config.json";

/// Bounds the time that one prompt can take; encoders read a few hundred tokens of it.
const MAX_PROMPT_BYTES: usize = 64 << 10;

/// A tokenizer of one text encoder. Every prompt becomes the same number of ids: a longer one is cut, its end token kept; a
/// shorter one is filled up with the padding token.
#[derive(Debug)]
pub struct PromptTokenizer {
    folder: PathBuf,
    files: Vec<PathBuf>,
    tokenizer: Tokenizer,
    /// None where prompts are read as they are.
    vectors: FurtherVectors,
    length: usize,
}

impl PromptTokenizer {
    /// Loads a CLIP tokenizer from `tokenizer.json`, or from `vocab.json` and `merges.txt` where there is none, for prompts of `length`
    /// tokens. It reads them as transformers 5 does, where `CLIPTokenizer` and `CLIPTokenizerFast` are one class. In transformers 4
    /// `CLIPTokenizer` was a slow class, which put spaces around Chinese characters, dropped control characters and knew the Greek final
    /// sigma: there, prompts with such characters get other ids.
    ///
    /// # Errors
    /// When the files are missing, do not make a tokenizer, or make one that can fill the memory with one prompt.
    pub fn clip(folder: &Path, length: usize) -> Result<Self> {
        let special = SpecialTokens::read(folder, &clip::DEFAULT_TOKENS)?;
        let whole = folder.join("tokenizer.json");
        let parts = ["vocab.json", "merges.txt"].map(|name| folder.join(name));
        // This path may be anything. One that is not a file is refused when it is opened.
        if whole.exists() {
            return Self::new(folder, read_whole(&whole)?, &special, length, [whole]);
        }
        let tokenizer = clip::from_vocabulary(folder, &parts, &special)?;
        Self::new(folder, tokenizer, &special, length, parts)
    }

    /// Loads a T5 tokenizer from `tokenizer.json`, for prompts of `length` tokens.
    ///
    /// # Errors
    /// When the file is missing, does not make a tokenizer, or makes one that can fill the memory with one prompt.
    pub fn t5(folder: &Path, length: usize) -> Result<Self> {
        let special = SpecialTokens::read(folder, &T5_TOKENS)?;
        let whole = folder.join("tokenizer.json");
        if !whole.exists() {
            let problem = "has no tokenizer.json (a SentencePiece model alone is not supported): save the tokenizer once with \
                           transformers' T5TokenizerFast";
            return Err(Error::content(folder, problem));
        }
        Self::new(folder, read_whole(&whole)?, &special, length, [whole])
    }

    /// The tokenizer of a folder whose vocabulary was read from `files`.
    fn new(
        folder: &Path,
        mut tokenizer: Tokenizer,
        special: &SpecialTokens,
        length: usize,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self> {
        let unusable =
            |e: &dyn std::fmt::Display| Error::content(folder, format!("does not make a tokenizer: {e}"));
        check_sides(folder)?;
        special.add_to(&mut tokenizer, folder)?;
        let framing = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if length <= framing {
            return Err(unusable(&format!("{length} tokens leave no room for a prompt")));
        }
        let pad_id = special.id(&tokenizer, special.pad(), folder)?;
        tokenizer
            .with_truncation(Some(TruncationParams { max_length: length, ..TruncationParams::default() }))
            .map_err(|e| unusable(&e))?;
        tokenizer.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(length),
            pad_id,
            pad_token: special.pad().to_owned(),
            ..PaddingParams::default()
        }));
        let files = special.files().iter().cloned().chain(files).collect();
        let vectors = FurtherVectors::default();
        let loaded = Self { folder: folder.to_owned(), files, tokenizer, vectors, length };
        // A damaged file shows itself here rather than at the first prompt.
        loaded.encode("")?;
        Ok(loaded)
    }

    /// The same tokenizer, which reads a textual inversion of several vectors as all of them.
    #[must_use]
    pub fn with_further_vectors(mut self) -> Self {
        self.vectors = FurtherVectors::of(&self.tokenizer);
        self
    }

    /// The files it was loaded from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The number of ids of every prompt.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The ids of a prompt.
    ///
    /// # Errors
    /// When the prompt is longer than 64 KiB, or the tokenizer has no token for a part of it.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        if prompt.len() > MAX_PROMPT_BYTES {
            return Err(too_long(prompt, &format!("has {} bytes", prompt.len())));
        }
        let cannot = |e: &dyn std::fmt::Display| {
            Error::content(&self.folder, format!("cannot read the prompt \"{prompt}\": {e}"))
        };
        let encode = |prompt: &str, framed| {
            contained(|| self.tokenizer.encode(prompt, framed).map_err(|e| cannot(&e)))
                .unwrap_or_else(|| Err(cannot(&"the tokenizer's files are damaged")))
        };
        let written = if self.vectors.is_empty() {
            Cow::Borrowed(prompt)
        } else {
            let found = encode(prompt, false)?;
            let long = |bytes| too_long(prompt, &format!("has {bytes} bytes with all vectors of its tokens"));
            Cow::Owned(self.vectors.written_out(prompt, found.get_tokens()).map_err(long)?)
        };
        let encoding = encode(&written, true)?;
        if !encoding.get_overflowing().is_empty() {
            tracing::debug!(
                prompt,
                tokens = self.length,
                "the prompt is cut: it has more tokens than the encoder reads"
            );
        }
        match encoding.get_ids() {
            ids if ids.len() == self.length => Ok(ids.to_vec()),
            ids => Err(cannot(&format!("it has {} tokens in place of {}", ids.len(), self.length))),
        }
    }
}

fn too_long(prompt: &str, has: &str) -> Error {
    let start: String = prompt.chars().take(40).collect();
    Error::Argument(format!("the prompt that begins \"{start}\" {has}: at most {MAX_PROMPT_BYTES} are read"))
}

/// Reads a `tokenizer.json`. On some damaged ones, such as a SentencePiece normaliser that is cut short, the library panics.
fn read_whole(path: &Path) -> Result<Tokenizer> {
    contained(|| limits::read_bounded(path))
        .unwrap_or_else(|| Err(Error::content(path, "does not make a tokenizer: it is damaged")))
}

/// Refuses a tokenizer that fills up or cuts a prompt at its start: no pipeline of this class has one.
fn check_sides(folder: &Path) -> Result<()> {
    let keys = Keys::open(&folder.join(CONFIG))?;
    for key in ["padding_side", "truncation_side"] {
        if keys.text(key)?.is_some_and(|side| side != "right") {
            return Err(keys.refuse(key, "obsdiff supports \"right\""));
        }
    }
    Ok(())
}

const T5_TOKENS: special::Defaults =
    special::Defaults { bos: None, eos: Some("</s>"), unk: Some("<unk>"), pad: "<pad>" };

/// The longest prompt that the tokenizer in `folder` says its encoder takes.
///
/// # Errors
/// When `tokenizer_config.json` does not say so.
pub(super) fn max_length(folder: &Path) -> Result<usize> {
    let keys = Keys::open(&folder.join(CONFIG))?;
    // transformers writes 1e30 if no length was set.
    let length = keys.size("model_max_length")?;
    keys.required("model_max_length", length)
}

#[cfg(test)]
mod tests;

//! CLIP's byte-level BPE, from the vocabulary and merges that OpenAI published.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use obsdiff_files::read_regular;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::limits::check_tokens;
use super::special::{Defaults, SpecialTokens};
use crate::checkpoint::read_json;
use crate::{Error, Result};

pub(super) const DEFAULT_TOKENS: Defaults = Defaults {
    bos: Some("<|startoftext|>"),
    eos: Some("<|endoftext|>"),
    unk: Some("<|endoftext|>"),
    pad: "<|endoftext|>",
};

/// Contractions, runs of letters, single digits, runs of anything else.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Ends the last token of a word.
const END_OF_WORD: &str = "</w>";

/// Merges that CLIP reads: its vocabulary less 256 bytes and 2 special tokens. Later lines are left aside.
const MAX_MERGES: usize = 49_152 - 256 - 2;

/// A CLIP vocabulary's merges take 0.5 MB.
const MAX_MERGES_BYTES: u64 = 16 << 20;

/// Builds the tokenizer of the files `vocab_file` and `merges`, which lie in `folder`.
pub(super) fn from_vocabulary(
    folder: &Path,
    [vocab_file, merges]: &[PathBuf; 2],
    special: &SpecialTokens,
) -> Result<Tokenizer> {
    let unusable =
        |e: &dyn std::fmt::Display| Error::content(folder, format!("does not make a tokenizer: {e}"));
    let vocab: BTreeMap<String, u32> = read_json(vocab_file)?;
    check_tokens(vocab.keys().map(String::as_str)).map_err(|problem| Error::content(vocab_file, problem))?;
    let pairs = read_merges(merges)?;
    if let Some(token) = unmade(&vocab, &pairs, special) {
        let problem = format!(
            "makes no token \"{token}\", which vocab.json has: it is cut off, or belongs to another vocabulary; copy or download both again"
        );
        return Err(Error::content(merges, problem));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), pairs)
        .unk_token(special.unk().to_owned())
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .build()
        .map_err(|e| unusable(&e))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(Some(normalizer().map_err(|e| unusable(&e))?)).map_err(|e| unusable(&e))?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Removed, true);
    let words = words.map_err(|e| unusable(&e))?;
    let bytes = ByteLevel::new(false, true, false);
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![words.into(), bytes.into()])));
    let frame = |token: &str| Ok::<_, Error>((token.to_owned(), special.id(&tokenizer, token, folder)?));
    let framing = RobertaProcessing::new(frame(special.eos())?, frame(special.bos())?);
    tokenizer.with_post_processor(Some(framing.trim_offsets(false).add_prefix_space(false)));
    Ok(tokenizer)
}

/// What happens to a text before it is cut into words.
fn normalizer() -> tokenizers::Result<Sequence> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    Ok(Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()]))
}

/// Reads pairs, one a line, after a first line that says the version.
fn read_merges(path: &Path) -> Result<Merges> {
    let text = read_regular(path, MAX_MERGES_BYTES).map_err(|e| Error::file(path, e))?;
    let text = String::from_utf8(text).map_err(|_| Error::content(path, "is not UTF-8 text"))?;
    let lines = text.trim().lines().enumerate().skip(1).take(MAX_MERGES);
    lines.map(|(i, line)| read_merge(line).ok_or_else(|| not_a_pair(path, i + 1))).collect()
}

/// The first token of a vocabulary that no pair makes: that is neither a byte, at a word's end or elsewhere, nor a special token.
fn unmade<'a>(
    vocab: &'a BTreeMap<String, u32>,
    pairs: &[(String, String)],
    special: &SpecialTokens,
) -> Option<&'a str> {
    let made: HashSet<String> = pairs.iter().map(|(left, right)| format!("{left}{right}")).collect();
    let is_byte = |token: &str| token.strip_suffix(END_OF_WORD).unwrap_or(token).chars().count() == 1;
    let is_default = |token: &str| [DEFAULT_TOKENS.bos, DEFAULT_TOKENS.eos].contains(&Some(token));
    let is_special = |token: &str| special.contains(token) || is_default(token);
    let unmade = |token: &&str| !made.contains(*token) && !is_byte(token) && !is_special(token);
    vocab.keys().map(String::as_str).find(unmade)
}

fn read_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.trim().split_once(' ')?;
    (!left.is_empty() && !right.is_empty() && !right.contains(' '))
        .then(|| (left.to_owned(), right.to_owned()))
}

fn not_a_pair(path: &Path, line: usize) -> Error {
    Error::content(path, format!("line {line} is not a pair of tokens with a space between them"))
}

//! How much a tokenizer's files may make of a prompt.
//!
//! A `tokenizer.json` is a program: steps that run one after another, some of which put a text in the place of a letter. A few kilobytes
//! of it can make terabytes of one prompt. So all steps together may lengthen a text by a small factor only, which is checked before any of
//! them runs. What goes with each token into an encoded prompt is bounded too.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;
use tokenizers::normalizers::Precompiled;

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// The most bytes that the steps may make of one byte of a prompt, which is 16 MiB of the longest prompt. T5's make 176 at most, CLIP's 48:
/// figures of rare letters, while most prompts hardly grow.
const MAX_GROWTH: u64 = 256;

/// The most steps before the vocabulary is used. T5 and CLIP have five at most.
const MAX_STEPS: usize = 16;

/// The most bytes of a token. An encoded prompt holds the text of each of its tokens; the longest of CLIP and T5 have a few dozen.
const MAX_TOKEN_BYTES: usize = 512;

/// The most tokens beside the vocabulary. T5 has 103.
const MAX_ADDED_TOKENS: usize = 16_384;

/// The most bytes of JSON that say which tokens come before and after a prompt. T5 has 600.
const MAX_FRAMING_BYTES: usize = 16 << 10;

/// What is wrong with a file, and where in it.
type Checked<T> = std::result::Result<T, String>;

/// Reads a `tokenizer.json`. The library may panic on a damaged one.
///
/// # Errors
/// When it cannot be read, does not make a tokenizer, or can make too much of a prompt.
pub(super) fn read_bounded(path: &Path) -> Result<Tokenizer> {
    let file: Map<String, Value> = read_json(path)?;
    check(&file).map_err(|problem| Error::content(path, problem))?;
    // What was checked, in place of the text: of a key that is there twice, the two could be read differently.
    serde_json::from_value(Value::Object(file))
        .map_err(|e| Error::content(path, format!("is not the JSON expected here: {e}")))
}

/// Refuses a vocabulary with a token that is too long.
pub(super) fn check_tokens<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Checked<()> {
    match tokens.into_iter().map(str::len).find(|bytes| *bytes > MAX_TOKEN_BYTES) {
        Some(bytes) => Err(format!("has a token of {bytes} bytes: at most {MAX_TOKEN_BYTES} are read")),
        None => Ok(()),
    }
}

/// Refuses tokens beside the vocabulary that are too many, or one that is too long.
pub(super) fn check_added<'a>(
    key: &str,
    count: usize,
    tokens: impl IntoIterator<Item = &'a str>,
) -> Checked<()> {
    if count > MAX_ADDED_TOKENS {
        return Err(format!("`{key}` has {count} tokens: at most {MAX_ADDED_TOKENS} are read"));
    }
    check_tokens(tokens).map_err(of_key(key))
}

/// The text of a token beside the vocabulary.
pub(super) fn content(token: &Value) -> Option<&str> {
    token.get("content")?.as_str()
}

/// Puts a key before what is wrong with its value.
fn of_key(key: &str) -> impl FnOnce(String) -> String {
    move |problem| format!("`{key}` {problem}")
}

fn check(file: &Map<String, Value>) -> Checked<()> {
    let part = |key: &str| file.get(key).unwrap_or(&Value::Null);
    let mut steps = Steps { count: 0, growth: 1 };
    steps.add("normalizer", part("normalizer"), "normalizers", normalizer_growth)?;
    steps.add("pre_tokenizer", part("pre_tokenizer"), "pretokenizers", pre_tokenizer_growth)?;
    check_framing(part("post_processor"))?;
    let added = part("added_tokens").as_array().map(Vec::as_slice).unwrap_or_default();
    check_added("added_tokens", added.len(), added.iter().filter_map(content))?;
    check_model(part("model")).map_err(of_key("model"))
}

/// Bounds the texts that a vocabulary's model puts into an encoded prompt, or around each piece of one.
fn check_model(model: &Value) -> Checked<()> {
    for key in ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
        check_tokens(model.get(key).and_then(Value::as_str))?;
    }
    match model.get("vocab") {
        Some(Value::Object(ids)) => check_tokens(ids.keys().map(String::as_str)),
        Some(Value::Array(scores)) => check_tokens(scores.iter().filter_map(|entry| entry.get(0)?.as_str())),
        // The library refuses it.
        _ => Ok(()),
    }
}

/// The steps so far, and by how much they lengthen a text together.
struct Steps {
    count: usize,
    growth: u64,
}

impl Steps {
    /// Adds a step, or those in the `list` of one that is a sequence.
    fn add(&mut self, key: &str, step: &Value, list: &str, growth: StepGrowth) -> Checked<()> {
        if step.is_null() {
            return Ok(());
        }
        let kind = step.get("type").and_then(Value::as_str);
        if kind == Some("Sequence") {
            let steps = step.get(list).and_then(Value::as_array);
            for (number, step) in steps.into_iter().flatten().enumerate() {
                self.add(&format!("{key}.{list}[{number}]"), step, list, growth)?;
            }
            return Ok(());
        }
        self.count += 1;
        if self.count > MAX_STEPS {
            return Err(format!("`{key}` is one step too many: at most {MAX_STEPS} are run on a prompt"));
        }
        let Some(factor) = kind.and_then(|kind| growth(kind, step)) else {
            let found = step.get("type").map_or_else(|| "absent".to_owned(), Value::to_string);
            return Err(format!("`{key}.type` is {found}, but obsdiff knows no such step, or it is damaged"));
        };
        self.growth = self.growth.saturating_mul(factor);
        if self.growth > MAX_GROWTH {
            return Err(format!(
                "`{key}` and the steps before it can make a prompt {} times as long, which could fill the memory: at most {MAX_GROWTH} \
                 times is allowed. Use the file of the model that this one was made from",
                self.growth
            ));
        }
        Ok(())
    }
}

/// The most bytes that a step of a kind makes of one byte; none for a kind that is not known, or a step that is damaged. It may add a few
/// bytes more to a whole text.
type StepGrowth = fn(&str, &Value) -> Option<u64>;

fn normalizer_growth(kind: &str, step: &Value) -> Option<u64> {
    let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
    let bytes = |key: &str| text(key).len() as u64;
    Some(match kind {
        "Strip" | "StripAccents" | "Nmt" => 1,
        // The figures of these forms in UTF-8, from Unicode's FAQ on normalization.
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        // "Ⱥ" has two bytes, "ⱥ" three.
        "Lowercase" => 2,
        // Each byte that is not a letter's becomes a letter of two bytes.
        "ByteLevel" => 2,
        // Spaces around Chinese characters, NFD and lower case, where it is asked for them.
        "Bert" => 2 * 3 * 2,
        "Prepend" => 1 + bytes("prepend"),
        "Replace" => match step.get("pattern").and_then(|pattern| pattern.get("String")?.as_str()) {
            Some(pattern) if !pattern.is_empty() => bytes("content").div_ceil(pattern.len() as u64).max(1),
            // It may match between any two bytes, and replace none of them.
            _ => 1 + bytes("content"),
        },
        "Precompiled" => charsmap_growth(text("precompiled_charsmap"))?,
        _ => return None,
    })
}

fn pre_tokenizer_growth(kind: &str, step: &Value) -> Option<u64> {
    Some(match kind {
        // These cut a text into pieces.
        "BertPreTokenizer" | "Delimiter" | "Digits" | "FixedLength" | "Punctuation" | "Split"
        | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" => 1,
        // Two bytes for a byte, and for a space before each piece.
        "ByteLevel" => 4,
        // Takes the place of spaces, and comes before each piece.
        "Metaspace" => {
            1 + step.get("replacement").and_then(Value::as_str).map_or(0, |sign| sign.len() as u64)
        }
        _ => return None,
    })
}

/// The most bytes that SentencePiece's table of replacements makes of one byte. The table is base64 of: its length in bytes, 32-bit numbers
/// of a tree of what is replaced, and the replacements, each with a zero at its end.
fn charsmap_growth(text: &str) -> Option<u64> {
    let table = STANDARD.decode(text).ok()?;
    let (length, rest) = table.split_first_chunk::<4>()?;
    // The library reserves memory for so many numbers before it looks for them.
    let replacements = rest.get(u32::from_le_bytes(*length) as usize / 4 * 4..)?;
    let longest = replacements.split(|byte| *byte == 0).map(<[u8]>::len).max()?;
    let map = Precompiled::from(&table).ok()?;
    let growth = |text: String| map.transform(&text).map(|to| to.len().div_ceil(text.len()));
    // All that is replaced at once and has one or two bytes: letters, and the only pair of such.
    let short = (1..0x800).filter_map(char::from_u32).map(String::from).chain(["\r\n".to_owned()]);
    let short = short.filter_map(growth).max().unwrap_or_default();
    Some(short.max(longest.div_ceil(3)).max(1) as u64)
}

/// Refuses what puts a prompt between special tokens more than once: the library repeats all of it.
fn check_framing(processor: &Value) -> Checked<()> {
    let bytes = processor.to_string().len();
    if bytes > MAX_FRAMING_BYTES {
        return Err(format!("`post_processor` has {bytes} bytes: at most {MAX_FRAMING_BYTES} are read"));
    }
    if repeats_prompt(processor) {
        let problem = "`post_processor` has a template `single` in which the prompt is more than once";
        return Err(format!("{problem}: one \"Sequence\" is allowed"));
    }
    Ok(())
}

/// Whether a post-processor, or one in it, has a template with two prompts. The library knows a template by this key, whatever `type` says.
fn repeats_prompt(processor: &Value) -> bool {
    let list = |key: &str| processor.get(key).and_then(Value::as_array).into_iter().flatten();
    let prompts = list("single").filter(|piece| piece.get("Sequence").is_some()).count();
    prompts > 1 || list("processors").any(repeats_prompt)
}

#[cfg(test)]
mod tests;

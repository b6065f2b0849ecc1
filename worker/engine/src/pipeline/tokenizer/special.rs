//! A tokenizer's special tokens, as `tokenizer_config.json` and, in older folders, `special_tokens_map.json` give them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::CONFIG;
use super::limits::check_added;
use crate::pipeline::keys::Keys;
use crate::{Error, Result};

/// The tokens that a tokenizer's class uses when no file names them.
pub(super) struct Defaults {
    pub(super) bos: Option<&'static str>,
    pub(super) eos: Option<&'static str>,
    pub(super) unk: Option<&'static str>,
    pub(super) pad: &'static str,
}

/// Tokens that are found in a text before anything else is, and those that play a part.
pub(super) struct SpecialTokens {
    bos: Option<String>,
    eos: Option<String>,
    unk: Option<String>,
    pad: String,
    /// By id, where the file gives ids.
    added: BTreeMap<u32, AddedToken>,
    files: Vec<PathBuf>,
}

impl SpecialTokens {
    /// Reads the files in `folder`. Where `tokenizer_config.json` lists `added_tokens_decoder`, transformers leaves
    /// `special_tokens_map.json` aside; elsewhere the map comes first.
    pub(super) fn read(folder: &Path, defaults: &Defaults) -> Result<Self> {
        let mut files = vec![folder.join(CONFIG)];
        let config = Keys::open(&folder.join(CONFIG))?;
        let added = read_added(&config, folder)?;
        let map_path = folder.join("special_tokens_map.json");
        let map = if added.is_empty() && map_path.exists() {
            let map = Keys::open(&map_path)?;
            files.push(map_path);
            Some(map)
        } else {
            None
        };
        let token = |key: &str, default: Option<&str>| -> Result<Option<String>> {
            let mapped = map.as_ref().map_or(Ok(None), |map| read_content(map, key))?;
            let named = mapped.map_or_else(|| read_content(&config, key), |content| Ok(Some(content)))?;
            Ok(named.or_else(|| default.map(str::to_owned)))
        };
        Ok(Self {
            bos: token("bos_token", defaults.bos)?,
            eos: token("eos_token", defaults.eos)?,
            unk: token("unk_token", defaults.unk)?,
            pad: token("pad_token", Some(defaults.pad))?.unwrap_or_else(|| defaults.pad.to_owned()),
            added,
            files,
        })
    }

    /// The files that were read.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub(super) fn bos(&self) -> &str {
        self.bos.as_deref().unwrap_or_default()
    }

    pub(super) fn eos(&self) -> &str {
        self.eos.as_deref().unwrap_or_default()
    }

    pub(super) fn unk(&self) -> &str {
        self.unk.as_deref().unwrap_or_default()
    }

    pub(super) fn pad(&self) -> &str {
        &self.pad
    }

    /// Whether a token plays a part, or is found in a text before anything else is.
    pub(super) fn contains(&self, token: &str) -> bool {
        let parts = [self.bos(), self.eos(), self.unk(), self.pad()];
        parts.contains(&token) || self.added.values().any(|added| added.content == token)
    }

    /// The id of a special token.
    pub(super) fn id(&self, tokenizer: &Tokenizer, token: &str, folder: &Path) -> Result<u32> {
        let missing = || {
            Error::content(folder, format!("has no id for the special token \"{token}\" in its vocabulary"))
        };
        tokenizer.token_to_id(token).ok_or_else(missing)
    }

    /// Makes a tokenizer find these tokens, as transformers does when it loads one.
    pub(super) fn add_to(&self, tokenizer: &mut Tokenizer, folder: &Path) -> Result<()> {
        for (&id, token) in &self.added {
            let content = token.content.clone();
            add(tokenizer, token.clone(), folder)?;
            if tokenizer.token_to_id(&content) != Some(id) {
                let problem = format!(
                    "gives \"{content}\" the id {id} in `added_tokens_decoder`, but the vocabulary another"
                );
                return Err(Error::content(folder, problem));
            }
        }
        let parts = [self.bos.as_ref(), self.eos.as_ref(), self.unk.as_ref(), Some(&self.pad)];
        for content in parts.into_iter().flatten() {
            let known = self.added.values().any(|token| &token.content == content);
            // A token that the vocabulary does not hold would get a new id, for which the encoder has no embedding.
            if !known && tokenizer.token_to_id(content).is_some() {
                add(tokenizer, AddedToken::from(content.clone(), true), folder)?;
            }
        }
        Ok(())
    }
}

fn add(tokenizer: &mut Tokenizer, token: AddedToken, folder: &Path) -> Result<()> {
    let added =
        if token.special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) };
    added
        .map(drop)
        .map_err(|e| Error::content(folder, format!("has a special token that cannot be added: {e}")))
}

/// A token named by a string, or by an object with its `content`.
fn read_content(keys: &Keys, key: &str) -> Result<Option<String>> {
    let content = match keys.value(key) {
        None => return Ok(None),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        Some(value) => value.as_str(),
    };
    let content = content.filter(|content| !content.is_empty());
    content.map(|content| Some(content.to_owned())).ok_or_else(|| keys.refuse(key, "it must be a token"))
}

fn read_added(config: &Keys, folder: &Path) -> Result<BTreeMap<u32, AddedToken>> {
    let key = "added_tokens_decoder";
    let malformed = || config.refuse(key, "it must map ids to tokens");
    let Some(value) = config.value(key) else { return Ok(BTreeMap::new()) };
    let entries = value.as_object().ok_or_else(malformed)?;
    check_added(key, entries.values()).map_err(|problem| Error::content(folder.join(CONFIG), problem))?;
    let mut added = BTreeMap::new();
    for (id, token) in entries {
        let id = id.parse().map_err(|_| malformed())?;
        let content = token.get("content").and_then(Value::as_str).filter(|content| !content.is_empty());
        let flag = |name: &str, default: bool| match token.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| config.refuse(key, &format!("`{name}` of each token must be true or false"))),
        };
        let special = flag("special", false)?;
        let token = AddedToken::from(content.ok_or_else(malformed)?, special)
            .single_word(flag("single_word", false)?)
            .lstrip(flag("lstrip", false)?)
            .rstrip(flag("rstrip", false)?)
            .normalized(flag("normalized", !special)?);
        added.insert(id, token);
    }
    Ok(added)
}

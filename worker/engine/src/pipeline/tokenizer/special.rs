//! A tokenizer's special tokens, as `tokenizer_config.json` and, in older folders, `special_tokens_map.json` and `added_tokens.json` give
//! them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::CONFIG;
use super::limits::{check_added, content};
use crate::pipeline::keys::Keys;
use crate::{Error, Result};

/// The key of `tokenizer_config.json` that lists all of them since transformers 4.34.
const ADDED_KEY: &str = "added_tokens_decoder";
/// The file that gave the ids of those beside the vocabulary before: of textual inversions, for one.
const ADDED_FILE: &str = "added_tokens.json";

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
    /// By id, where a file gives ids.
    added: BTreeMap<u32, AddedToken>,
    /// What gives these ids.
    added_by: &'static str,
    files: Vec<PathBuf>,
}

impl SpecialTokens {
    /// Reads the files in `folder`. Where `tokenizer_config.json` lists `added_tokens_decoder`, transformers leaves the two older files
    /// aside; elsewhere `special_tokens_map.json` comes first.
    pub(super) fn read(folder: &Path, defaults: &Defaults) -> Result<Self> {
        let mut files = vec![folder.join(CONFIG)];
        let config = Keys::open(&folder.join(CONFIG))?;
        let is_listed = config.value(ADDED_KEY).is_some();
        let added = read_added(&config, folder)?;
        let map_path = folder.join("special_tokens_map.json");
        let map = if !is_listed && map_path.exists() {
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
        let mut special = Self {
            bos: token("bos_token", defaults.bos)?,
            eos: token("eos_token", defaults.eos)?,
            unk: token("unk_token", defaults.unk)?,
            pad: token("pad_token", Some(defaults.pad))?.unwrap_or_else(|| defaults.pad.to_owned()),
            added,
            added_by: ADDED_KEY,
            files,
        };
        let path = folder.join(ADDED_FILE);
        if !is_listed && path.exists() {
            special.read_ids(path, &config)?;
        }
        Ok(special)
    }

    /// Takes the ids of tokens from the older file. Those that play no part are found in a text as it is after normalization.
    fn read_ids(&mut self, path: PathBuf, config: &Keys) -> Result<()> {
        let ids = Keys::open(&path)?;
        check_added(ADDED_FILE, ids.names().count(), ids.names())
            .map_err(|problem| Error::content(&path, problem))?;
        let lists = ["additional_special_tokens", "extra_special_tokens"].map(|key| config.value(key));
        let further = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
        let mut special: HashSet<&str> =
            further.filter_map(|token| token.as_str().or_else(|| content(token))).collect();
        special.extend([self.bos(), self.eos(), self.unk(), self.pad()]);
        let mut added = BTreeMap::new();
        for name in ids.names() {
            let id = ids.required(name, ids.id(name)?)?;
            added.insert(id, AddedToken::from(name, special.contains(name)));
        }
        self.added = added;
        self.added_by = ADDED_FILE;
        self.files.push(path);
        Ok(())
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
        // What `tokenizer.json` says of a token comes before the older file.
        let held: HashSet<String> = match self.added_by {
            ADDED_FILE => {
                tokenizer.get_added_tokens_decoder().into_values().map(|held| held.content).collect()
            }
            _ => HashSet::new(),
        };
        for (&id, token) in &self.added {
            let content = token.content.clone();
            if !held.contains(&content) {
                add(tokenizer, token.clone(), folder)?;
            }
            if tokenizer.token_to_id(&content) != Some(id) {
                let by = self.added_by;
                let problem =
                    format!("gives \"{content}\" the id {id} in `{by}`, but the vocabulary another");
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
    let key = ADDED_KEY;
    let malformed = || config.refuse(key, "it must map ids to tokens");
    let Some(value) = config.value(key) else { return Ok(BTreeMap::new()) };
    let entries = value.as_object().ok_or_else(malformed)?;
    check_added(key, entries.len(), entries.values().filter_map(content))
        .map_err(|problem| Error::content(folder.join(CONFIG), problem))?;
    let mut added = BTreeMap::new();
    for (id, token) in entries {
        let id = id.parse().map_err(|_| malformed())?;
        let content = content(token).filter(|content| !content.is_empty());
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

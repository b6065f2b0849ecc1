//! Reading `transformer/config.json`.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::checkpoint::{quantised, read_json};
use crate::{Error, Result};

/// No known model comes near; larger sizes would only overflow.
const MAX_SIZE: usize = 1 << 16;

/// Blocks of one kind. No known model comes near: published ones have at most 38. The time to plan grows with the square of their number,
/// and is about a second here.
const MAX_LAYERS: usize = 1 << 10;

/// The sizes of one architecture's transformers.
pub(in crate::architecture) trait Configuration: DeserializeOwned {
    /// What its files may hold.
    const KEYS: ConfigKeys;

    /// What is wrong with the sizes, if anything is.
    fn problem(&self) -> Option<String>;
}

/// Reads `folder/config.json`.
///
/// # Errors
/// When the file cannot be read, names another class, lacks a size, holds an unknown key (it might change the arithmetic), or holds a
/// value that no such model can have.
pub(in crate::architecture) fn read<T: Configuration>(folder: &Path) -> Result<T> {
    let path = folder.join("config.json");
    let config: Result<T, String> = T::KEYS.read(read_json(&path)?);
    let checked = config.and_then(|config| config.problem().map_or(Ok(config), Err));
    checked.map_err(|problem| Error::content(&path, problem))
}

/// Checks that the sizes fit each other.
///
/// # Errors
/// Naming the first key whose value cannot be used.
pub(in crate::architecture) fn validate(config: &impl Configuration) -> Result<()> {
    let refuse = |problem| Err(Error::Argument(format!("transformer configuration: {problem}")));
    config.problem().map_or(Ok(()), refuse)
}

/// What a configuration may hold.
pub(in crate::architecture) struct ConfigKeys {
    /// The class of transformers as published.
    pub(in crate::architecture) class: &'static str,
    /// The class of transformers whose blocks differ.
    pub(in crate::architecture) pruned_class: &'static str,
    /// Keys whose values are whole numbers.
    pub(in crate::architecture) sizes: &'static [&'static str],
    /// Keys of other values.
    pub(in crate::architecture) others: &'static [&'static str],
    /// Keys of the sizes of blocks that differ.
    pub(in crate::architecture) block_sizes: &'static [&'static str],
}

impl ConfigKeys {
    /// The configuration of these keys; what is wrong with them in words.
    fn read<T: DeserializeOwned>(&self, keys: Map<String, Value>) -> Result<T, String> {
        let class = self.class;
        match keys.get("_class_name").and_then(Value::as_str) {
            Some(found) if found == class || found == self.pruned_class => {}
            Some(other) => {
                return Err(format!("`_class_name` is \"{other}\", but only \"{class}\" is supported here"));
            }
            None => return Err(format!("lacks `_class_name`, which should be \"{class}\"")),
        }
        if let Some(problem) = quantised(&keys) {
            return Err(problem);
        }
        // Names that start with an underscore are diffusers' notes.
        let own = || keys.iter().filter(|(key, _)| !key.starts_with('_'));
        let known =
            |key: &str| [self.sizes, self.others, self.block_sizes].iter().any(|keys| keys.contains(&key));
        if let Some((key, value)) = own().find(|(key, _)| !known(key)) {
            return Err(format!("key `{key}` = {value} is not known, and might change the arithmetic"));
        }
        let wrong = |key: &str, value: &Value| self.sizes.contains(&key) && !value.is_u64();
        if let Some((key, value)) = own().find(|(key, value)| wrong(key, value)) {
            return Err(format!("`{key}` is {value}, but must be a whole number"));
        }
        serde_json::from_value(Value::Object(keys)).map_err(|e| format!("is not usable: {e}"))
    }
}

/// What is wrong with numbers of `layers` or other `sizes` that no such model can have, or with the width of so many `heads` of so many
/// `features`.
pub(in crate::architecture) fn sizes_problem(
    layers: &[(&str, usize)],
    sizes: &[(&str, usize)],
    heads: usize,
    features: usize,
) -> Option<String> {
    for (sizes, most) in [(layers, MAX_LAYERS), (sizes, MAX_SIZE)] {
        if let Some((key, value)) = sizes.iter().find(|(_, value)| !(1..=most).contains(value)) {
            return Some(format!("`{key}` is {value}, but must lie within 1..={most}"));
        }
    }
    (heads * features > MAX_SIZE).then(|| {
        format!("`num_attention_heads` {heads} times `attention_head_dim` {features} is above {MAX_SIZE}")
    })
}

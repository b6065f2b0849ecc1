//! A configuration file's keys, each read with its type checked and its name in the error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{quantised, read_json};
use crate::{Error, Result};

/// No width, length or count in a pipeline's configuration is larger; products of two of them cannot overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The keys of one JSON object. Absent and `null` both read as `None`.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Keys {
    /// Reads a configuration file, which must hold an object.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = read_json(path)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The object that is a key's value, where the key is there.
    pub(crate) fn within(self, key: &str) -> Result<Self> {
        let object = self.typed(key, "it must be an object", Value::as_object)?.cloned();
        Ok(object.map(|map| Self { path: self.path.clone(), map }).unwrap_or(self))
    }

    /// Checks that it is of no component whose weights are quantised.
    pub(crate) fn check_not_quantised(&self) -> Result<()> {
        quantised(&self.map).map_or(Ok(()), |problem| Err(Error::content(&self.path, problem)))
    }

    /// The names of all keys, in alphabetical order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// A key's value.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error about a key: names the file, the key and its value, and says what is allowed.
    pub(crate) fn refuse(&self, key: &str, allowed: &str) -> Error {
        let value = self.map.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        Error::content(&self.path, format!("`{key}` is {value}, but {allowed}"))
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "it must be a string", Value::as_str)
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "it must be true or false", Value::as_bool)
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "it must be a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A whole number above zero.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "it must be a whole number from 1 to 16777216", as_size)
    }

    /// A token id.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "it must be a token id", |value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
    }

    /// A list of whole numbers above zero, with at least one entry.
    pub(crate) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let as_sizes = |value: &Value| {
            let sizes: Option<Vec<usize>> = value.as_array()?.iter().map(as_size).collect();
            sizes.filter(|sizes| !sizes.is_empty())
        };
        self.typed(key, "it must be a list of whole numbers from 1 to 16777216", as_sizes)
    }

    /// A string that has a default where the key is absent, as those of the methods below have.
    pub(crate) fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        self.or(key, self.text(key)?, default)
    }

    /// True or false; false where the key is `null`, as in Python.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let absent = default && !self.map.contains_key(key);
        Ok(self.flag(key)?.unwrap_or(absent))
    }

    /// A finite number.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        self.or(key, self.number(key)?, default)
    }

    /// A whole number above zero.
    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        self.or(key, self.size(key)?, default)
    }

    /// A list of whole numbers above zero.
    pub(crate) fn sizes_or(&self, key: &str, default: Vec<usize>) -> Result<Vec<usize>> {
        self.or(key, self.sizes(key)?, default)
    }

    /// A token id.
    pub(crate) fn id_or(&self, key: &str, default: u32) -> Result<u32> {
        self.or(key, self.id(key)?, default)
    }

    /// Refuses `null`: diffusers and transformers hand it to the component, in place of the default.
    fn or<T>(&self, key: &str, value: Option<T>, default: T) -> Result<T> {
        match value {
            None if self.map.contains_key(key) => {
                Err(self.refuse(key, "only a key that is left out has a default"))
            }
            value => Ok(value.unwrap_or(default)),
        }
    }

    /// A value without which the file cannot be used.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.refuse(key, "this key is needed"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.refuse(key, allowed)),
        }
    }
}

fn as_size(value: &Value) -> Option<usize> {
    let size = value.as_u64().filter(|size| (1..=MAX_SIZE).contains(size))?;
    usize::try_from(size).ok()
}

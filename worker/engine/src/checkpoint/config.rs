//! Configuration files: small JSON documents beside the weights.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Nothing a pipeline keeps in JSON is larger (a T5 `tokenizer.json` is 2.4 MB).
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file of at most 64 MiB.
///
/// # Errors
/// When the file cannot be read, is larger, or is not the JSON that `T` asks for.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    let mut text = String::new();
    file.take(MAX_JSON_BYTES + 1).read_to_string(&mut text).map_err(|e| Error::file(path, e))?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::content(path, format!("is larger than {} MiB", MAX_JSON_BYTES >> 20)));
    }
    serde_json::from_str(&text)
        .map_err(|e| Error::content(path, format!("is not the JSON expected here: {e}")))
}

//! Configuration files: small JSON documents beside the weights.

use std::path::Path;

use obsdiff_files::read_regular;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Nothing a pipeline keeps in JSON is larger (a T5 `tokenizer.json` is 2.4 MB).
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file of at most 64 MiB.
///
/// # Errors
/// When the file is not a regular one, cannot be read, is larger, or is not the JSON that `T` asks for.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_regular(path, MAX_JSON_BYTES).map_err(|e| Error::file(path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::content(path, format!("is not the JSON expected here: {e}")))
}

/// Why a component cannot be read whose configuration says that its weights are quantised; none where it does not.
pub(crate) fn quantised(config: &Map<String, Value>) -> Option<String> {
    let quantisation = config.get("quantization_config").filter(|value| !value.is_null())?;
    let method = quantisation
        .get("quant_method")
        .and_then(Value::as_str)
        .unwrap_or("by a method that it does not name");
    Some(is_quantised(method))
}

/// What is said of quantised weights: how they were quantised, and what to do.
pub(super) fn is_quantised(how: &str) -> String {
    format!("is quantised ({how}): load it in Python, dequantize() and save it again, and give that")
}

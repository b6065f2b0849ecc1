//! The architectures of transformers that obsdiff can prune: one folder each, and one line each in [`SUPPORTED`]. Nothing outside
//! this folder knows one by name.

pub mod flux;
mod interface;
pub mod sd3;
mod shared;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::checkpoint::read_json;
use crate::{Error, Result};

pub use crate::model::ops::MOST_KEPT_BYTES;
pub use interface::{
    Architecture, ConditioningWidths, Guidance, LatentLayout, PipelineDefaults, TransformerConfig,
};

/// Every architecture.
pub static SUPPORTED: [&Architecture; 2] = [&sd3::ARCHITECTURE, &flux::ARCHITECTURE];

/// Reads `folder/config.json` as its `_class_name` says.
///
/// # Errors
/// When the file cannot be read, its class is not supported, or the architecture refuses it.
pub fn read_config(folder: &Path) -> Result<Arc<dyn TransformerConfig>> {
    let path = folder.join("config.json");
    let keys: Map<String, Value> = read_json(&path)?;
    let class = keys.get("_class_name").and_then(Value::as_str);
    let Some(found) = class.and_then(|class| of_transformer(&SUPPORTED, class)) else {
        let class = keys.get("_class_name").map_or_else(|| "absent".to_owned(), Value::to_string);
        let classes = list(&SUPPORTED, |known| known.transformer_class);
        let problem = format!("`_class_name` is {class}, which is not supported (supported: {classes})");
        return Err(Error::content(&path, problem));
    };
    (found.read)(folder)
}

/// The architecture that has transformers of this class.
pub(crate) fn of_transformer(known: &[&'static Architecture], class: &str) -> Option<&'static Architecture> {
    known.iter().copied().find(|architecture| architecture.transformer_classes().contains(&class))
}

/// What `of` gives for each architecture, separated by commas.
pub(crate) fn list(known: &[&'static Architecture], of: fn(&Architecture) -> &'static str) -> String {
    known.iter().map(|architecture| of(architecture)).collect::<Vec<_>>().join(", ")
}

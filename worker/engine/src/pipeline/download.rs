//! Which files of a pipeline that lies elsewhere have to be here to work on it.

use std::path::Path;

use serde_json::Value;

use super::folder::{architecture_of, is_of_text};
use super::keys::Keys;
use crate::architecture;
use crate::checkpoint::Library;
use crate::{Error, Result};

/// How the names of files end that hold weights, or name the files that do, of formats that obsdiff does not read. Some can run code.
const OTHER_WEIGHTS: [&str; 14] = [
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".h5",
    ".gguf",
    ".sft",
];
/// How the names of safetensors end, and of what leads to several.
const SAFETENSORS: [&str; 2] = [".safetensors", ".safetensors.index.json"];

/// The index of a pipeline's components.
pub const INDEX_FILE: &str = "model_index.json";

/// What is done with the text encoders and tokenizers of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFiles {
    /// Nothing.
    None,
    /// They are read.
    Read,
    /// They are only copied, and may be of any kind.
    Copied,
}

/// Of the files of a pipeline, by their paths in it, those that belong to it: plain files beside its index, and all of the components
/// that the index names, without pickled weights and variants. `index` is the pipeline's index, which is here already.
///
/// # Errors
/// When the pipeline is of no kind that obsdiff supports, or a component that is read has weights, but none that are read.
pub fn files_of_pipeline<'n>(index: &Path, names: &[&'n str], text: TextFiles) -> Result<Vec<&'n str>> {
    let keys = Keys::open(index)?;
    let architecture = architecture_of(&keys, &architecture::SUPPORTED)?;
    let mut files = Vec::new();
    for name in names {
        let belongs = match name.split_once('/') {
            None => !name.starts_with('.') && !is_weights(name),
            Some((component, _)) => {
                is_loaded(&keys, component)
                    && (text != TextFiles::None || !is_of_text(architecture, component))
                    && is_read(name)
            }
        };
        if belongs {
            files.push(*name);
        }
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    let mut components: Vec<&str> = files.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
    components.dedup();
    for component in components {
        if text != TextFiles::Copied || !is_of_text(architecture, component) {
            check_weights(&keys, (folder, component), names, &files)?;
        }
    }
    Ok(files)
}

/// Of the files of a pipeline, the weights of its components that [`files_of_pipeline`] leaves out: pickled ones, and variants.
///
/// # Errors
/// When the index cannot be read.
pub fn weights_left_out<'n>(index: &Path, names: &[&'n str]) -> Result<Vec<&'n str>> {
    let keys = Keys::open(index)?;
    let left_out = |name: &&&str| {
        let loaded = name.split_once('/').is_some_and(|(component, _)| is_loaded(&keys, component));
        loaded && is_weights(name) && !is_read(name)
    };
    Ok(names.iter().filter(left_out).copied().collect())
}

/// Of the files of a pipeline, those of its transformer, and what describes the whole.
pub fn files_of_transformer<'n>(names: &[&'n str]) -> Vec<&'n str> {
    let belongs = |name: &&str| match name.split_once('/') {
        None => name.ends_with(".json") && !is_weights(name),
        Some((component, _)) => component == "transformer" && is_read(name),
    };
    names.iter().copied().filter(belongs).collect()
}

/// Whether diffusers loads a component: whether the index names a class of it.
pub(super) fn is_loaded(index: &Keys, component: &str) -> bool {
    match index.value(component) {
        Some(Value::Array(pair)) => !pair.iter().all(Value::is_null),
        found => found.is_some(),
    }
}

/// The library that loads a component.
fn library(index: &Keys, component: &str) -> Library {
    match index.value(component).and_then(|pair| pair.get(0)).and_then(Value::as_str) {
        Some("transformers") => Library::Transformers,
        _ => Library::Diffusers,
    }
}

/// Whether a file is none of weights that are never read.
fn is_read(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let is_variant =
        [Library::Diffusers, Library::Transformers].iter().any(|library| library.is_variant(file));
    !OTHER_WEIGHTS.iter().any(|end| file.ends_with(end)) && !is_variant
}

/// Whether a file holds weights, or names the files that do.
fn is_weights(name: &str) -> bool {
    SAFETENSORS.iter().chain(&OTHER_WEIGHTS).any(|end| name.ends_with(end))
}

/// Refuses a component that has weights, of which none are taken.
fn check_weights(
    index: &Keys,
    (folder, component): (&Path, &str),
    names: &[&str],
    files: &[&str],
) -> Result<()> {
    let of_weights = |name: &&&str| {
        name.split_once('/').is_some_and(|(folder, file)| folder == component && is_weights(file))
    };
    let left = names.iter().filter(of_weights).filter_map(|name| Some(name.split_once('/')?.1.to_owned()));
    let left: Vec<String> = left.collect();
    if left.is_empty() || files.iter().any(|name| of_weights(&name)) {
        return Ok(());
    }
    let problem = library(index, component)
        .only_others(&left)
        .unwrap_or_else(|| "has weights, but no safetensors, which alone obsdiff reads".to_owned());
    Err(Error::content(folder.join(component), problem))
}

#[cfg(test)]
mod tests;

//! Which files of a pipeline that lies elsewhere have to be here to work on it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::folder::{architecture_of, is_of_text};
use super::keys::Keys;
use crate::architecture;
use crate::checkpoint::{Library, read_json};
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

/// The libraries that save components.
const LIBRARIES: [Library; 2] = [Library::Diffusers, Library::Transformers];

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

/// The indexes of weights that lie beside files with the names of a variant, which they may name all the same. They have to be here before
/// it is asked which files belong to the pipeline.
pub fn weight_indexes<'n>(names: &[&'n str]) -> Vec<&'n str> {
    let variants: BTreeSet<&str> = names
        .iter()
        .filter(|name| is_variant(name))
        .filter_map(|name| Some(name.split_once('/')?.0))
        .collect();
    let is_wanted = |name: &&&str| {
        name.split_once('/').is_some_and(|(component, file)| variants.contains(component) && is_index(file))
    };
    names.iter().filter(is_wanted).copied().collect()
}

/// Of the files of a pipeline, by their paths in it, those that belong to it: plain files beside its index, and all of the components
/// that the index names, without pickled weights, and without variants that no index of weights names. `index` is the pipeline's index,
/// which is here already, and so are [`weight_indexes`].
///
/// # Errors
/// When the pipeline is of no kind that obsdiff supports, an index of weights cannot be read, or a component that is read has weights, but
/// none that are read.
pub fn files_of_pipeline<'n>(index: &Path, names: &[&'n str], text: TextFiles) -> Result<Vec<&'n str>> {
    let keys = Keys::open(index)?;
    let architecture = architecture_of(&keys, &architecture::SUPPORTED)?;
    let named = named_weights(index, names)?;
    let mut files = Vec::new();
    for name in names {
        let belongs = match name.split_once('/') {
            None => !name.starts_with('.') && !is_weights(name),
            Some((component, _)) => {
                is_loaded(&keys, component)
                    && (text != TextFiles::None || !is_of_text(architecture, component))
                    && is_read(name, &named)
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
/// When an index cannot be read.
pub fn weights_left_out<'n>(index: &Path, names: &[&'n str]) -> Result<Vec<&'n str>> {
    let keys = Keys::open(index)?;
    let named = named_weights(index, names)?;
    let left_out = |name: &&&str| {
        let loaded = name.split_once('/').is_some_and(|(component, _)| is_loaded(&keys, component));
        loaded && is_weights(name) && !is_read(name, &named)
    };
    Ok(names.iter().filter(left_out).copied().collect())
}

/// Of the files of a pipeline, those of its transformer, and what describes the whole. `index` is as for [`files_of_pipeline`].
///
/// # Errors
/// When an index of weights cannot be read.
pub fn files_of_transformer<'n>(index: &Path, names: &[&'n str]) -> Result<Vec<&'n str>> {
    let named = named_weights(index, names)?;
    let belongs = |name: &&str| match name.split_once('/') {
        None => name.ends_with(".json") && !is_weights(name),
        Some((component, _)) => component == "transformer" && is_read(name, &named),
    };
    Ok(names.iter().copied().filter(belongs).collect())
}

/// The files that indexes of weights name, by their paths in the pipeline, as far as these indexes are here.
fn named_weights(index: &Path, names: &[&str]) -> Result<BTreeSet<String>> {
    let folder = index.parent().unwrap_or(Path::new(""));
    let mut named = BTreeSet::new();
    for name in weight_indexes(names) {
        let (Some((component, _)), path) = (name.split_once('/'), folder.join(name)) else { continue };
        if !path.exists() {
            continue;
        }
        let weights: Map<String, Value> = read_json(&path)?;
        let shards = weights.get("weight_map").and_then(Value::as_object).into_iter().flat_map(Map::values);
        named.extend(shards.filter_map(Value::as_str).map(|shard| format!("{component}/{shard}")));
    }
    Ok(named)
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

/// Whether a file is none of weights that are never read; `named` are those that an index names.
fn is_read(name: &str, named: &BTreeSet<String>) -> bool {
    !OTHER_WEIGHTS.iter().any(|end| name.ends_with(end)) && (!is_variant(name) || named.contains(name))
}

/// Whether a file has a name of a variant's weights.
fn is_variant(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    LIBRARIES.iter().any(|library| library.is_variant(file))
}

/// Whether a file of a component is the index of the weights that its library reads unless asked for others.
fn is_index(file: &str) -> bool {
    LIBRARIES.iter().any(|library| file.strip_prefix(library.stem()) == Some(SAFETENSORS[1]))
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

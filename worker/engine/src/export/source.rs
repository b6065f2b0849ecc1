//! The parts of a source's directory that belong to its pipeline.

use std::fs;
use std::path::{Path, PathBuf};

use obsdiff_files::open_regular;

use super::{RECORD_FILE, file_name};
use crate::checkpoint::{Library, read_json};
use crate::{Error, Result};

/// Folders of a pipeline that lie deeper are not counted.
const MAX_DEPTH: usize = 8;

/// What belongs to a pipeline at its top level: its index, the folders the index names, and plain files such as a licence; single-file
/// checkpoints and hidden files are left out.
pub(super) fn pipeline_parts(source: &Path) -> Result<Vec<String>> {
    let index: serde_json::Map<String, serde_json::Value> = read_json(&source.join("model_index.json"))?;
    let mut parts = Vec::new();
    for path in entries(source)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let belongs = if path.is_dir() {
            index.contains_key(name)
        } else {
            !name.starts_with('.') && !is_weights(name) && name != RECORD_FILE
        };
        if belongs {
            parts.push(file_name(&path));
        }
    }
    Ok(parts)
}

/// The entries of a folder, in order.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let paths = entries.map(|entry| Ok(entry.map_err(|e| Error::file(folder, e))?.path()));
    let mut paths = paths.collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether a file holds weights, or names the shards that do; those of a variant too.
pub(super) fn is_weights(file: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx"]
        .iter()
        .any(|end| file.ends_with(end))
        || file.ends_with(".safetensors.index.json")
        || (file.ends_with(".json") && file.contains(".bin."))
        || Library::Diffusers.is_variant(file)
}

/// Bytes that an export of the pipeline in `source` takes at most: everything in its folders.
///
/// # Errors
/// When a folder cannot be read, or something in it is neither a folder nor a regular file, so that it cannot be copied.
pub fn required_bytes(source: &Path) -> Result<u64> {
    let mut total = 0;
    let mut open: Vec<(PathBuf, usize)> =
        pipeline_parts(source)?.iter().map(|part| (source.join(part), 0)).collect();
    while let Some((path, depth)) = open.pop() {
        if !path.is_dir() {
            let file = open_regular(&path).and_then(|file| file.metadata());
            total += file.map_err(|e| Error::file(&path, e))?.len();
        } else if depth <= MAX_DEPTH {
            open.extend(entries(&path)?.into_iter().map(|path| (path, depth + 1)));
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_variant_stays_behind_with_its_shards() {
        for weights in [
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.safetensors.fp16.index.json",
            "diffusion_pytorch_model.bin.index.json",
            "diffusion_pytorch_model.bin.index.fp16.json",
            "diffusion_pytorch_model.bin.fp16.index.json",
        ] {
            assert!(is_weights(weights), "{weights}");
        }
        for other in ["config.json", "model_index.json", "README.md", "diffusion_pytorch_model.json"] {
            assert!(!is_weights(other), "{other}");
        }
    }
}

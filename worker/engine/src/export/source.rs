//! The parts of a source's directory that belong to its pipeline, and the symbolic links in it that an export follows.
//!
//! A model often comes from others, and its links with it: whoever made a link chose where it leads. The output is passed on, so a link
//! must not bring private files of the user into it. One rule holds for every walk and every copy:
//!
//! 1. A file is copied if it lies in one of the model's own places once all links are resolved. These are the model's folder; for a folder
//!    in the `snapshots` of a model in the Hugging Face cache, the `blobs` beside them; and for one of the `pipelines` of a model in
//!    obsdiff's cache, the `objects` beside them.
//! 2. Weights are large, so people share them between models: a link to weights is followed anywhere. The link must have the name of a
//!    safetensors file, or of an index of such files, and the file must begin as the one does, or be the other.
//! 3. People share whole components too: a folder that `model_index.json` names may be a link to anywhere, if there is a component's
//!    configuration in it. All files of such a folder must be of the kinds that components consist of, and lie in the folder itself or in
//!    the cache that it belongs to.
//! 4. A link to anything else is refused, with its name and its target: to a file elsewhere, and to any other folder.
//!
//! The transformer's weights are exempt. An export does not copy them: it writes what the job has read and pruned. Their index, which it
//! may copy, was read by the job too.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use obsdiff_files::open_regular;
use serde_json::{Map, Value};

use super::{RECORD_FILE, file_name};
use crate::checkpoint::{Library, read_json};
use crate::{Error, Result};

/// Deeper trees than this are not pipelines.
const MAX_DEPTH: usize = 8;

/// A pipeline has a few dozen files. A folder with more entries than this, together with those in it, is not one.
const MAX_ENTRIES: usize = 100_000;

/// The configurations by which a folder is known as a component: it has one of these files, with one of the keys below.
const CONFIGS: [&str; 4] =
    ["config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"];
const CONFIG_KEYS: [&str; 6] = [
    "_class_name",
    "architectures",
    "model_type",
    "tokenizer_class",
    "image_processor_type",
    "feature_extractor_type",
];

/// A folder or a file that belongs to a pipeline.
#[derive(Debug)]
pub(super) struct Part {
    /// Its path in the pipeline.
    pub(super) name: String,
    /// Where the source has it.
    pub(super) path: PathBuf,
    /// Whether it is a folder.
    pub(super) is_folder: bool,
}

impl Part {
    /// Whether it is one of the files of the transformer's weights, which an export does not copy.
    pub(super) fn is_transformer_weights(&self) -> bool {
        self.name.starts_with("transformer/") && is_weights(&file_name(&self.path))
    }
}

/// What belongs to a pipeline: the folders that its index names with all that is in them, and plain files beside the index such as a
/// licence; single-file checkpoints and hidden files beside it are left out. A folder comes before what is in it.
///
/// # Errors
/// When the index or a folder cannot be read, there are too many entries, or a link leads where the rule of this module does not allow it.
pub(super) fn pipeline_parts(source: &Path) -> Result<Vec<Part>> {
    Walk { parts: Vec::new(), entries_left: MAX_ENTRIES }.pipeline(source)
}

/// Bytes that an export of the pipeline in `source` takes at most: everything in its folders.
///
/// # Errors
/// When a folder cannot be read, something in it is neither a folder nor a regular file, so that it cannot be copied, or a symbolic link
/// leads to something that an export does not copy.
pub fn required_bytes(source: &Path) -> Result<u64> {
    let mut total: u64 = 0;
    for Part { path, is_folder, .. } in pipeline_parts(source)? {
        if !is_folder {
            let file = open_regular(&path).and_then(|file| file.metadata());
            total = total.saturating_add(file.map_err(|e| Error::file(&path, e))?.len());
        }
    }
    Ok(total)
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

/// Lists the parts of a pipeline.
struct Walk {
    parts: Vec<Part>,
    /// How many more entries of folders are looked at.
    entries_left: usize,
}

impl Walk {
    fn pipeline(mut self, source: &Path) -> Result<Vec<Part>> {
        let index: Map<String, Value> = read_json(&source.join("model_index.json"))?;
        let places = Places::of(source)?;
        for path in self.entries(source)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if path.is_dir() {
                if index.contains_key(name) {
                    self.add_folder(&path, name, &places.component(&path)?)?;
                }
            } else if !name.starts_with('.') && !is_weights(name) && name != RECORD_FILE {
                self.add_file(&path, name, &places)?;
            }
        }
        Ok(self.parts)
    }

    /// Adds a folder and all that is in it.
    fn add_folder(&mut self, folder: &Path, name: &str, places: &Places) -> Result<()> {
        if Path::new(name).components().count() > MAX_DEPTH {
            return Err(Error::content(folder, format!("lies more than {MAX_DEPTH} folders deep")));
        }
        self.parts.push(Part { name: name.to_owned(), path: folder.to_owned(), is_folder: true });
        for path in self.entries(folder)? {
            let name = format!("{name}/{}", file_name(&path));
            if path.is_dir() {
                places.check_folder(&path)?;
                self.add_folder(&path, &name, places)?;
            } else {
                self.add_file(&path, &name, places)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, name: &str, places: &Places) -> Result<()> {
        let part = Part { name: name.to_owned(), path: path.to_owned(), is_folder: false };
        if !part.is_transformer_weights() {
            places.check_file(path)?;
        }
        self.parts.push(part);
        Ok(())
    }

    /// The entries of a folder, in order.
    fn entries(&mut self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
            paths.push(entry.map_err(|e| Error::file(folder, e))?.path());
            self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| {
                let problem = format!(
                    "has too many files: a pipeline has at most {MAX_ENTRIES}. Move away what does not belong to it"
                );
                Error::content(folder, problem)
            })?;
        }
        paths.sort();
        Ok(paths)
    }
}

/// Where the files of a model, or of a component, lie.
#[derive(Clone, Debug)]
struct Places {
    /// Folders, by paths without links.
    folders: Vec<PathBuf>,
    /// Whether it is a component outside the model that has a link to it.
    is_shared: bool,
}

impl Places {
    /// The places of the model or the component in `folder`.
    fn of(folder: &Path) -> Result<Self> {
        let folder = resolved(folder)?;
        let cached = [hub_blobs(&folder), cached_objects(&folder)].into_iter().flatten();
        // A link in the place of such a folder could lead anywhere.
        let is_folder = |place: &PathBuf| place.symlink_metadata().is_ok_and(|found| found.is_dir());
        let folders = cached.filter(is_folder).chain([folder]).collect();
        Ok(Self { folders, is_shared: false })
    }

    /// The places of a component, whose folder, or a link to it, is in the model's folder.
    fn component(&self, folder: &Path) -> Result<Self> {
        let target = resolved(folder)?;
        if self.hold(&target) {
            Ok(self.clone())
        } else if is_component(&target) {
            Ok(Self { is_shared: true, ..Self::of(&target)? })
        } else {
            Err(refused(folder, &target))
        }
    }

    /// Refuses a folder below a component's unless it is the model's own.
    fn check_folder(&self, folder: &Path) -> Result<()> {
        if folder.is_symlink() || self.is_shared {
            return Err(refused(folder, &resolved(folder)?));
        }
        Ok(())
    }

    /// Refuses a file that an export may not copy, by the rule of this module.
    fn check_file(&self, path: &Path) -> Result<()> {
        let target = resolved(path)?;
        let is_own = self.hold(&target) && (!self.is_shared || is_of_component(&file_name(path)));
        if is_own || holds_weights(path)? { Ok(()) } else { Err(refused(path, &target)) }
    }

    fn hold(&self, target: &Path) -> bool {
        self.folders.iter().any(|folder| target.starts_with(folder))
    }
}

/// A path without links.
fn resolved(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::file(path, e))
}

fn refused(path: &Path, target: &Path) -> Error {
    let problem = format!(
        "leads by a symbolic link to {}, which obsdiff does not copy into an output, since it could be a private file: put a copy in the \
         place of the link if it belongs to the model, or remove the link",
        target.display()
    );
    Error::content(path, problem)
}

/// `models--OWNER--NAME/blobs` for a folder in `models--OWNER--NAME/snapshots`.
fn hub_blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.ancestors().skip(1).find(|place| place.ends_with("snapshots"))?;
    let model = snapshots.parent()?;
    file_name(model).starts_with("models--").then(|| model.join("blobs"))
}

/// `MODEL/objects` for a folder `MODEL/pipelines/FILES` of obsdiff's cache.
fn cached_objects(folder: &Path) -> Option<PathBuf> {
    let pipelines = folder.parent().filter(|parent| parent.ends_with("pipelines"))?;
    let model = pipelines.parent()?;
    (has_digest_name(folder) && has_digest_name(model)).then(|| model.join("objects"))
}

/// Whether a folder has a name such as the cache gives: 32 hexadecimal digits.
fn has_digest_name(folder: &Path) -> bool {
    let name = file_name(folder);
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a folder holds the configuration of a component.
fn is_component(folder: &Path) -> bool {
    let has_key = |config: Map<String, Value>| CONFIG_KEYS.iter().any(|key| config.contains_key(*key));
    CONFIGS.iter().any(|name| read_json(&folder.join(name)).is_ok_and(has_key))
}

/// Whether components consist of files with such names: weights, configurations, vocabularies.
fn is_of_component(file: &str) -> bool {
    let is_vocabulary = file.ends_with(".model") || ["merges.txt", "vocab.txt"].contains(&file);
    is_weights(file) || file.ends_with(".json") || is_vocabulary
}

/// Whether a file holds weights, or the index of such files, by its name and its content.
fn holds_weights(path: &Path) -> Result<bool> {
    let name = file_name(path);
    if name.ends_with(".safetensors.index.json") {
        let is_index = |index: Map<String, Value>| index.contains_key("weight_map");
        return Ok(read_json(path).is_ok_and(is_index));
    }
    Ok(name.ends_with(".safetensors") && begins_as_safetensors(path)?)
}

/// Whether a file begins with the length of a header that fits into it, and with the header's first sign.
fn begins_as_safetensors(path: &Path) -> Result<bool> {
    let failed = |e| Error::file(path, e);
    let file = open_regular(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut start = Vec::new();
    file.take(9).read_to_end(&mut start).map_err(failed)?;
    let start = start.split_first_chunk::<8>();
    Ok(matches!(start, Some((length, [b'{'])) if u64::from_le_bytes(*length) < bytes))
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

    #[test]
    fn a_walk_ends_at_a_number_of_entries() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("vae")).unwrap();
        fs::write(root.path().join("model_index.json"), r#"{"vae": ["diffusers", "X"]}"#).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(root.path().join("vae").join(name), "").unwrap();
        }
        let walk = |entries_left| Walk { parts: Vec::new(), entries_left }.pipeline(root.path());
        let names: Vec<_> = walk(5).unwrap().into_iter().map(|part| part.name).collect();
        assert_eq!(names, ["model_index.json", "vae", "vae/a", "vae/b", "vae/c"]);
        let error = walk(4).unwrap_err().to_string();
        assert!(error.contains("vae: has too many files: a pipeline has at most 100000"), "{error}");
    }
}

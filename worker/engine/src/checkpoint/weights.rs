//! Weights of one component of a pipeline: a single safetensors file, or shards named by an index.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};
use obsdiff_files::OnProgress;
use serde::Deserialize;

use super::config::is_quantised;
use super::library::Files;
use super::{Library, TensorFile, read_json};
use crate::{Error, Result};

/// Bytes of a tensor that are in memory at once while it is copied.
const COPIED_AT_ONCE: usize = 4 << 20;

/// How the names of tensors end by which quantised weights have to be multiplied: of transformers, bitsandbytes and ComfyUI.
const SCALES: [&str; 5] = ["scale", "scale_inv", "scale_weight", "SCB", "absmax"];

/// A component's tensors by name, read when asked for.
pub struct Weights {
    folder: PathBuf,
    index: Option<PathBuf>,
    files: Vec<TensorFile>,
    entries: BTreeMap<String, TensorEntry>,
    on_read: OnceLock<Arc<OnProgress>>,
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("files", &self.files).field("tensors", &self.entries.len()).finish()
    }
}

/// Where a tensor lies, and what it is.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    file: usize,
    bytes: Range<usize>,
    dtype: DType,
    shape: Vec<usize>,
}

impl TensorEntry {
    /// Index of the file that holds the tensor, in the order of [`Weights::files`].
    pub fn file(&self) -> usize {
        self.file
    }

    /// The bytes it takes in its file.
    pub fn bytes(&self) -> Range<usize> {
        self.bytes.clone()
    }

    /// The stored type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The stored shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the weights that `library` reads from `folder`: one safetensors file, or the shards that an index names. Only headers
    /// are read; each is checked whole: offsets, sizes, types.
    ///
    /// # Errors
    /// When there are none, when a file is truncated or hostile, or when a shard lacks a tensor the index promises.
    pub fn open(folder: &Path, library: Library) -> Result<Self> {
        match library.find(folder)? {
            Files::Whole(file) => Self::open_file(&file),
            Files::Index(index) => Self::open_index(&index),
        }
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// When the file is missing, truncated or hostile.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self::empty(path);
        weights.add_file(path)?;
        Ok(weights)
    }

    /// Opens the shards that an index names.
    ///
    /// # Errors
    /// When the index or a shard is missing, truncated or hostile, or a shard lacks a tensor the index promises.
    pub fn open_index(path: &Path) -> Result<Self> {
        let mut weights = Self { index: Some(path.to_owned()), ..Self::empty(path) };
        weights.add_shards(path)?;
        Ok(weights)
    }

    /// No tensors yet, of the folder in which `path` lies.
    fn empty(path: &Path) -> Self {
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Self { folder, index: None, files: Vec::new(), entries: BTreeMap::new(), on_read: OnceLock::new() }
    }

    /// Calls `on_read` after each read of a tensor, or of a piece of one, from now on, for somebody who has to know that the work goes on: from a slow disk a
    /// large model takes long. Only the first one that is given counts.
    pub fn call_on_read(&self, on_read: Arc<OnProgress>) {
        // A second one would be a fault of the program, and do no harm.
        let _ = self.on_read.set(on_read);
    }

    fn add_shards(&mut self, index_path: &Path) -> Result<()> {
        let index: Index = read_json(index_path)?;
        let mut shards: Vec<&String> = index.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        if shards.is_empty() {
            return Err(Error::content(index_path, "names no tensor in `weight_map`"));
        }
        for shard in &shards {
            let plain = Path::new(shard.as_str()).file_name().is_some_and(|name| name == shard.as_str());
            if !plain || !shard.ends_with(".safetensors") {
                let problem =
                    format!("names `{shard}`: a shard must be a .safetensors file in the same folder");
                return Err(Error::content(index_path, problem));
            }
            let file = self.folder.join(shard);
            if !file.exists() {
                let problem = format!(
                    "names `{shard}`, which is missing: complete the download, or remove the index if it is left over"
                );
                return Err(Error::content(index_path, problem));
            }
            self.add_file(&file)?;
        }
        for (name, shard) in &index.weight_map {
            let path = self.folder.join(shard);
            match self.entries.get(name) {
                Some(entry) if self.files[entry.file].path() == path => {}
                _ => return Err(Error::MissingTensor { path, name: name.clone() }),
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let (file, header, start) = TensorFile::open(path)?;
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let dtype = DType::try_from(info.dtype).map_err(|_| {
                Error::content(
                    path,
                    format!("tensor `{name}` has type {:?}, which is not supported", info.dtype),
                )
            })?;
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            let entry = TensorEntry { file: self.files.len(), bytes, dtype, shape: info.shape.clone() };
            if self.entries.contains_key(&name) {
                return Err(Error::content(
                    path,
                    format!("holds tensor `{name}`, which another shard holds too"),
                ));
            }
            self.entries.insert(name, entry);
        }
        self.files.push(file);
        Ok(())
    }

    /// Tensors of the file with this index, in the order in which they lie in it.
    pub fn entries_of(&self, file: usize) -> Vec<(&str, &TensorEntry)> {
        let mut entries: Vec<_> = self.entries().filter(|(_, entry)| entry.file == file).collect();
        entries.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
        entries
    }

    /// The folder the component was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The index that names the files, where one does.
    pub fn index(&self) -> Option<&Path> {
        self.index.as_deref()
    }

    /// The paths of all files that were opened, the index first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.index().into_iter().chain(self.files.iter().map(TensorFile::path))
    }

    /// The files of tensors, in the order of their names.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// Every tensor with its place, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Whether the component has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Checks that no tensor of 8 bits has scales beside it: its numbers alone are not the weights.
    ///
    /// # Errors
    /// When one has.
    pub fn check_not_quantised(&self) -> Result<()> {
        // `logit_scale` is a weight of a whole CLIP.
        let is_scale =
            |name: &&str| SCALES.iter().any(|end| name.ends_with(end)) && !name.ends_with("logit_scale");
        let has_bytes = self.entries.values().any(|entry| entry.dtype == DType::F8E4M3);
        match self.entries.keys().map(String::as_str).find(is_scale) {
            Some(scale) if has_bytes => Err(Error::content(
                &self.folder,
                is_quantised(&format!("fp8, with scales such as `{scale}`")),
            )),
            _ => Ok(()),
        }
    }

    /// A tensor's place, type and shape.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn entry(&self, name: &str) -> Result<&TensorEntry> {
        self.entries
            .get(name)
            .ok_or_else(|| Error::MissingTensor { path: self.folder.clone(), name: name.to_owned() })
    }

    /// Reads a tensor's bytes as stored: little-endian, row-major.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let bytes = self.files[entry.file].read(entry.bytes())?;
        self.was_read();
        Ok(bytes)
    }

    /// Passes some of a tensor's bytes on as they are stored, a few MiB at a time.
    ///
    /// # Errors
    /// When they cannot be read, and of `write`.
    pub fn copy(
        &self,
        entry: &TensorEntry,
        bytes: Range<usize>,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut next, end) = (entry.bytes.start + bytes.start, entry.bytes.start + bytes.end);
        while next < end {
            let piece = next..end.min(next + COPIED_AT_ONCE);
            write(&self.files[entry.file].read(piece.clone())?)?;
            next = piece.end;
            self.was_read();
        }
        Ok(())
    }

    /// Whether a tensor lies in a hole of its file: its bytes are zeros, which need not be read.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub fn in_hole(&self, entry: &TensorEntry) -> Result<bool> {
        self.files[entry.file].in_hole(&entry.bytes)
    }

    /// The place and type of a tensor of the shape that the configuration asks for.
    ///
    /// # Errors
    /// When it is missing, or has another shape.
    pub fn entry_of(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry> {
        let entry = self.entry(name)?;
        self.check_shape(name, entry, shape)?;
        Ok(entry)
    }

    /// Reads a tensor of the shape that the configuration asks for, converted to `dtype`.
    ///
    /// # Errors
    /// When it is missing, has another shape, or cannot be read or converted.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let entry = self.entry_of(name, shape)?;
        let stored = self.files[entry.file].tensor(entry.bytes(), entry.dtype, shape)?;
        self.was_read();
        Ok(stored.to_dtype(dtype)?)
    }

    /// Reads so many rows of a matrix of `shape`, row after row, as f32.
    ///
    /// # Errors
    /// When it is missing, has another shape or fewer rows, or cannot be read or converted.
    pub fn rows(&self, name: &str, shape: [usize; 2], rows: Range<usize>) -> Result<Vec<f32>> {
        let entry = self.entry_of(name, &shape)?;
        if rows.start > rows.end || rows.end > shape[0] {
            return Err(Error::Argument(format!("`{name}` has no rows {rows:?}")));
        }
        let row = shape[1] * entry.dtype.size_in_bytes();
        let bytes = entry.bytes.start + rows.start * row..entry.bytes.start + rows.end * row;
        let stored = self.files[entry.file].tensor(bytes, entry.dtype, &[rows.len() * shape[1]])?;
        self.was_read();
        Ok(stored.to_dtype(DType::F32)?.to_vec1()?)
    }

    fn check_shape(&self, name: &str, entry: &TensorEntry, expected: &[usize]) -> Result<()> {
        if entry.shape == expected {
            return Ok(());
        }
        Err(Error::Shape {
            path: self.files[entry.file].path().to_owned(),
            name: name.to_owned(),
            expected: expected.to_vec(),
            found: entry.shape.clone(),
        })
    }

    /// Tells whoever has to know that the work goes on.
    fn was_read(&self) {
        if let Some(on_read) = self.on_read.get() {
            on_read();
        }
    }
}

//! A safetensors file that is read piece by piece.
//!
//! It is not mapped into memory: whoever shortens a mapped file, and a network disk that goes away, kills the processes that look at
//! it, without a word.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use obsdiff_files::{in_hole, open_regular};
use rayon::prelude::*;
use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;

use crate::{Error, HOST, Result};

/// Bytes before the header, which say how long it is.
const LENGTH: u64 = 8;
/// The longest header that is read, which is also what the safetensors library allows.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes that one thread reads at a time: memory that is new to the process is slow to fill for one alone.
const READ_BY_ONE: usize = 1 << 20;

/// A safetensors file. Its header was read and is whole; tensors are read when they are asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    metadata: HashMap<String, String>,
}

impl TensorFile {
    /// Opens a file, and reads what its header says of its tensors: their places, which fill the file without gaps, types and shapes. Gives
    /// with them where the first begins.
    ///
    /// # Errors
    /// When it cannot be read, is not a regular file, or is truncated or hostile.
    pub(super) fn open(path: &Path) -> Result<(Self, Metadata, usize)> {
        let failed = |e| Error::file(path, e);
        let file = open_regular(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut opened = Self { path: path.to_owned(), file, bytes, metadata: HashMap::new() };
        let damaged = |e: SafeTensorError| {
            // Files of a download cache have no such ending.
            let next = match path.extension().and_then(|extension| extension.to_str()) {
                None | Some("safetensors") => "copy or download it again",
                Some(_) => "obsdiff reads no other files of weights: save it as safetensors",
            };
            Error::content(path, format!("is not a whole safetensors file ({e}): {next}"))
        };
        if bytes < LENGTH {
            return Err(damaged(SafeTensorError::HeaderTooSmall));
        }
        let mut length = [0; LENGTH as usize];
        opened.read_into(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER {
            return Err(damaged(SafeTensorError::HeaderTooLarge));
        }
        if length > bytes - LENGTH {
            return Err(damaged(SafeTensorError::InvalidHeaderLength));
        }
        let start = LENGTH + length;
        let text = opened.read(LENGTH as usize..start as usize)?;
        let text = std::str::from_utf8(&text).map_err(|e| damaged(SafeTensorError::InvalidHeader(e)))?;
        // This checks offsets, sizes and types.
        let header: Metadata = serde_json::from_str(text)
            .map_err(|e| damaged(SafeTensorError::InvalidHeaderDeserialization(e)))?;
        if (header.data_len() as u64).checked_add(start) != Some(bytes) {
            return Err(damaged(SafeTensorError::MetadataIncompleteBuffer));
        }
        opened.metadata = header.metadata().clone().unwrap_or_default();
        Ok((opened, header, start as usize))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The texts in its header that are about the file, by their names.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Reads bytes of the file.
    ///
    /// # Errors
    /// When the system does not give them; [`Error::Changed`] when the file has become shorter.
    pub fn read(&self, bytes: Range<usize>) -> Result<Vec<u8>> {
        self.read_numbers(bytes)
    }

    /// Reads a tensor of type `dtype` and this shape, all of which lies in `bytes`.
    ///
    /// # Errors
    /// As [`Self::read`]; when the tensor library knows no such tensor.
    pub(super) fn tensor(&self, bytes: Range<usize>, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        // Straight into the tensor's own memory, where the type is a usual one.
        Ok(match dtype {
            DType::F32 => Tensor::from_vec(self.read_numbers::<f32>(bytes)?, shape, &HOST)?,
            DType::BF16 => Tensor::from_vec(self.read_numbers::<bf16>(bytes)?, shape, &HOST)?,
            DType::F16 => Tensor::from_vec(self.read_numbers::<f16>(bytes)?, shape, &HOST)?,
            _ => Tensor::from_raw_buffer(&self.read(bytes)?, dtype, shape, &HOST)?,
        })
    }

    fn read_numbers<T: Pod>(&self, bytes: Range<usize>) -> Result<Vec<T>> {
        let mut numbers = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        self.read_into(bytes.start as u64, bytemuck::cast_slice_mut(&mut numbers))?;
        Ok(numbers)
    }

    /// Fills memory from here on in the file, a large piece by several threads.
    fn read_into(&self, start: u64, into: &mut [u8]) -> Result<()> {
        let read = |(number, piece): (usize, &mut [u8])| {
            self.file.read_exact_at(piece, start + (number * READ_BY_ONE) as u64)
        };
        let pieces = into.par_chunks_mut(READ_BY_ONE).enumerate();
        pieces.try_for_each(read).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone() },
            _ => Error::file(&self.path, error),
        })
    }

    /// Whether these bytes lie in a hole of the file, and are therefore zeros that need not be read.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub(super) fn in_hole(&self, bytes: &Range<usize>) -> Result<bool> {
        in_hole(&self.file, bytes.start as u64..bytes.end as u64).map_err(|e| Error::file(&self.path, e))
    }
}

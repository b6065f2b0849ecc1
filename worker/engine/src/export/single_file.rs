//! A transformer as one safetensors file in another layout, written as a stream of bytes: a tensor of it is rows of others, one below
//! the other, so no number is read.

use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use obsdiff_files::Disk;
use serde_json::{Map, Value, json};

use super::file_name;
use super::sink::Sink;
use super::staging::ExportFolder;
use crate::checkpoint::{JoinedTensor, SourceFiles, TensorRows, Weights};
use crate::{Error, Result};

/// A tensor's header, and the bytes that it is made of.
struct Laid<'a> {
    name: &'a str,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
    parts: Vec<(&'a str, Range<usize>)>,
}

/// Writes `tensors`, made of `weights`, to a new file. It appears whole or not at all. Returns its bytes.
///
/// # Errors
/// When the file exists, a tensor is missing or its parts do not fit each other, the weights are changed meanwhile, or the file cannot be
/// written.
pub fn write_single_file(
    weights: &Weights,
    tensors: &[JoinedTensor],
    destination: &Path,
    disk: &Disk,
) -> Result<u64> {
    let source = SourceFiles::open(weights.paths().map(Path::to_owned))?;
    let laid = tensors.iter().map(|tensor| laid(weights, tensor)).collect::<Result<Vec<_>>>()?;
    let header = header(&laid, destination)?;
    let parts = || laid.iter().flat_map(|tensor| &tensor.parts);
    let bytes = (header.len() + parts().map(|(_, rows)| rows.len()).sum::<usize>()) as u64;
    let mut staging = ExportFolder::create(destination, disk)?;
    let name = file_name(destination);
    let failed = |e| Error::write(destination, e);
    staging.stream(&name, bytes, &mut |_, out| {
        out.write_all(&header).map_err(failed)?;
        for (tensor, rows) in parts() {
            let entry = weights.entry(tensor)?;
            weights.copy(entry, rows.clone(), &mut |bytes| out.write_all(bytes).map_err(failed))?;
        }
        Ok(())
    })?;
    source.check_unchanged()?;
    staging.commit_file(&name, destination)?;
    Ok(bytes)
}

/// Where the bytes of a tensor are, in the parts that it is made of.
fn laid<'a>(weights: &Weights, tensor: &'a JoinedTensor) -> Result<Laid<'a>> {
    let refuse = |problem: &str| {
        let problem = format!("holds tensors that cannot be joined to `{}`: {problem}", tensor.name);
        Err(Error::content(weights.folder(), problem))
    };
    let mut found: Option<Laid<'a>> = None;
    for (name, rows) in &tensor.parts {
        let entry = weights.entry(name)?;
        let (length, shape) = (entry.bytes().len(), entry.shape());
        let all = shape.first().copied().unwrap_or(1);
        if *rows != TensorRows::All && !all.is_multiple_of(2) {
            return refuse(&format!("`{name}` has {all} rows, which have no halves"));
        }
        let (bytes, share) = match rows {
            TensorRows::All => (0..length, 1),
            TensorRows::FirstHalf => (0..length / 2, 2),
            TensorRows::SecondHalf => (length / 2..length, 2),
        };
        let Some(dtype) = stored_name(entry.dtype()) else {
            return refuse(&format!("`{name}` holds no floats"));
        };
        let laid = found.get_or_insert_with(|| Laid {
            name: &tensor.name,
            dtype,
            shape: shape.iter().enumerate().map(|(axis, size)| if axis == 0 { 0 } else { *size }).collect(),
            bytes: 0,
            parts: Vec::new(),
        });
        if laid.dtype != dtype || laid.shape.get(1..) != shape.get(1..) {
            return refuse(&format!("`{name}` differs from the others in its type or its columns"));
        }
        laid.bytes += bytes.len();
        if let Some(first) = laid.shape.first_mut() {
            *first += all / share;
        }
        laid.parts.push((name, bytes));
    }
    found.map_or_else(|| refuse("there is none"), Ok)
}

/// The file's header: eight bytes of length, then JSON.
fn header(tensors: &[Laid<'_>], path: &Path) -> Result<Vec<u8>> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut next = 0;
    for tensor in tensors {
        let end = next + tensor.bytes;
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [next, end] });
        header.insert(tensor.name.to_owned(), entry);
        next = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))
        .map_err(|e| Error::content(path, format!("cannot be written: {e}")))?;
    // The numbers behind it start at a multiple of eight.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// A type of floats as safetensors names it.
fn stored_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F16 => Some("F16"),
        DType::BF16 => Some("BF16"),
        DType::F32 => Some("F32"),
        DType::F64 => Some("F64"),
        _ => None,
    }
}

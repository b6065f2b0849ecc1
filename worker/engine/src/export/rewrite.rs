//! One safetensors file written again with some of its tensors replaced.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::View;

use super::shrink::{KeptIndices, Shrink};
use crate::checkpoint::{TensorEntry, Weights};
use crate::{Error, Result};

/// Writes file number `file` of `weights` to `out`, which messages call `path`. Types stay as they are, and so do shapes and
/// the header, except for what `shrink` changes; tensors for which `pruned` has a new value are converted to their stored type.
pub(super) fn rewrite(
    weights: &Weights,
    file: usize,
    (path, out): (&Path, &mut dyn Write),
    pruned: &dyn Fn(&str) -> Result<Option<Tensor>>,
    shrink: Option<&Shrink>,
) -> Result<()> {
    let source = &weights.files()[file];
    let failed = |e| Error::write(path, e);
    let entries = weights.entries_of(file);
    let header = entries.first().map_or(source.bytes() as usize, |(_, entry)| entry.bytes().start);
    let header = source.read(0..header)?;
    match shrink {
        Some(shrink) => {
            let header = shrink.header(source.path(), &header[8..], &entries)?;
            out.write_all(&header).map_err(failed)?;
        }
        None => out.write_all(&header).map_err(failed)?,
    }
    for (name, entry) in entries {
        let kept = shrink.and_then(|shrink| shrink.kept.get(name));
        let new = match (pruned(name)?, kept) {
            (None, Some(_)) => Some(weights.tensor(name, entry.shape(), entry.dtype())?),
            (new, _) => new,
        };
        match new {
            Some(tensor) => {
                out.write_all(&stored(source.path(), name, entry, &tensor, kept)?).map_err(failed)?
            }
            None => weights
                .copy(entry, 0..entry.bytes().len(), &mut |bytes| out.write_all(bytes).map_err(failed))?,
        }
    }
    Ok(())
}

/// A tensor's bytes in the type and shape of the one it replaces, which lies in the file `path`, and of these what is kept.
fn stored(
    path: &Path,
    name: &str,
    entry: &TensorEntry,
    tensor: &Tensor,
    kept: Option<&KeptIndices>,
) -> Result<Vec<u8>> {
    if tensor.dims() != entry.shape() {
        return Err(Error::Shape {
            path: path.to_owned(),
            name: name.to_owned(),
            expected: entry.shape().to_vec(),
            found: tensor.dims().to_vec(),
        });
    }
    let selected = kept.map(|kept| kept.select(tensor)).transpose()?;
    let converted = selected.as_ref().unwrap_or(tensor).to_dtype(entry.dtype())?;
    let values = converted.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if !values.iter().all(|value| value.is_finite()) {
        let problem = format!(
            "pruned tensor `{name}` leaves the range of {:?}, the type it is stored in",
            entry.dtype()
        );
        return Err(Error::content(path, problem));
    }
    Ok(View::data(&converted).into_owned())
}

//! The numbers of an observation, without a copy where its tensor has them ready.

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::{Error, Result};

/// Calls `take` with the rows of an observation (`tokens x n`) as 32-bit floats in row-major order.
pub(super) fn with_rows<T>(rows: &Tensor, take: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let rows = if rows.dtype() == DType::F32 && rows.is_contiguous() {
        rows.clone()
    } else {
        rows.to_dtype(DType::F32)?.contiguous()?
    };
    let (storage, layout) = rows.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            Ok(take(&values[layout.start_offset()..layout.start_offset() + rows.elem_count()]))
        }
        _ => Err(Error::Argument("an observation is not on the CPU".to_owned())),
    }
}

/// The rows (`tokens x width`) with a feature of constant 1 behind the others.
pub(super) fn with_constant(rows: &[f32], width: usize) -> Vec<f32> {
    let mut wider = Vec::with_capacity(rows.len() + rows.len() / width.max(1));
    for row in rows.chunks_exact(width.max(1)) {
        wider.extend_from_slice(row);
        wider.push(1.0);
    }
    wider
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_constant_stands_behind_every_row() {
        assert_eq!(with_constant(&[1., 2., 3., 4.], 2), [1., 2., 1., 3., 4., 1.]);
    }

    #[test]
    fn every_layout_and_type_gives_the_same_rows() {
        let rows = Tensor::arange(0f32, 12., &crate::HOST).unwrap().reshape((3, 4)).unwrap();
        let expected: Vec<f32> = (4..12).map(|v| v as f32).collect();
        let narrowed = rows.narrow(0, 1, 2).unwrap();
        let transposed = rows.t().unwrap().contiguous().unwrap().t().unwrap().narrow(0, 1, 2).unwrap();
        let half = narrowed.to_dtype(DType::BF16).unwrap();
        for tensor in [narrowed, transposed, half] {
            assert_eq!(with_rows(&tensor, <[f32]>::to_vec).unwrap(), expected);
        }
    }
}

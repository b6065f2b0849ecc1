//! f32 matrices in the processor's memory, as slices for the kernels; and the buffers they are made of.

use std::mem;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use obsdiff_proto::lock;

use crate::{Error, Result};

/// Buffers up to this many numbers (64 MiB) are kept for the next operation, since clearing and mapping new ones takes a few percent of
/// the time of the products that fill them. Larger ones would be a burden on memory.
pub(super) const KEPT_NUMBERS: usize = 1 << 24;
/// Numbers kept in all (256 MiB).
pub(super) const KEPT_IN_ALL: usize = 1 << 26;
/// Bytes of buffers that a model on the processor keeps for its next forward calls, at most.
pub const MOST_KEPT_BYTES: u64 = 4 * KEPT_IN_ALL as u64;

/// Whether the kernels can work on a tensor: contiguous f32.
pub(super) fn fits(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// A tensor that [`fits`], read as a slice.
pub(super) struct TensorSlice<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl<'a> TensorSlice<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, start: layout.start_offset(), len: layout.shape().elem_count() }
    }

    /// The numbers, row after row.
    ///
    /// # Errors
    /// When the tensor does not fit.
    pub(super) fn numbers(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(numbers)) => numbers.get(self.start..self.start + self.len),
            _ => None,
        }
        .ok_or_else(|| Error::Argument("a kernel takes f32 in the processor's memory".to_owned()))
    }
}

/// Buffers to be used again.
#[derive(Debug, Default)]
pub(super) struct BufferPool(Mutex<Vec<Vec<f32>>>);

impl BufferPool {
    /// A buffer of `len` numbers, whatever they are.
    pub(super) fn take(&self, len: usize) -> Vec<f32> {
        let mut kept = lock(&self.0);
        match kept.iter().rposition(|buffer| buffer.len() == len) {
            Some(found) => kept.swap_remove(found),
            None => vec![0.0; len],
        }
    }

    /// Takes back a buffer, if it is one to keep.
    pub(super) fn give(&self, buffer: Vec<f32>) {
        let mut kept = lock(&self.0);
        let in_all: usize = kept.iter().map(Vec::len).sum();
        if buffer.len() <= KEPT_NUMBERS && in_all + buffer.len() <= KEPT_IN_ALL {
            kept.push(buffer);
        }
    }
}

/// The buffer of a tensor that nobody else holds and that is all of it.
pub(super) fn into_numbers(tensor: Tensor) -> Result<Vec<f32>> {
    struct Take(Mutex<Vec<f32>>);
    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "take"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let CpuStorage::F32(numbers) = storage else { candle_core::bail!("only f32 is taken") };
            let whole = layout.is_contiguous() && layout.shape().elem_count() == numbers.len();
            let taken =
                if whole { mem::take(numbers) } else { candle_core::bail!("only a whole buffer is taken") };
            *lock(&self.0) = taken;
            Ok(())
        }
    }
    let take = Take(Mutex::default());
    tensor.inplace_op1(&take)?;
    Ok(take.0.into_inner().unwrap_or_else(PoisonError::into_inner))
}

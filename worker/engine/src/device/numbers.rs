//! Numbers in a GPU's memory, for foreign code to read and write.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use obsdiff_proto::Accumulate;

/// What keeps a device's memory: it is given back once nobody has this any more.
pub type MemoryOwner = Arc<dyn Debug + Send + Sync>;

/// Sums of Grams in a GPU's memory, one after another: i64 where they are exact, else f32. A clone, and a part, share the memory and keep
/// it.
#[derive(Clone, Debug)]
pub struct DeviceNumbers {
    gpu: usize,
    address: u64,
    length: usize,
    accumulate: Accumulate,
    /// Only kept.
    _owner: MemoryOwner,
}

impl DeviceNumbers {
    /// So many numbers from an address on.
    ///
    /// # Safety
    /// They lie in the memory of the GPU of this number, as CUDA counts them, in its primary context, and as long as `owner` lives.
    pub const unsafe fn new(
        gpu: usize,
        address: u64,
        length: usize,
        accumulate: Accumulate,
        owner: MemoryOwner,
    ) -> Self {
        Self { gpu, address, length, accumulate, _owner: owner }
    }

    /// The number of the GPU.
    pub const fn gpu(&self) -> usize {
        self.gpu
    }

    /// Where the first one lies.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.length
    }

    /// Of which kind they are.
    pub const fn accumulates(&self) -> Accumulate {
        self.accumulate
    }

    /// Bytes of one.
    pub const fn size(&self) -> usize {
        match self.accumulate {
            Accumulate::Exact => size_of::<i64>(),
            Accumulate::F32 => size_of::<f32>(),
        }
    }

    /// Some of them; fewer where there are not so many.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        let start = range.start.min(self.length);
        let end = range.end.clamp(start, self.length);
        let address = self.address + (start * self.size()) as u64;
        Self { address, length: end - start, ..self.clone() }
    }
}

impl PartialEq for DeviceNumbers {
    /// Whether both are the same memory.
    fn eq(&self, other: &Self) -> bool {
        let of = |numbers: &Self| (numbers.gpu, numbers.address, numbers.length, numbers.accumulate);
        of(self) == of(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lies_within_its_numbers_and_keeps_their_memory() {
        let owner: MemoryOwner = Arc::new(());
        // SAFETY: nobody goes to the address.
        let whole = unsafe { DeviceNumbers::new(2, 1000, 10, Accumulate::Exact, owner.clone()) };
        let part = whole.part(3..5);
        assert_eq!((part.gpu(), part.address(), part.count()), (2, 1024, 2));
        for (range, address, count) in [(8..20, 1064, 2), (12..20, 1080, 0)] {
            let part = whole.part(range);
            assert_eq!((part.address(), part.count()), (address, count));
        }
        assert!(part != whole && whole == whole.part(0..10));
        drop(whole);
        assert_eq!(Arc::strong_count(&owner), 2);
    }
}

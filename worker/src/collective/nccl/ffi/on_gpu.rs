//! Numbers in a GPU's memory, for tests.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread;

use bytemuck::{Pod, cast_slice};
use obsdiff_engine::device::numbers::DeviceNumbers;
use obsdiff_proto::{Accumulate, lock};

use super::{Gpu, GpuStream, Lane};

/// Memory of a GPU, given back when nobody has it any more.
pub(in crate::collective::nccl) struct OnGpu {
    lane: Mutex<Lane>,
    address: u64,
    gpu: usize,
    count: usize,
    accumulate: Accumulate,
}

impl OnGpu {
    /// A copy of numbers of this kind.
    pub(in crate::collective::nccl) fn new<T: Pod>(
        gpu: &Arc<Gpu>,
        accumulate: Accumulate,
        values: &[T],
    ) -> Arc<Self> {
        let bytes = size_of_val(values);
        let stream = Arc::new(GpuStream::new(gpu.clone()).unwrap());
        let mut lane = Lane::new(stream, bytes.max(1)).unwrap();
        lane.host(bytes).unwrap().copy_from_slice(cast_slice(values));
        lane.upload(bytes).unwrap();
        finish(&mut lane);
        let address = lane.memory().address();
        Arc::new(Self {
            lane: Mutex::new(lane),
            address,
            gpu: gpu.ordinal(),
            count: values.len(),
            accumulate,
        })
    }

    /// The numbers, for a collective.
    pub(in crate::collective::nccl) fn numbers(self: &Arc<Self>) -> DeviceNumbers {
        // SAFETY: so many lie there as long as the lane lives.
        unsafe { DeviceNumbers::new(self.gpu, self.address, self.count, self.accumulate, self.clone()) }
    }

    /// What is there.
    pub(in crate::collective::nccl) fn read<T: Pod>(&self) -> Vec<T> {
        let bytes = self.count * size_of::<T>();
        let mut lane = lock(&self.lane);
        lane.download(bytes).unwrap();
        finish(&mut lane);
        cast_slice(lane.host(bytes).unwrap()).to_vec()
    }
}

/// Waits until the lane's stream is done.
fn finish(lane: &mut Lane) {
    lane.mark().unwrap();
    while !lane.is_done().unwrap() {
        thread::yield_now();
    }
}

impl fmt::Debug for OnGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnGpu").field("count", &self.count).finish_non_exhaustive()
    }
}

//! How numbers of the host reach a group of GPUs: in chunks, by two lanes, so that the host fills one while the GPU works on the other.

use std::sync::Arc;

use super::ffi::{CallError, Gpu, GpuStream, Lane};

/// The stream of a group, and its two lanes.
pub(super) struct StagingLanes {
    pub(super) lanes: [Lane; 2],
    pub(super) stream: Arc<GpuStream>,
    /// Bytes of a lane.
    pub(super) chunk: usize,
}

impl StagingLanes {
    /// Takes twice `chunk` bytes on the GPU, and as much pinned memory.
    pub(super) fn new(gpu: Arc<Gpu>, chunk: usize) -> Result<Self, CallError> {
        let stream = Arc::new(GpuStream::new(gpu)?);
        let lane = || Lane::new(stream.clone(), chunk);
        Ok(Self { lanes: [lane()?, lane()?], stream, chunk })
    }
}

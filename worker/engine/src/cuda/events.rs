//! Events, by which streams wait for each other and a GPU says when it did something.

use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

use super::CudaError;
use super::driver::{CudaDriver, failed};

impl CudaDriver {
    /// Has the work that is given from now on wait for an event, as it was recorded last.
    pub(super) fn wait_for(&self, event: &CudaEvent) -> Result<(), CudaError> {
        self.stream().wait(event).map_err(failed("cuStreamWaitEvent"))
    }

    /// An event, which keeps its time where it is asked for; nothing yet: see [`Self::record`].
    pub(super) fn event(&self, with_time: bool) -> Result<CudaEvent, CudaError> {
        let flags = with_time.then_some(CUevent_flags::CU_EVENT_DEFAULT);
        self.stream().context().new_event(flags).map_err(failed("cuEventCreate"))
    }

    /// Has an event say when the work given so far was done.
    pub(super) fn record(&self, event: &CudaEvent) -> Result<(), CudaError> {
        event.record(self.stream()).map_err(failed("cuEventRecord"))
    }

    /// Milliseconds from one event to another, once both have passed.
    pub(super) fn milliseconds(from: &CudaEvent, to: &CudaEvent) -> Result<f32, CudaError> {
        from.elapsed_ms(to).map_err(failed("cuEventElapsedTime"))
    }
}

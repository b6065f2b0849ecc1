//! A GPU, and memory by which numbers of the host get there and back.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ops::Range;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Arc;

use cudarc::driver::{DriverError, result as driver, sys as cuda};
use obsdiff_engine::device::numbers::DeviceNumbers;

use super::CallError;

/// A GPU, by its primary context, which all of a process share.
pub(in crate::collective::nccl) struct Gpu {
    ordinal: usize,
    device: cuda::CUdevice,
    context: cuda::CUcontext,
}

// SAFETY: contexts may be made current on any thread, and on several at a time.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens the GPU of this number.
    ///
    /// # Errors
    /// When the driver or the GPU is missing; the error is a sentence with the remedy.
    pub(in crate::collective::nccl) fn open(ordinal: usize) -> Result<Self, String> {
        // SAFETY: the driver's initialisers only set up the library itself.
        if !unsafe { cuda::is_culib_present() } {
            return Err(
                "NVIDIA's driver is not found: install it, or name the folder of libcuda.so.1 in LD_LIBRARY_PATH".to_owned()
            );
        }
        let failed = |what: &'static str| move |e| format!("{what}: {}", driver_words(e));
        driver::init().map_err(failed("NVIDIA's driver does not start (see nvidia-smi)"))?;
        let count = driver::device::get_count().map_err(failed("no GPU can be counted"))?;
        let number = c_int::try_from(ordinal).ok().filter(|number| *number < count);
        let number = number.ok_or_else(|| {
            format!("there is no GPU {ordinal} among {count}: choose another, or check CUDA_VISIBLE_DEVICES")
        })?;
        let device = driver::device::get(number).map_err(failed("the GPU is not found"))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { driver::primary_ctx::retain(device) };
        let context = context.map_err(failed("the GPU cannot be used (see nvidia-smi)"))?;
        Ok(Self { ordinal, device, context })
    }

    /// Its number.
    pub(in crate::collective::nccl) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Makes the GPU that of this thread's calls.
    pub(in crate::collective::nccl) fn bind(&self) -> Result<(), CallError> {
        // SAFETY: the context is retained as long as this lives.
        checked("cuCtxSetCurrent", unsafe { driver::ctx::set_current(self.context) })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: it was retained once, in `open`. A context that the driver ended already needs no release.
        let _ = unsafe { driver::primary_ctx::release(self.device) };
    }
}

/// A queue of a GPU's work.
pub(in crate::collective::nccl) struct GpuStream {
    raw: cuda::CUstream,
    gpu: Arc<Gpu>,
}

// SAFETY: the driver takes calls on a stream from any thread.
unsafe impl Send for GpuStream {}
// SAFETY: as above; its own calls are safe at a time.
unsafe impl Sync for GpuStream {}

impl GpuStream {
    /// A queue that does not wait for others.
    pub(in crate::collective::nccl) fn new(gpu: Arc<Gpu>) -> Result<Self, CallError> {
        gpu.bind()?;
        let raw = checked("cuStreamCreate", driver::stream::create(driver::stream::StreamKind::NonBlocking))?;
        Ok(Self { raw, gpu })
    }

    pub(super) fn raw(&self) -> cuda::CUstream {
        self.raw
    }
}

impl Drop for GpuStream {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: it was created in `new`, and nobody has it any more.
            let _ = unsafe { driver::stream::destroy(self.raw) };
        }
    }
}

/// Memory of a GPU that an operation works in.
#[derive(Clone, Copy)]
pub(in crate::collective::nccl) struct DeviceMemory<'a> {
    address: cuda::CUdeviceptr,
    bytes: usize,
    owner: PhantomData<&'a ()>,
}

impl<'a> DeviceMemory<'a> {
    /// Some bytes of numbers; fewer where there are not so many.
    pub(in crate::collective::nccl) fn of(numbers: &'a DeviceNumbers, bytes: Range<usize>) -> Self {
        let all = numbers.count() * numbers.size();
        let start = bytes.start.min(all);
        let bytes = bytes.end.clamp(start, all) - start;
        Self { address: numbers.address() + start as u64, bytes, owner: PhantomData }
    }
    pub(super) fn address(self) -> cuda::CUdeviceptr {
        self.address
    }

    /// Refuses to work on more bytes than there are.
    pub(super) fn holds(self, bytes: usize) -> Result<(), CallError> {
        if bytes <= self.bytes { Ok(()) } else { Err(too_long()) }
    }
}

/// As much memory on a GPU as on the host, for numbers that go there and back. The host's part is pinned, so that copies run beside it.
pub(in crate::collective::nccl) struct Lane {
    stream: Arc<GpuStream>,
    host: *mut u8,
    device: cuda::CUdeviceptr,
    done: cuda::CUevent,
    bytes: usize,
    /// The stream may still read or write the memory.
    busy: bool,
}

// SAFETY: its pointers are its own, and the driver takes calls on them from any thread.
unsafe impl Send for Lane {}

impl Lane {
    /// Takes so many bytes, at least one, here and there.
    pub(in crate::collective::nccl) fn new(stream: Arc<GpuStream>, bytes: usize) -> Result<Self, CallError> {
        stream.gpu.bind()?;
        let done =
            checked("cuEventCreate", driver::event::create(cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        let mut lane = Self { stream, host: std::ptr::null_mut(), device: 0, done, bytes, busy: false };
        // SAFETY: what is allocated is freed when the lane is dropped, also where the second part fails.
        unsafe {
            lane.host = checked("cuMemHostAlloc", driver::malloc_host(bytes, 0))?.cast();
            lane.host.write_bytes(0, bytes);
            lane.device = checked("cuMemAlloc", driver::malloc_sync(bytes))?;
        }
        Ok(lane)
    }

    /// Its memory on the GPU.
    pub(in crate::collective::nccl) fn memory(&self) -> DeviceMemory<'_> {
        DeviceMemory { address: self.device, bytes: self.bytes, owner: PhantomData }
    }

    /// Its first bytes on the host.
    ///
    /// # Errors
    /// While the stream may use them, or where there are not so many.
    pub(in crate::collective::nccl) fn host(&mut self, bytes: usize) -> Result<&mut [u8], CallError> {
        if self.busy || bytes > self.bytes {
            return Err(too_long());
        }
        // SAFETY: the memory is this lane's alone, initialised, and used by no stream.
        Ok(unsafe { from_raw_parts_mut(self.host, bytes) })
    }

    /// Gives the stream a copy of the first bytes to the GPU. From here the lane is busy.
    pub(in crate::collective::nccl) fn upload(&mut self, bytes: usize) -> Result<(), CallError> {
        self.memory().holds(bytes)?;
        self.busy = true;
        // SAFETY: so much lies on both sides, and is left alone until the stream is done.
        checked("cuMemcpyHtoDAsync", unsafe {
            driver::memcpy_htod_async(self.device, from_raw_parts(self.host, bytes), self.stream.raw)
        })
    }

    /// Gives the stream a copy of the first bytes from the GPU.
    pub(in crate::collective::nccl) fn download(&mut self, bytes: usize) -> Result<(), CallError> {
        self.memory().holds(bytes)?;
        self.busy = true;
        // SAFETY: as in `upload`.
        checked("cuMemcpyDtoHAsync", unsafe {
            driver::memcpy_dtoh_async(from_raw_parts_mut(self.host, bytes), self.device, self.stream.raw)
        })
    }

    /// Marks the end of what the stream was given.
    pub(in crate::collective::nccl) fn mark(&mut self) -> Result<(), CallError> {
        self.busy = true;
        // SAFETY: both are alive.
        checked("cuEventRecord", unsafe { driver::event::record(self.done, self.stream.raw) })
    }

    /// Whether the stream has reached the mark; then the lane is free again.
    pub(in crate::collective::nccl) fn is_done(&mut self) -> Result<bool, CallError> {
        // SAFETY: the event is alive.
        match unsafe { driver::event::query(self.done) } {
            Ok(()) => {
                self.busy = false;
                Ok(true)
            }
            Err(DriverError(cuda::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => checked("cuEventQuery", Err(error)),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.stream.gpu.bind().is_err() {
            return;
        }
        // SAFETY: these are the lane's own, and its stream is alive. Copies that a group left behind are waited for: freeing need not wait
        // for a stream that still uses the memory. A stream that cannot be waited for runs nothing any more.
        unsafe {
            let _ = driver::stream::synchronize(self.stream.raw);
            let _ = driver::event::destroy(self.done);
            if self.device != 0 {
                let _ = driver::free_sync(self.device);
            }
            if !self.host.is_null() {
                let _ = driver::free_host(self.host.cast());
            }
        }
    }
}

fn too_long() -> CallError {
    CallError { call: "staging", code: 0, words: "memory that is too short, or in use".to_owned() }
}

fn driver_words(error: DriverError) -> String {
    let words = error.error_string().map(|words| words.to_string_lossy().into_owned());
    words.unwrap_or_else(|_| format!("error {}", error.0 as u32))
}

fn checked<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, CallError> {
    result.map_err(|e| CallError { call, code: e.0 as c_int, words: driver_words(e) })
}

//! The driver: what is on this machine, memory of a GPU, and launches of kernels. One of six files that call foreign code.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::sync::Arc;

use cudarc::driver::result::stream::get_priority_range;
use cudarc::driver::result::{DriverError, device, mem_get_info, memset_d8_async};
use cudarc::driver::sys::{CUresult, cuDriverGetVersion, is_culib_present};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
    ValidAsZeroBits,
};
use obsdiff_proto::Accumulate;

use super::CudaError;
use super::error::MemoryPhase;
use super::kernels::Launch;
use super::modules::{self, Kernels};
pub(super) use super::pointer::{In, Out};
use super::pool::Pool;
use crate::device::DeviceMemory;
use crate::device::numbers::DeviceNumbers;
use crate::device::transfers::{TransferCounter, TransferKind, Transfers};

/// What buffers hold: numbers of which any bits are valid.
pub(super) trait Element: DeviceRepr + ValidAsZeroBits + Copy + Default {}
impl<T: DeviceRepr + ValidAsZeroBits + Copy + Default> Element for T {}

/// Memory of a GPU. It is given back when the buffer is dropped, once all work before that is done.
#[derive(Debug)]
pub(super) struct DeviceBuffer<T> {
    slice: CudaSlice<T>,
    start: u64,
}

impl<T> DeviceBuffer<T> {
    /// Values.
    pub(super) fn len(&self) -> usize {
        self.slice.len()
    }

    /// To be read by a kernel, from its first value on.
    pub(super) fn input(&self) -> In<'_, T> {
        self.input_from(0)
    }

    /// The same from value `first` on.
    pub(super) fn input_from(&self, first: usize) -> In<'_, T> {
        In::at(self.at(first))
    }

    /// To be written by a kernel, from its first value on.
    pub(super) fn output(&mut self) -> Out<'_, T> {
        self.output_from(0)
    }

    /// The same from value `first` on.
    pub(super) fn output_from(&mut self, first: usize) -> Out<'_, T> {
        Out::at(self.at(first))
    }

    fn at(&self, first: usize) -> u64 {
        debug_assert!(first <= self.len(), "a kernel would begin past its buffer");
        self.start + (first.min(self.len()) * size_of::<T>()) as u64
    }
}

impl<T: Debug + Send + Sync + 'static> DeviceBuffer<T> {
    /// All values, which are sums of this kind, for foreign code; they keep the buffer. `gpu` is the number of the GPU whose memory it is.
    pub(super) fn numbers(self: &Arc<Self>, gpu: usize, accumulate: Accumulate) -> DeviceNumbers {
        // SAFETY: so many values lie there as long as the buffer lives, in the primary context that `CudaDriver::open` takes.
        unsafe { DeviceNumbers::new(gpu, self.start, self.len(), accumulate, Arc::clone(self) as _) }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum KernelArgument {
    U64(u64),
    U32(u32),
    F32(f32),
    F64(f64),
}

/// A GPU with one context and one stream, on which all of its work runs in order, and its kernels.
#[derive(Debug)]
pub(super) struct CudaDriver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: Kernels,
    transfers: Arc<TransferCounter>,
}

impl CudaDriver {
    /// Whether the driver's library is on this machine.
    pub(super) fn is_present() -> bool {
        // SAFETY: it loads a library by its usual name, whose initialisers are NVIDIA's.
        unsafe { is_culib_present() }
    }

    /// The CUDA version that the driver supports: 13000 for 13.0. The library must be present.
    pub(super) fn version() -> Result<i32, CudaError> {
        let mut version = 0;
        // SAFETY: the pointer is that of a number that lives longer than the call.
        unsafe { cuDriverGetVersion(&raw mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
        Ok(version)
    }

    /// How many GPUs there are; none where the driver says that it finds none.
    pub(super) fn count() -> Result<usize, CudaError> {
        match CudaContext::device_count() {
            Ok(count) => Ok(count.max(0) as usize),
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
            Err(error) => Err(failed("cuInit")(error)),
        }
    }

    /// The name of a GPU and its compute capability.
    pub(super) fn described(ordinal: usize) -> Result<(String, (i32, i32)), CudaError> {
        use cudarc::driver::sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let gpu = device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        let name = device::get_name(gpu).map_err(failed("cuDeviceGetName"))?;
        // SAFETY: the device is one that cuDeviceGet has just given.
        let attribute =
            |of| unsafe { device::get_attribute(gpu, of) }.map_err(failed("cuDeviceGetAttribute"));
        Ok((name, (attribute(MAJOR)?, attribute(MINOR)?)))
    }

    /// What names a GPU, whoever counts them.
    pub(super) fn uuid(ordinal: usize) -> Result<[u8; 16], CudaError> {
        let gpu = device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        let uuid = device::get_uuid(gpu).map_err(failed("cuDeviceGetUuid"))?;
        Ok(uuid.bytes.map(|byte| byte as u8))
    }

    /// Opens a GPU and loads all kernels, which its driver compiles for it.
    pub(super) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let context = CudaContext::new(ordinal).map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: buffers are used on the one stream of this context, so their order is the stream's.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("cuStreamCreate"))?;
        Pool::of(ordinal)?.keep_freed()?;
        let functions = modules::loaded(&context)?;
        Ok(Self { context, stream, functions, transfers: Arc::default() })
    }

    /// The same GPU with another stream: work there does not wait for work here, unless it is given memory that is yet to be
    /// given back here.
    pub(super) fn beside(&self) -> Result<Self, CudaError> {
        let stream = self.context.new_stream().map_err(failed("cuStreamCreate"))?;
        Ok(self.with(stream))
    }

    /// The same with a stream whose blocks of threads go before those of others wherever the GPU gets room for one.
    pub(super) fn ahead(&self) -> Result<Self, CudaError> {
        self.bind()?;
        // The lowest number is the highest priority.
        let (_, first) = get_priority_range().map_err(failed("cuCtxGetStreamPriorityRange"))?;
        let stream =
            self.context.new_stream_with_priority(first).map_err(failed("cuStreamCreateWithPriority"))?;
        Ok(self.with(stream))
    }

    /// The same GPU with this stream.
    fn with(&self, stream: Arc<CudaStream>) -> Self {
        let (context, functions) = (self.context.clone(), self.functions.clone());
        Self { context, stream, functions, transfers: self.transfers.clone() }
    }

    /// Gives memory back that is kept for the next buffer, once all work on this stream is done. What was in use until now does not count for
    /// [`Self::room_beside`] any more.
    pub(super) fn release_unused(&self) -> Result<(), CudaError> {
        self.wait()?;
        Pool::of(self.context.ordinal())?.release_unused()
    }

    /// Waits until all work on this stream is done.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.bind()?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    /// The same memory, given back once the work before that is done on this stream. All work on the buffer's own one must be done.
    pub(super) fn adopt<T: Element>(&self, buffer: DeviceBuffer<T>) -> DeviceBuffer<T> {
        let DeviceBuffer { slice, start } = buffer;
        let length = slice.len();
        // SAFETY: the memory was allocated for so many values, and nobody else gives it back.
        let slice = unsafe { self.stream.upgrade_device_ptr(slice.leak(), length) };
        DeviceBuffer { slice, start }
    }

    /// What has crossed by this driver, and by those beside it.
    pub(super) fn transfers(&self) -> Transfers {
        self.transfers.so_far()
    }

    /// The stream, for the libraries.
    pub(super) const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Makes the GPU that of the calling thread, as the libraries expect.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }

    /// The GPU's memory, whoever uses it.
    pub(super) fn memory(&self) -> Result<DeviceMemory, CudaError> {
        self.bind()?;
        let (free, total) = mem_get_info().map_err(failed("cuMemGetInfo"))?;
        let pool = Pool::of(self.context.ordinal())?;
        let kept = pool.reserved()?.saturating_sub(pool.used()?);
        Ok(DeviceMemory { free: free as u64, kept, total: total as u64 })
    }

    /// Bytes that a new buffer may take while as many stay free as are needed for what is in use now and `more`, or were for what was in use at
    /// any time since [`Self::release_unused`]. What was given back and is kept for the next buffer is counted.
    pub(super) fn room_beside(&self, more: u64) -> Result<u64, CudaError> {
        let pool = Pool::of(self.context.ordinal())?;
        let all = self.memory()?.free.saturating_add(pool.reserved()?);
        let needed = pool.used()?.saturating_add(more).max(pool.most_used()?);
        Ok(all.saturating_sub(needed))
    }

    /// Memory whose contents nobody knows; room for one value at least.
    pub(super) fn buffer<T: Element>(&self, length: usize) -> Result<DeviceBuffer<T>, CudaError> {
        let length = length.max(1);
        // SAFETY: any bits are a value of T, so nothing is read that is not one.
        let slice =
            unsafe { self.stream.alloc::<T>(length) }.map_err(|error| self.no_room::<T>(length, error))?;
        let start = slice.device_ptr(&self.stream).0;
        Ok(DeviceBuffer { slice, start })
    }

    /// Zeros.
    pub(super) fn zeros<T: Element>(&self, length: usize) -> Result<DeviceBuffer<T>, CudaError> {
        let mut buffer = self.buffer::<T>(length)?;
        self.set_bytes(&mut buffer, 0)?;
        Ok(buffer)
    }

    /// Sets every byte.
    pub(super) fn set_bytes<T: Element>(
        &self,
        buffer: &mut DeviceBuffer<T>,
        byte: u8,
    ) -> Result<(), CudaError> {
        self.bind()?;
        let bytes = buffer.len() * size_of::<T>();
        let start = buffer.slice.device_ptr_mut(&self.stream).0;
        // SAFETY: the bytes are the buffer's, and any of them make values of T.
        unsafe { memset_d8_async(start, byte, bytes, self.stream.cu_stream()) }
            .map_err(failed("cuMemsetD8Async"))
    }

    /// Copies values to a new buffer.
    pub(super) fn upload<T: Element>(
        &self,
        kind: TransferKind,
        values: &[T],
    ) -> Result<DeviceBuffer<T>, CudaError> {
        let mut buffer = self.buffer(values.len())?;
        self.write(kind, values, &mut buffer)?;
        Ok(buffer)
    }

    /// Copies values to the beginning of a buffer, once all work before is done, and waits: a driver may still read memory that is not pinned
    /// when its call has returned.
    pub(super) fn write<T: Element>(
        &self,
        kind: TransferKind,
        values: &[T],
        buffer: &mut DeviceBuffer<T>,
    ) -> Result<(), CudaError> {
        if values.is_empty() {
            return Ok(());
        }
        self.fits(values.len(), buffer.len())?;
        self.transfers.to_device(kind, size_of_val(values));
        self.stream.memcpy_htod(values, &mut buffer.slice).map_err(failed("cuMemcpyHtoDAsync"))?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    /// Copies the first values of a buffer to the host, once all work before is done.
    pub(super) fn read<T: Element>(
        &self,
        kind: TransferKind,
        buffer: &DeviceBuffer<T>,
        to: &mut [T],
    ) -> Result<(), CudaError> {
        if to.is_empty() {
            return Ok(());
        }
        self.fits(to.len(), buffer.len())?;
        self.transfers.to_host(kind, size_of_val(to));
        self.stream.memcpy_dtoh(&buffer.slice.slice(..to.len()), to).map_err(failed("cuMemcpyDtoHAsync"))?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    /// Copies `length` values of a buffer from `first` on to another one from `at` on.
    pub(super) fn copy_part<T: Element>(
        &self,
        from: &DeviceBuffer<T>,
        first: usize,
        to: &mut DeviceBuffer<T>,
        at: usize,
        length: usize,
    ) -> Result<(), CudaError> {
        if length == 0 {
            return Ok(());
        }
        self.fits(first + length, from.len())?;
        self.fits(at + length, to.len())?;
        let from = from.slice.slice(first..first + length);
        let mut to = to.slice.slice_mut(at..at + length);
        self.stream.memcpy_dtod(&from, &mut to).map_err(failed("cuMemcpyDtoDAsync"))
    }

    /// Copies the first `length` values of a buffer to another one.
    pub(super) fn copy<T: Element>(
        &self,
        from: &DeviceBuffer<T>,
        to: &mut DeviceBuffer<T>,
        length: usize,
    ) -> Result<(), CudaError> {
        self.copy_part(from, 0, to, 0, length)
    }

    /// Launches a kernel after the work before it. Its arguments have the types that [`super::kernels`] says, which are those of its PTX.
    pub(super) fn launch(
        &self,
        kernel: &'static str,
        launch: Launch,
        arguments: &[KernelArgument],
    ) -> Result<(), CudaError> {
        let Some(function) = self.functions.get(kernel) else {
            return Err(CudaError::Call { call: kernel, problem: "there is no such kernel".to_owned() });
        };
        let mut builder = self.stream.launch_builder(function);
        for argument in arguments {
            match argument {
                KernelArgument::U64(x) => builder.arg(x),
                KernelArgument::U32(x) => builder.arg(x),
                KernelArgument::F32(x) => builder.arg(x),
                KernelArgument::F64(x) => builder.arg(x),
            };
        }
        let Launch { grid, block, shared } = launch;
        let config = LaunchConfig {
            grid_dim: (grid[0], grid[1], grid[2]),
            block_dim: (block[0], block[1], block[2]),
            shared_mem_bytes: shared,
        };
        // SAFETY: the arguments are of the kernel's types, pointers are those of buffers that the caller holds, and the callers in this
        // module check that matrices have the sizes that they pass to the kernel.
        unsafe { builder.launch(config) }.map_err(failed(kernel))?;
        Ok(())
    }

    fn fits(&self, length: usize, room: usize) -> Result<(), CudaError> {
        if length <= room {
            Ok(())
        } else {
            let problem = format!("{length} values do not fit a buffer of {room}");
            Err(CudaError::Call { call: "a copy", problem })
        }
    }

    fn no_room<T>(&self, length: usize, error: DriverError) -> CudaError {
        match (error, mem_get_info()) {
            (DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Ok((free, total))) => CudaError::Memory {
                // Who asks for something else says so.
                phase: MemoryPhase::Forward,
                wanted: (length * size_of::<T>()) as u64,
                free: free as u64,
                total: total as u64,
            },
            _ => failed("cuMemAllocAsync")(error),
        }
    }
}

pub(super) fn failed(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| {
        let said = error.error_string().map(|text| text.to_string_lossy().into_owned());
        CudaError::Call { call, problem: said.unwrap_or_else(|_| format!("{:?}", error.0)) }
    }
}

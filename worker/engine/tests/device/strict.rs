//! What the driver in host memory holds programs to: the order of streams, the bounds of memory, and its life. Other tests rely on it.
#![allow(unsafe_code)]

mod libraries;

use std::env;
use std::ffi::{CStr, c_void};
use std::ptr::{null_mut, read_volatile};
use std::sync::Arc;

use cudarc::driver::result::{self, event, launch_kernel, stream};
use cudarc::driver::sys::{CUevent_flags, CUevent_wait_flags, CUfunction, CUresult, CUstream};
use cudarc::driver::{CudaContext, DriverError};

use crate::fake::{child, counted};

/// Bytes of a buffer.
const BYTES: usize = 64;
/// What memory holds that nobody has written.
const UNKNOWN: u8 = 0xff;

/// What the fake driver reads of a module: here a kernel that declares 1028 bytes of shared memory.
const PTX: &CStr = c".version 9.0\n.target sm_80\n.visible .entry silu_f32(\n)\n{\n\t.shared .align 4 .b8 numbers[1024];\n\t.shared .align 4 .u32 one;\n}";

/// The fake GPU; none where the suite runs elsewhere.
fn gpu() -> Option<Arc<CudaContext>> {
    if env::var("OBSDIFF_DEVICE").ok()?.starts_with("cuda") && counted("fake_cuda_launches").is_some() {
        return Some(CudaContext::new(0).unwrap());
    }
    None
}

fn queue() -> CUstream {
    stream::create(stream::StreamKind::NonBlocking).unwrap()
}

/// A kernel that is given a matrix, its rows and its width.
fn kernel() -> CUfunction {
    // SAFETY: the text ends with a zero, and lives as long as the process.
    unsafe {
        let module = result::module::load_data(PTX.as_ptr().cast()).unwrap();
        result::module::get_function(module, c"silu_f32".to_owned()).unwrap()
    }
}

fn launch(threads: u32, shared: u32, queue: CUstream, address: u64) -> Result<(), DriverError> {
    let (mut address, mut rows, mut width) = (address, 1u32, 1u32);
    let mut arguments =
        [(&raw mut address).cast::<c_void>(), (&raw mut rows).cast(), (&raw mut width).cast()];
    // SAFETY: these are the kernel's arguments, and the fake driver checks the address.
    unsafe { launch_kernel(kernel(), (1, 1, 1), (threads, 1, 1), shared, queue, &mut arguments) }
}

#[test]
fn a_result_is_there_when_its_stream_was_waited_for_and_not_before() {
    let Some(_gpu) = gpu() else { return };
    let (first, second) = (queue(), queue());
    // SAFETY: the fake driver checks all addresses, and nobody else has this memory.
    unsafe {
        let host = result::malloc_host(BYTES, 0).unwrap().cast::<u8>();
        let host = std::slice::from_raw_parts_mut(host, BYTES);
        let [from, to] = [first, second].map(|queue| result::malloc_async(queue, BYTES).unwrap());
        result::memset_d8_async(from, 7, BYTES, first).unwrap();
        result::memcpy_dtoh_async(&mut *host, from, first).unwrap();
        assert!(read_volatile(host.as_ptr()) != 7, "nobody has waited");
        // Nor has the other stream.
        result::memcpy_dtod_async(to, from, BYTES, second).unwrap();
        let mut copied = [0u8; BYTES];
        result::memcpy_dtoh_async(&mut copied, to, second).unwrap();
        assert_eq!(read_volatile(&raw const copied), [0; BYTES], "nobody has waited");
        stream::synchronize(second).unwrap();
        assert_eq!(copied, [UNKNOWN; BYTES]);
        let done = event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
        event::record(done, first).unwrap();
        stream::wait_event(second, done, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT).unwrap();
        result::memcpy_dtod_async(to, from, BYTES, second).unwrap();
        result::memcpy_dtoh_async(&mut copied, to, second).unwrap();
        stream::synchronize(second).unwrap();
        assert_eq!(copied, [7; BYTES]);
        assert!(host.iter().all(|byte| *byte == 7), "the first stream was waited for");
        // Memory of the host is read when the stream comes to it, whether it is pinned or not.
        host.fill(8);
        let mut other = [8u8; BYTES];
        result::memcpy_htod_async(from, &*host, first).unwrap();
        result::memcpy_htod_async(to, &other, first).unwrap();
        host.fill(9);
        other.fill(9);
        let mut found = [[0u8; BYTES]; 2];
        for (found, from) in found.iter_mut().zip([from, to]) {
            result::memcpy_dtoh_async(found, from, first).unwrap();
        }
        stream::synchronize(first).unwrap();
        assert_eq!(found, [[9; BYTES]; 2]);
    }
}

#[test]
fn what_passes_the_bounds_of_memory_or_of_a_launch_is_refused() {
    let Some(_gpu) = gpu() else { return };
    let queue = queue();
    let refused = |done: Result<(), DriverError>| {
        assert_eq!(done.unwrap_err().0, CUresult::CUDA_ERROR_INVALID_VALUE);
    };
    // SAFETY: as above.
    unsafe {
        let memory = result::malloc_async(queue, BYTES).unwrap();
        let host = [1u8; BYTES + 1];
        let copy = |to, bytes| result::memcpy_htod_async(to, &host[..bytes], queue);
        copy(memory, BYTES).unwrap();
        refused(copy(memory, BYTES + 1));
        refused(copy(memory + 1, BYTES));
        refused(copy(memory - 1, 1));
        refused(result::memset_d8_async(memory, 0, BYTES + 1, queue));
        refused(result::memcpy_dtod_async(memory, memory + 1, BYTES, queue));
        refused(result::memcpy_dtoh_async(&mut [0u8; BYTES], memory + 1, queue));
        // An address of the host is none of the GPU's.
        refused(copy([0u8; BYTES].as_ptr() as u64, 1));
        launch(32, (48 << 10) - 1028, queue, memory).unwrap();
        refused(launch(1025, 0, queue, memory));
        refused(launch(0, 0, queue, memory));
        refused(launch(32, (48 << 10) - 1027, queue, memory));
        refused(launch(32, (48 << 10) + 1, queue, memory));
        refused(launch(32, 0, null_mut(), memory));
        let [timed, other] = [CUevent_flags::CU_EVENT_DEFAULT, CUevent_flags::CU_EVENT_DISABLE_TIMING]
            .map(|flags| event::create(flags).unwrap());
        let between = |from, to| event::elapsed(from, to).map_err(|error| error.0);
        // Nobody has recorded it, and then the other one keeps no time.
        assert_eq!(between(timed, timed), Err(CUresult::CUDA_ERROR_INVALID_HANDLE));
        event::record(timed, queue).unwrap();
        event::record(other, queue).unwrap();
        stream::synchronize(queue).unwrap();
        assert_eq!(between(timed, other), Err(CUresult::CUDA_ERROR_INVALID_HANDLE));
        assert_eq!(between(timed, timed), Ok(0.0));
        result::free_async(memory, queue).unwrap();
        refused(copy(memory, 1));
        refused(result::free_async(memory, queue));
    }
}

/// What [`misuse`] does.
const MISUSE: &str = "MISUSE";

#[test]
fn misuse() {
    let Ok(misuse) = env::var(MISUSE) else { return };
    let _gpu = gpu().unwrap();
    let (first, second) = (queue(), queue());
    // SAFETY: the fake driver ends the process.
    unsafe {
        let memory = result::malloc_async(first, BYTES).unwrap();
        match misuse.as_str() {
            "free at once" => {
                result::memset_d8_async(memory, 7, BYTES, first).unwrap();
                let _ = result::free_sync(memory);
            }
            "free on another stream" => {
                result::memset_d8_async(memory, 7, BYTES, first).unwrap();
                result::free_async(memory, second).unwrap();
                let _ = stream::synchronize(second);
            }
            "launch on a part of a number" => {
                let _ = launch(32, 0, first, memory + 2);
            }
            "launch after it was freed" => {
                result::free_async(memory, second).unwrap();
                let _ = launch(32, 0, first, memory);
            }
            _ => panic!("{misuse} is no misuse"),
        }
    }
}

#[test]
fn what_a_gpu_would_not_bear_in_host_memory_ends_the_process() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        return;
    }
    for (misuse, said) in [
        ("free at once", "memory is freed in which a stream still works"),
        ("free on another stream", "memory is freed in which a stream still works"),
        ("launch after it was freed", "kernel silu_f32 is given an address that is not of the GPU's memory"),
        (
            "launch on a part of a number",
            "kernel silu_f32 is given an address that is no multiple of its numbers' size",
        ),
    ] {
        let output = child(&["--exact", "strict::misuse"], &[(MISUSE, misuse)]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(said), "{misuse}: {errors}");
    }
}

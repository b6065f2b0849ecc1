//! The one place that sets up the C library's allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use obsdiff::error::RESUMABLE;

#[global_allocator]
static ALLOCATOR: ExitingAllocator = ExitingAllocator;

/// The C library's allocator. A process that gets no memory prints a message and ends with the exit code of a failure that can be
/// resumed; by default it would be aborted.
struct ExitingAllocator;

// SAFETY: each call and its result are passed on unchanged.
unsafe impl GlobalAlloc for ExitingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees what this call needs.
        with_large_pages(given(unsafe { System.alloc(layout) }, layout.size()), layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        with_large_pages(given(unsafe { System.alloc_zeroed(layout) }, layout.size()), layout.size())
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        with_large_pages(given(unsafe { System.realloc(place, layout, size) }, size), size)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

fn given(place: *mut u8, bytes: usize) -> *mut u8 {
    if place.is_null() {
        out_of_memory(bytes);
    }
    place
}

/// Asks the system to map a buffer that it gave by pages of 2 MiB, where it has such. A model of billions of parameters is pruned in
/// hundreds of buffers that are new to the process: mapped and cleared by 4 KiB, they come at 1 GB a second, by 2 MiB at several.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn with_large_pages(place: *mut u8, bytes: usize) -> *mut u8 {
    /// The system takes addresses of whole pages. Where pages are larger, it refuses, and they stay as they are.
    const PAGE: usize = 4096;
    if bytes >= MAPPED_FROM as usize {
        let skipped = place.addr().next_multiple_of(PAGE) - place.addr();
        let whole = (bytes - skipped) / PAGE * PAGE;
        // SAFETY: the range lies within the buffer, and this advice changes nothing that it holds.
        unsafe {
            libc::madvise(place.wrapping_add(skipped).cast(), whole, libc::MADV_HUGEPAGE);
        }
    }
    place
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn with_large_pages(place: *mut u8, _: usize) -> *mut u8 {
    place
}

#[cold]
fn out_of_memory(bytes: usize) -> ! {
    static SAID: AtomicBool = AtomicBool::new(false);
    // Nothing here may allocate. Threads that fail at the same time leave it to the first one, which ends the process.
    while SAID.swap(true, Ordering::AcqRel) {
        std::thread::yield_now();
    }
    let mut words = MessageBuffer { bytes: [0; 256], length: 0 };
    // A text that is too long is cut.
    let _ = writeln!(
        words,
        "error: the system gives this process no {bytes} bytes of memory: raise its limit (ulimit -v), or give the job more packages; \
         what is finished is kept, and the same command may be run again"
    );
    // If standard error is closed, the exit code still says what happened.
    let _ = rustix::io::write(rustix::stdio::stderr(), &words.bytes[..words.length]);
    signal_hook::low_level::exit(i32::from(RESUMABLE))
}

struct MessageBuffer {
    bytes: [u8; 256],
    length: usize,
}

impl Write for MessageBuffer {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.length..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}

/// Larger buffers come from the system alone, and go back to it at once (32 MiB: the most that glibc allows).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM: libc::c_int = 32 << 20;

/// What is free at the end of the arena stays there up to this size: more than the buffers of a block that are freed together while they
/// are smaller than [`MAPPED_FROM`] each, and little beside a model for which they are not.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_FREE: libc::c_int = 64 << 20;

/// Has all threads take memory from one arena that keeps what is freed. By default each gets an arena of its own and keeps there what its
/// large buffers leave behind, so that a run would hold as many times more than it needs as it has threads; and the buffers of each
/// forward call would go back to the system, which clears and maps every page again for the next one. To be called before there are other
/// threads.
pub(crate) fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, MAPPED_FROM), (libc::M_TRIM_THRESHOLD, KEPT_FREE)]
    {
        // SAFETY: `mallopt` sets a number that later calls of the allocator read; nothing else runs yet. It may refuse, and then memory
        // is kept as by default.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    /// Pages that this thread has faulted in so far, of whatever size.
    fn faults() -> u64 {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        // proc(5): the tenth field; the second may hold blanks, within parentheses.
        stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn a_large_buffer_comes_by_large_pages_where_the_system_has_them() {
        let allowed = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let before = faults();
        let bytes = 4 * MAPPED_FROM as usize;
        let buffer = vec![1u8; bytes];
        assert!(buffer.iter().all(|byte| *byte == 1));
        let taken = faults() - before;
        if allowed.contains("[always]") || allowed.contains("[madvise]") {
            assert!(taken < bytes as u64 / 4096 / 2, "{taken} faults for {bytes} bytes");
        } else {
            assert!(taken > 0);
        }
    }
}

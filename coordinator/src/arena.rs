//! The one place that sets up the C library's allocator.
#![allow(unsafe_code)]

/// Has all threads take memory from one arena. By default each gets its own and keeps there what its large buffers leave behind, so
/// that a run would hold as many times more than it needs as it has threads. To be called before there are other threads.
pub(crate) fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` sets a number that later calls of the allocator read; nothing else runs yet. It may refuse, and then memory
    // is kept as by default.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

//! What a process took, as the kernel tells its parent.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// What a process took from its start to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The most memory that was resident at once.
    pub(crate) peak_bytes: u64,
    /// Pages of memory that the kernel mapped without reading a disk.
    pub(crate) minor_faults: u64,
    /// How often another thread took the processor although this process had work.
    pub(crate) involuntary_switches: u64,
    /// How often it waited: for a disk, another process or another thread.
    pub(crate) voluntary_switches: u64,
    /// By the clock.
    pub(crate) elapsed: Duration,
}

/// Runs a command that must succeed: what it printed, and what it took.
#[expect(clippy::zombie_processes, reason = "`wait` waits for it, and is told what it took as well")]
pub(crate) fn run(command: &mut Command) -> (String, Usage) {
    // Files, as nobody reads a pipe meanwhile.
    let [mut stdout, mut stderr] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let start = Instant::now();
    let child =
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap()).spawn().unwrap();
    let (status, usage) = wait(child.id());
    let elapsed = start.elapsed();
    let read = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    assert!(status.success(), "{command:?}: {}", read(&mut stderr));
    let usage = Usage {
        peak_bytes: 1024 * usage.ru_maxrss as u64,
        minor_faults: usage.ru_minflt as u64,
        involuntary_switches: usage.ru_nivcsw as u64,
        voluntary_switches: usage.ru_nvcsw as u64,
        elapsed,
    };
    (read(&mut stdout), usage)
}

/// Waits for the end of a child that nobody else waits for.
fn wait(id: u32) -> (ExitStatus, libc::rusage) {
    let mut status = 0;
    let mut usage = MaybeUninit::uninit();
    // SAFETY: both places are valid for what is written to them.
    let waited = unsafe { libc::wait4(id as libc::pid_t, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, id as libc::pid_t, "{}", std::io::Error::last_os_error());
    // SAFETY: `wait4` has filled it, as it has found the process.
    (ExitStatus::from_raw(status), unsafe { usage.assume_init() })
}

//! What a process took, as the kernel reports it to its parent.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

/// What a process took from its start to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The most memory that was resident at once.
    pub(crate) peak_bytes: u64,
    /// Bytes that it asked the kernel to read: of files, holes in them included, and of pipes.
    pub(crate) read_bytes: u64,
    /// Pages of memory that the kernel mapped without reading a disk.
    pub(crate) minor_faults: u64,
    /// Pages that the kernel read from a disk to map them.
    pub(crate) major_faults: u64,
    /// How often another thread took the processor although this process had work.
    pub(crate) involuntary_switches: u64,
    /// How often it waited: for a disk, another process or another thread.
    pub(crate) voluntary_switches: u64,
}

/// Runs a command that must succeed: what it printed, and what it took.
#[expect(clippy::zombie_processes, reason = "`wait` waits for it, and gets what it took as well")]
pub(crate) fn run(command: &mut Command) -> (String, Usage) {
    // Files, as nobody reads a pipe meanwhile.
    let [mut stdout, mut stderr] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let child =
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap()).spawn().unwrap();
    let read_bytes = read_until_the_end(child.id());
    let (status, usage) = wait(child.id());
    let read = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    assert!(status.success(), "{command:?}: {}", read(&mut stderr));
    let usage = Usage {
        peak_bytes: 1024 * usage.ru_maxrss as u64,
        read_bytes,
        minor_faults: usage.ru_minflt as u64,
        major_faults: usage.ru_majflt as u64,
        involuntary_switches: usage.ru_nivcsw as u64,
        voluntary_switches: usage.ru_nvcsw as u64,
    };
    (read(&mut stdout), usage)
}

/// The bytes that a child has read by its end. It is still to be waited for.
fn read_until_the_end(id: u32) -> u64 {
    let mut ended = MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: the place is valid for what is written to it.
    let waited = unsafe { libc::waitid(libc::P_PID, id, ended.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
    assert_eq!(waited, 0, "{}", std::io::Error::last_os_error());
    let counted = fs::read_to_string(format!("/proc/{id}/io")).unwrap();
    counted.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
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

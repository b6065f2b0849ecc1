//! How much memory this process took at most.

use obsdiff_proto::ByteSize;

/// The largest resident set of this process so far, as the kernel counts it (`VmHWM`); unknown where there is no `/proc`.
pub fn peak_resident() -> Option<ByteSize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteSize(kilobytes * 1024))
}

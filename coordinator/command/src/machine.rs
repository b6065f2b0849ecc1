//! Measures this machine: the memory that a worker may take, and the rates of matrix products, memory and files.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use candle_core::DType;
use obsdiff_engine::device::{ComputeDevice, TimedWork};
use obsdiff_proto::{ByteSize, Hasher};
use rayon::prelude::*;
use rustix::process::{Resource, getrlimit};

use crate::clock::Clock;
use crate::{Error, Result};

/// The memory that this process can take without swapping: what the kernel counts as available, and no more than its control
/// group and its own limits (`ulimit -v`, `ulimit -d`) allow. Unknown where there is no `/proc`.
pub fn available_memory() -> Option<ByteSize> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let available = read(Path::new("/proc/meminfo")).as_deref().and_then(available)?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let shared = limits(&groups, Path::new("/sys/fs/cgroup"), read);
    let status = read(Path::new("/proc/self/status")).unwrap_or_default();
    let own =
        [(Resource::As, "VmSize:"), (Resource::Data, "VmData:")].into_iter().filter_map(|(kind, taken)| {
            let limit = getrlimit(kind).current?;
            Some(limit.saturating_sub(kilobytes(&status, taken).unwrap_or(0)))
        });
    let limit = shared.chain(own).min();
    Some(ByteSize(limit.unwrap_or(u64::MAX).min(available)))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    kilobytes(meminfo, "MemAvailable:")
}

/// What a file of `/proc` says behind `name`, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The limits of the control groups that `/proc/self/cgroup` names and of all above them, below `root`: of version 2, and of the
/// memory controller of version 1. A container sees its own group at the root.
fn limits<'a>(
    groups: &'a str,
    root: &'a Path,
    read: impl Fn(&Path) -> Option<String> + 'a,
) -> impl Iterator<Item = u64> + 'a {
    let folders = groups.lines().flat_map(move |line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (folder, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ => (root.join("memory"), "memory.limit_in_bytes"),
        };
        let used = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let above = Path::new(group.trim_start_matches('/')).ancestors().filter(move |_| used);
        above.map(move |group| folder.join(group).join(file)).collect::<Vec<_>>()
    });
    folders.filter_map(move |file| read(&file)?.trim().parse().ok())
}

/// The type of the products by which a worker on a GPU tells its speed. It does so before it learns of a job; forward calls of jobs for GPUs
/// are usually of this type, and GPUs multiply both types of 16 bits at one rate.
pub const GPU_NUMBERS: DType = DType::BF16;

/// Products that are timed together: how many, of matrices of `side x side`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimedProducts {
    side: usize,
    times: usize,
}

impl TimedProducts {
    const OF_PROCESSOR: Self = Self { side: 1024, times: 1 };

    /// On a GPU products grow from here until they take long enough to be timed.
    const SMALLEST: Self = Self { side: 256, times: 1 };

    /// Large enough to keep any GPU busy.
    const MOST: Self = Self { side: 4096, times: 64 };

    const fn operations(self) -> f64 {
        let side = self.side as f64;
        2.0 * side * side * side * self.times as f64
    }

    /// The next larger ones.
    fn larger(self) -> Option<Self> {
        if self.side < Self::MOST.side {
            return Some(Self { side: 2 * self.side, ..self });
        }
        (self.times < Self::MOST.times).then_some(Self { times: 2 * self.times, ..self })
    }

    /// Whether a factor and a product take at most a quarter of the memory that this process can get of a GPU.
    fn fit(self, device: &ComputeDevice, numbers: DType) -> Result<bool> {
        let bytes = 2 * self.side * self.side * numbers.size_in_bytes();
        let memory = device.memory().map_err(|problem| Error::key("--device", problem.to_string()))?;
        Ok(memory.is_none_or(|memory| bytes as u64 <= memory.available() / 4))
    }
}

/// The rate of a device's products of numbers of a type, in operations a second. On the processor these are f32 on all its threads, whatever
/// the type, because it widens others for most of its products: the fastest of a few of 1024 x 1024 x 1024. On a GPU they are as many and as
/// large as take 2 ms, of at most 4096 x 4096 x 4096: the first run of each size finds and loads its kernel and does not count.
///
/// # Errors
/// When they do not fit in its memory, or the device fails.
pub fn product_rate(device: &ComputeDevice, numbers: DType, clock: &Clock) -> Result<f64> {
    /// A wait for a GPU takes some hundredths of this.
    const LONG_ENOUGH: Duration = Duration::from_millis(2);
    if device.is_host() {
        let products = TimedProducts::OF_PROCESSOR;
        let work = device.timed_products(products.side, DType::F32, products.times)?;
        return Ok(products.operations() / fastest(work, clock)?);
    }
    let mut products = TimedProducts::SMALLEST;
    let fastest = loop {
        let mut work = device.timed_products(products.side, numbers, products.times)?;
        work()?;
        let before = clock();
        work()?;
        let took = clock().saturating_sub(before);
        match products.larger().filter(|_| took < LONG_ENOUGH) {
            Some(larger) if larger.fit(device, numbers)? => products = larger,
            _ => break fastest(work, clock)?,
        }
    };
    // The next work has other sizes.
    device.release_unused()?;
    Ok(products.operations() / fastest)
}

/// What a worker tells of its device's speed, in operations a second: of products of its processor, or of its GPU in [`GPU_NUMBERS`].
///
/// # Errors
/// As [`product_rate`].
pub fn worker_speed(device: &ComputeDevice, clock: &Clock) -> Result<f64> {
    product_rate(device, GPU_NUMBERS, clock)
}

/// The fewest seconds that some work takes.
fn fastest(mut work: TimedWork, clock: &Clock) -> Result<f64> {
    const BUDGET: Duration = Duration::from_millis(300);
    let start = clock();
    let mut fastest = Duration::MAX;
    while fastest == Duration::MAX || clock().saturating_sub(start) < BUDGET {
        let before = clock();
        work()?;
        fastest = fastest.min(clock().saturating_sub(before));
    }
    Ok(fastest.as_secs_f64().max(1e-9))
}

/// What this machine and the device that computes reach, as the process's threads are set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineRates {
    /// Operations of f32 products in a second, as solving has them.
    pub products: f64,
    /// Operations of products in a second, of the type that forward calls and Grams have.
    pub forward: f64,
    /// Bytes of the device's memory that loops over large matrices read and write in a second.
    pub memory: f64,
    /// Bytes of a file that are read and digested in a second.
    pub read: f64,
    /// Bytes that are digested, written to a file and synced in a second.
    pub written: f64,
}

impl MachineRates {
    /// Measures them in about half a second, but for files on a device, with forward calls in this type. The file is one without a name in the
    /// folder of temporary files.
    ///
    /// # Errors
    /// When a product does not fit in memory, the device fails, or the file cannot be written.
    pub fn measure(device: &ComputeDevice, forward: DType, clock: &Clock) -> Result<Self> {
        /// Numbers that are copied, more than the caches of any GPU hold.
        const NUMBERS: usize = 64 << 20;
        let products = product_rate(device, DType::F32, clock)?;
        let forward = match forward {
            DType::F32 => products,
            _ if device.is_host() => products,
            other => product_rate(device, other, clock)?,
        };
        let memory = match device.timed_copy(NUMBERS)? {
            Some(copy) => (2 * size_of::<f32>() * NUMBERS) as f64 / fastest(copy, clock)?,
            None => memory_rate(clock),
        };
        // The next work has other sizes.
        device.release_unused()?;
        let [read, written] = file_rates(clock).map_err(Error::System)?;
        Ok(Self { products, forward, memory, read, written })
    }
}

/// Bytes a second of a loop over matrices that are larger than caches: each number is read twice and written once.
fn memory_rate(clock: &Clock) -> f64 {
    const NUMBERS: usize = 6 << 20;
    const ROUNDS: usize = 4;
    /// Numbers of one task.
    const TASK: usize = 1 << 16;
    let (mut sums, numbers) = (vec![0f32; NUMBERS], vec![1f32; NUMBERS]);
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let before = clock();
        sums.par_chunks_mut(TASK).zip(numbers.par_chunks(TASK)).for_each(|(sums, numbers)| {
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        });
        fastest = fastest.min(clock().saturating_sub(before));
    }
    (3 * size_of::<f32>() * NUMBERS) as f64 / fastest.as_secs_f64().max(1e-9)
}

/// Bytes a second of reading a file and digesting it, and of digesting them, writing them to a file and syncing it.
fn file_rates(clock: &Clock) -> io::Result<[f64; 2]> {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 64;
    let mut piece: Vec<u8> = (0..PIECE).map(|i| i as u8).collect();
    let mut file = tempfile::tempfile()?;
    let start = clock();
    let mut hasher = Hasher::default();
    for _ in 0..PIECES {
        hasher.update(&piece);
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let written = clock();
    file.rewind()?;
    for _ in 0..PIECES {
        file.read_exact(&mut piece)?;
        hasher.update(&piece);
    }
    hasher.finish();
    let read = clock();
    let rate = |time: Duration| (PIECE * PIECES) as f64 / time.as_secs_f64().max(1e-9);
    Ok([rate(read.saturating_sub(written)), rate(written.saturating_sub(start))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read_in_bytes() {
        assert_eq!(available("MemTotal:  900 kB\nMemAvailable:      800 kB\n"), Some(800 * 1024));
        assert_eq!(available("MemTotal:  900 kB\n"), None);
    }

    #[test]
    fn every_group_above_this_process_limits_it() {
        let read = |path: &Path| {
            let text = match path.to_str()? {
                "/g/pod/box/memory.max" => "max",
                "/g/pod/memory.max" => "4096",
                "/g/memory/old/memory.limit_in_bytes" => "8192",
                "/g/memory/other/memory.limit_in_bytes" => "1",
                _ => return None,
            };
            Some(format!("{text}\n"))
        };
        let limits = |groups| limits(groups, Path::new("/g"), read).collect::<Vec<_>>();
        assert_eq!(limits("0::/pod/box\n"), [4096]);
        assert_eq!(limits("7:cpu:/other\n6:memory:/old\n0::/\n"), [8192]);
        assert!(limits("").is_empty());
    }

    /// Each reading of the clock advances it by a tenth of a second.
    fn slow_clock() -> Clock {
        let ticks = std::sync::Mutex::new(0..);
        std::sync::Arc::new(move || Duration::from_millis(100 * ticks.lock().unwrap().next().unwrap()))
    }

    #[test]
    fn the_rate_is_that_of_the_fastest_product() {
        assert_eq!(
            product_rate(&ComputeDevice::Cpu, DType::BF16, &slow_clock()).unwrap().round(),
            (2.0 * 1024f64.powi(3) / 0.1).round()
        );
    }

    #[test]
    fn timed_products_grow_to_the_largest_and_then_in_number() {
        let sizes = std::iter::successors(Some(TimedProducts::SMALLEST), |products| products.larger());
        let sizes: Vec<_> = sizes.map(|products| (products.side, products.times)).collect();
        let expected = [256, 512, 1024, 2048].map(|side| (side, 1));
        let further = [1, 2, 4, 8, 16, 32, 64].map(|times| (4096, times));
        assert_eq!(sizes, [&expected[..], &further].concat());
        assert_eq!(TimedProducts { side: 4, times: 3 }.operations(), 384.0);
    }

    #[test]
    fn byte_rates_are_bytes_over_the_time_between_two_readings() {
        // Two matrices of 24 MiB, one of which is written, too; and a file of 64 MiB.
        assert_eq!(memory_rate(&slow_clock()).round(), f64::from(3 * (24 << 20)) / 0.1);
        let file = f64::from(64 << 20) / 0.1;
        assert_eq!(file_rates(&slow_clock()).unwrap().map(f64::round), [file, file].map(f64::round));
    }
}

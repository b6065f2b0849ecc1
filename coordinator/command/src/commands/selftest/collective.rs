//! A sum over workers: over two threads of this process, or by NCCL over a group of one.

use std::time::Duration;

use obsdiff_engine::device::DeviceName;
use obsdiff_proto::Epoch;
use obsdiff_worker::collective::{Abort, Buffer, CollectiveError, Local, Member, Transport, Values};

use super::{Bench, Check};
use crate::{Error, Result};

/// Numbers that are summed.
const COUNT: i64 = 100_000;

/// How long a group may take to form, and to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// Sums integers over the group that workers on this device form.
///
/// # Errors
/// When the group cannot be formed, or fails.
pub(super) fn check(device: DeviceName, bench: &Bench<'_>) -> Result<Check> {
    // Large enough that f32 or f64 would round them.
    let own: Vec<i64> = (0..COUNT).map(|i| (1 << 60) + 7 * i).collect();
    let failed = |error: CollectiveError| Error::Session(error.to_string());
    let (what, sums, world, seconds) = match device {
        DeviceName::Cpu => {
            let (sums, seconds) = bench.timed(|| by_threads(&own).map_err(failed))?;
            ("sum over two workers", sums, 2, seconds)
        }
        DeviceName::Cuda(gpu) => {
            let (sums, seconds) = bench.timed(|| by_nccl(gpu, &own))?;
            ("sum over a group of one by NCCL", sums, 1, seconds)
        }
    };
    let wrong = sums.iter().zip(&own).filter(|(sum, own)| **sum != *own * world).count();
    let wrong = if sums.len() == own.len() { wrong } else { own.len() };
    Ok(Check { what: what.to_owned(), off: wrong as f64, limit: 0.0, seconds, processor_seconds: None })
}

/// What the first of two ranks with the same numbers receives.
fn by_threads(own: &[i64]) -> Result<Vec<i64>, CollectiveError> {
    let transport = Local::default();
    let sum = |rank| {
        let member = Member { epoch: Epoch(1), rank, world: 2, form: LIMIT, silence: LIMIT };
        let mut group = transport.join(member, &Abort::default())?;
        let mut sums = vec![0; own.len()];
        group.all_reduce(Values::I64(own), Buffer::I64(&mut sums))?;
        Ok(sums)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| sum(1).map(drop));
        let sums = sum(0);
        match other.join() {
            Ok(ended) => ended.and(sums),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(feature = "cuda")]
fn by_nccl(gpu: usize, own: &[i64]) -> Result<Vec<i64>> {
    use obsdiff_worker::collective::{Nccl, NcclSettings};
    // A group that is not left in time would hang in the libraries' own exit as well.
    let on_stuck =
        std::sync::Arc::new(|_: &str| signal_hook::low_level::exit(i32::from(crate::error::RESUMABLE)));
    Nccl::sum_alone(NcclSettings::new(gpu, on_stuck), own).map_err(|e| Error::Session(e.to_string()))
}

#[cfg(not(feature = "cuda"))]
fn by_nccl(_: usize, _: &[i64]) -> Result<Vec<i64>> {
    Err(Error::Session("this build has no NCCL: build obsdiff with --features cuda".to_owned()))
}

//! `obsdiff selftest`: compares a device with the processor, and prints how fast it is.

mod collective;
mod forward;
mod grams;
mod solving;

use std::fmt;
use std::time::Duration;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::transfers::{TransferKind, Transfers};
use obsdiff_proto::{ByteSize, counted};
use serde::Serialize;

use super::run::open_device;
use crate::cli::SelftestArgs;
use crate::clock::Clock;
use crate::context::CommandContext;
use crate::text::Table;
use crate::{Error, Result};

/// Checks what a job needs of a device: forward calls, Grams, solving and sums over workers.
///
/// # Errors
/// When the device cannot be used, or a check fails; what was checked is shown first.
pub(super) fn selftest(args: &SelftestArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let device = open_device(args.device)?;
    context.use_threads(args.process.threads)?;
    context.compute_here()?;
    let bench = Bench { device: &device, clock: &context.clock };
    let mut checks = forward::checks(&bench)?;
    checks.extend(grams::checks(&bench)?);
    checks.extend(solving::checks(&bench)?);
    // What it lacks is printed behind what the device itself can do.
    let (summed, problem) = match collective::check(args.device, &bench) {
        Ok(check) => (Some(check), None),
        Err(error) => (None, Some(error)),
    };
    checks.extend(summed);
    if device.is_host() {
        // It is not compared with itself.
        checks.iter_mut().for_each(|check| check.processor_seconds = None);
    }
    let failed: Vec<&str> =
        checks.iter().filter(|check| !check.passed()).map(|check| check.what.as_str()).collect();
    let wrong = (!failed.is_empty()).then(|| {
        let count = counted(checks.len(), "check");
        Error::Session(format!("{} of {count} failed: {}", failed.len(), failed.join("; ")))
    });
    let report = SelftestReport {
        device: args.device.to_string(),
        hardware: device.hardware(),
        checks,
        transfers: (!device.is_host()).then(|| device.transfers()),
    };
    context.print(&report, args.json)?;
    wrong.or(problem).map_or(Ok(()), Err)
}

/// What checks are made with.
struct Bench<'a> {
    device: &'a ComputeDevice,
    clock: &'a Clock,
}

impl Bench<'_> {
    /// A result, and the seconds that it took.
    fn timed<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let start = (self.clock)();
        let result = work()?;
        Ok((result, self.since(start)))
    }

    fn since(&self, start: Duration) -> f64 {
        (self.clock)().saturating_sub(start).as_secs_f64()
    }
}

/// What one check found.
#[derive(Serialize)]
struct Check {
    what: String,
    /// How far the device is off what is right, and how far it may be.
    off: f64,
    limit: f64,
    /// How long the device took, and how long the processor did for the same; none where there is nothing to compare with.
    seconds: f64,
    processor_seconds: Option<f64>,
}

impl Check {
    /// A number that is not one is not within a limit.
    fn passed(&self) -> bool {
        self.off <= self.limit
    }
}

/// What all checks found; `--json` prints it as it is here.
#[derive(Serialize)]
struct SelftestReport {
    device: String,
    hardware: String,
    checks: Vec<Check>,
    /// What has crossed between the host's memory and the device's in all checks but that of sums; none where both are one.
    #[serde(skip_serializing_if = "Option::is_none")]
    transfers: Option<Transfers>,
}

impl fmt::Display for SelftestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}\n", self.device, self.hardware)?;
        let compared = self.checks.iter().any(|check| check.processor_seconds.is_some());
        let header = ["check", "off by", "at most", "time"].into_iter();
        let mut table = Table::new(header.chain(compared.then_some("speed-up")).chain(["result"]));
        for check in &self.checks {
            let ratio = check.processor_seconds.map(|seconds| seconds / check.seconds.max(1e-9));
            let figures = [
                check.what.clone(),
                format!("{:.1e}", check.off),
                format!("{:.1e}", check.limit),
                format!("{:.2} ms", 1e3 * check.seconds),
            ];
            let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let result = if check.passed() { "ok" } else { "FAILED" }.to_owned();
            table.row(figures.into_iter().chain(compared.then_some(ratio)).chain([result]));
        }
        write!(f, "{}", table.to_string().trim_end())?;
        let Some(transfers) = &self.transfers else { return Ok(()) };
        let mut table = Table::new(["copied", "to device", "bytes", "to host", "bytes"]);
        for kind in TransferKind::ALL {
            let directions = [transfers.to_device(kind), transfers.to_host(kind)];
            let cells =
                directions.iter().flat_map(|way| [way.count.to_string(), ByteSize(way.bytes).to_string()]);
            table.row([kind.name().to_owned()].into_iter().chain(cells));
        }
        write!(f, "\n\n{}", table.to_string().trim_end())
    }
}

/// ||a - b|| / ||b||, by the Euclidean norm.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b)));
    let whole: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if a.len() == b.len() { (pairs.sum::<f64>() / whole).sqrt() } else { f64::INFINITY }
}

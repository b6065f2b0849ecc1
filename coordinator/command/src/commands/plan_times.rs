//! The predicted time of each package by a number of workers like this machine.

use std::fmt;

use obsdiff_core::Options;
use obsdiff_core::cost::{self, Cluster, PackageTimes, PredictionInputs};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_proto::{ByteSize, Plan};
use serde::Serialize;

use super::plan_report::duration;
use crate::clock::Clock;
use crate::described::Described;
use crate::job::JobFile;
use crate::text::Table;
use crate::{Result, rates};

/// The predicted times.
#[derive(Serialize)]
pub(super) struct PredictedTimes {
    workers: u32,
    /// Where each computes, in words.
    #[serde(skip)]
    device: String,
    bandwidth_bytes_per_second: u64,
    /// How many times as fast as one worker they are.
    speedup: f64,
    packages: Vec<TimeReport>,
    total: TimeReport,
}

#[derive(Serialize)]
struct TimeReport {
    calibrate_seconds: f64,
    reduce_seconds: f64,
    solve_seconds: f64,
    seconds: f64,
}

impl From<&PackageTimes> for TimeReport {
    fn from(times: &PackageTimes) -> Self {
        Self {
            calibrate_seconds: times.calibrate,
            reduce_seconds: times.reduce,
            solve_seconds: times.solve,
            seconds: times.all(),
        }
    }
}

impl PredictedTimes {
    /// Of this number of workers with this bandwidth. The speed of one worker is measured here, on a device whose products in forward calls run at
    /// so many operations a second.
    ///
    /// # Errors
    /// When the model that is measured does not fit in memory or in the folder of temporary files.
    pub(super) fn predict(
        job: &JobFile,
        described: &Described,
        plan: &Plan,
        (workers, bandwidth): (u32, ByteSize),
        speed: (&ComputeDevice, f64),
        clock: &Clock,
    ) -> Result<Self> {
        let rates = rates::measure(job, described, speed, clock)?;
        let setting = PredictionInputs {
            inventory: &described.inventory,
            accumulate: job.spec.hessian.accumulate,
            options: &Options::of(&job.spec),
            workload: &described.workload(&job.spec),
            rates: &rates,
        };
        let times = |workers| {
            let cluster = Cluster { workers, bandwidth: bandwidth.0 as f64 };
            cost::times(plan, setting, cluster)
        };
        let of_one: PackageTimes = times(1).into_iter().sum();
        let times = times(workers);
        let total: PackageTimes = times.iter().copied().sum();
        Ok(Self {
            workers,
            device: device_words(speed.0),
            bandwidth_bytes_per_second: bandwidth.0,
            speedup: of_one.all() / total.all(),
            packages: times.iter().map(TimeReport::from).collect(),
            total: TimeReport::from(&total),
        })
    }
}

/// A device of this machine, in words.
fn device_words(device: &ComputeDevice) -> String {
    device.gpu().map_or("its processor".to_owned(), |gpu| format!("its cuda:{gpu}"))
}

impl fmt::Display for PredictedTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["package", "calibrate", "reduce", "solve", "all"]);
        let row = |name: String, times: &TimeReport| {
            let parts = [times.calibrate_seconds, times.reduce_seconds, times.solve_seconds, times.seconds];
            [name].into_iter().chain(parts.map(duration))
        };
        for (place, times) in self.packages.iter().enumerate() {
            table.row(row((place + 1).to_string(), times));
        }
        table.rule();
        table.row(row("all".to_owned(), &self.total));
        let who = match self.workers {
            1 => format!("1 worker like this machine, on {}", self.device),
            workers => format!(
                "{workers} workers like this machine, on {}, {} a second between them, {:.1} times as fast as one",
                self.device,
                ByteSize(self.bandwidth_bytes_per_second),
                self.speedup
            ),
        };
        write!(f, "Time of {who}:\n{}", table.to_string().trim_end())
    }
}

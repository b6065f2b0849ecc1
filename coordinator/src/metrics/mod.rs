//! Metrics of a job in the conventions of Prometheus.
//!
//! Counters come from what happens ([`Observer`]) and from what workers measure; the rest from the job's report when it is asked for.

mod families;
mod workers;

use std::io;
use std::sync::Mutex;

use obsdiff_core::{Core, Event};
use obsdiff_proto::message::{Hello, Status};
use obsdiff_proto::view::JobReport;
use obsdiff_proto::{WorkerId, lock};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};

use crate::{Error, Observer, Result};
use families::Families;
use workers::WorkerTotals;

/// The media type of the text.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The metrics of one job. They live as long as the process, so that counters never go down.
pub struct Metrics {
    state: Mutex<MetricsState>,
}

struct MetricsState {
    families: Families,
    workers: WorkerTotals,
}

impl Metrics {
    /// Metrics of a job of which nothing has happened yet.
    ///
    /// # Errors
    /// When their names contradict each other.
    pub fn new() -> Result<Self> {
        let families = Families::new().map_err(|e| Error::Metrics(e.to_string()))?;
        Ok(Self { state: Mutex::new(MetricsState { families, workers: WorkerTotals::default() }) })
    }

    /// All metrics in Prometheus' text format; without a report those that need none, as they were when there was one.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn text(&self, report: Option<&JobReport>) -> Result<String> {
        let mut text = Vec::new();
        self.write(report, &mut text)?;
        String::from_utf8(text).map_err(|e| Error::Metrics(e.to_string()))
    }

    /// Writes the same. The job waits while the numbers are copied, and no longer when they become text.
    fn write(&self, report: Option<&JobReport>, out: &mut impl io::Write) -> Result<()> {
        let families = self.families(report);
        TextEncoder::new().encode(&families, out).map_err(|e| Error::Metrics(e.to_string()))
    }

    fn families(&self, report: Option<&JobReport>) -> Vec<MetricFamily> {
        let state = &mut *lock(&self.state);
        if let Some(report) = report {
            state.families.show(report);
            state.families.show_workers(&report.view.workers, &state.workers);
        }
        state.families.registry.gather()
    }
}

impl Observer for std::sync::Arc<Metrics> {
    fn event(&mut self, event: &Event) {
        let state = &mut *lock(&self.state);
        state.families.count(event);
        match event {
            // Workers that stand by, or are refused, do not come so far.
            Event::Joined { worker, .. } | Event::Preparing { worker } => state.workers.joined(*worker),
            Event::Left { worker, .. } => state.workers.left(*worker),
            _ => {}
        }
    }

    fn step(&mut self, core: &Core) {
        let (probed, all) = core.probes();
        lock(&self.state).families.show_probes(probed, all);
    }

    fn joined(&mut self, worker: WorkerId, hello: &Hello) {
        lock(&self.state).workers.arriving(worker, hello.instance);
    }

    fn reported(&mut self, worker: WorkerId, status: &Status) {
        let state = &mut *lock(&self.state);
        state.workers.reported(worker, &status.measures);
        state.families.add(&state.workers);
    }
}

#[cfg(test)]
mod tests;

//! Metrics of a job in the conventions of Prometheus.
//!
//! Counters come from what happens ([`Observer`]) and from what workers measure; the rest from the job's report when it is asked for.

mod families;
mod workers;

use std::sync::Mutex;

use obsdiff_core::{Core, Event};
use obsdiff_proto::message::{Hello, Status};
use obsdiff_proto::view::JobReport;
use obsdiff_proto::{WorkerId, lock};
use prometheus::TextEncoder;

use crate::{Error, Observer, Result};
use families::Families;
use workers::Workers;

/// The media type of the text.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The metrics of one job. They live as long as the process, so that counters never go down.
pub struct Metrics {
    state: Mutex<State>,
}

struct State {
    families: Families,
    workers: Workers,
}

impl Metrics {
    /// Metrics of a job of which nothing has happened yet.
    ///
    /// # Errors
    /// When their names contradict each other.
    pub fn new() -> Result<Self> {
        let families = Families::new().map_err(|e| Error::Metrics(e.to_string()))?;
        Ok(Self { state: Mutex::new(State { families, workers: Workers::default() }) })
    }

    /// All metrics in Prometheus' text format; without a report those that need none, as they were when there was one.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn text(&self, report: Option<&JobReport>) -> Result<String> {
        let state = &mut *lock(&self.state);
        if let Some(report) = report {
            state.families.show(report);
            state.families.show_workers(&report.view.workers, &state.workers);
        }
        let families = state.families.registry.gather();
        TextEncoder::new().encode_to_string(&families).map_err(|e| Error::Metrics(e.to_string()))
    }

    #[cfg(test)]
    fn families(&self) -> Vec<prometheus::proto::MetricFamily> {
        lock(&self.state).families.registry.gather()
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

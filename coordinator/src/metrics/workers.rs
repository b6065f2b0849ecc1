//! What workers measured, those that have left included.

use std::collections::BTreeMap;

use obsdiff_proto::{Measures, PrunedSoFar, WorkerId};

/// The latest measures of every process that has worked for the job. A process that comes back as another worker continues its
/// numbers, so they are kept by process: nothing counts twice.
#[derive(Debug, Default)]
pub(super) struct WorkerTotals {
    processes: BTreeMap<u128, Measures>,
    /// The worker whose session opened last, and its process.
    arriving: Option<(WorkerId, u128)>,
    /// The process of each connected worker.
    connected: BTreeMap<WorkerId, u128>,
    /// The sum of all processes' measures.
    pub(super) total: Measures,
    /// What finished packages have become, as reported by the worker that has applied the most.
    pub(super) pruned: PrunedSoFar,
}

impl WorkerTotals {
    /// A session opened.
    pub(super) fn arriving(&mut self, worker: WorkerId, process: u128) {
        self.arriving = Some((worker, process));
    }

    /// Its worker was taken in.
    pub(super) fn joined(&mut self, worker: WorkerId) {
        if let Some((_, process)) = self.arriving.take_if(|(arriving, _)| *arriving == worker) {
            self.connected.insert(worker, process);
        }
    }

    pub(super) fn left(&mut self, worker: WorkerId) {
        self.connected.remove(&worker);
    }

    /// The last report of a connected worker.
    pub(super) fn of(&self, worker: WorkerId) -> Option<&Measures> {
        self.processes.get(self.connected.get(&worker)?)
    }

    /// Takes in what a worker measured. Numbers of a process only grow: a report that came late takes nothing back.
    pub(super) fn reported(&mut self, worker: WorkerId, measures: &Measures) {
        let Some(process) = self.connected.get(&worker) else { return };
        let known = self.processes.entry(*process).or_default();
        let total = &mut self.total;
        grow(&mut known.prompt_steps, measures.prompt_steps, &mut total.prompt_steps);
        grow(&mut known.reduced_bytes, measures.reduced_bytes, &mut total.reduced_bytes);
        let times = [
            (&mut known.forward, measures.forward, &mut total.forward),
            (&mut known.gram, measures.gram, &mut total.gram),
            (&mut known.solve, measures.solve, &mut total.solve),
        ];
        for (known, said, total) in times {
            *total = total.saturating_add(said.saturating_sub(*known));
            *known = said.max(*known);
        }
        known.peak_memory = measures.peak_memory.or(known.peak_memory);
        known.planned_memory = measures.planned_memory.or(known.planned_memory);
        known.gpu_memory = measures.gpu_memory.or(known.gpu_memory);
        if measures.pruned.linears > self.pruned.linears {
            self.pruned = measures.pruned;
        }
    }
}

/// Adds to `total` what a number has grown by.
fn grow(known: &mut u64, said: u64, total: &mut u64) {
    *total = total.saturating_add(said.saturating_sub(*known));
    *known = said.max(*known);
}

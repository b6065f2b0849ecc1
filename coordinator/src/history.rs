//! What happened in a job so far: how long each phase took, who took part and who left, and the last events. The page shows it while the job
//! runs, and its [`MeasuredCourse`] goes into the record of the output.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use obsdiff_core::{Core, Event};
use obsdiff_proto::message::Manifest;
use obsdiff_proto::view::{BlockFigures, JobDetails, PastEvent, Phase, PhaseTime, WorkerLeft, WorkerMemory};
use obsdiff_proto::{LinearId, Measures, PackageId, WorkerId};
use obsdiff_store::{LinearFigures, PartReceipt};

/// The last events that are kept.
const EVENTS: usize = 100;

/// The last workers that left, of which it is kept why.
const LEFT: usize = 20;

/// The most faults that a record lists one by one.
const MOST_FAULTS: usize = 200;

/// How a job went in this process. It has an entry for each phase of each package at most, and bounded lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeasuredCourse {
    /// How long each phase of each package took, in the order in which they began.
    pub timeline: Vec<PhaseTime>,
    /// The most workers that took part at one time.
    pub most_workers: usize,
    /// Workers that left before the job was over, however they left.
    pub workers_lost: usize,
    /// Groups of workers that formed to sum their Grams.
    pub groups: usize,
    /// How often a worker sent its Grams of a package to be summed: once for each member but one of each group that formed.
    pub sendings: BTreeMap<PackageId, u64>,
    /// Bytes of the pruned weights of each package that is committed, or about to be.
    pub stored: BTreeMap<PackageId, u64>,
    /// What went wrong before the job was over, workers included that left on their own; the first 200 of it.
    pub faults: Vec<PastEvent>,
    /// Faults past these.
    pub further_faults: usize,
}

/// The history of a job in this process.
#[derive(Default)]
pub(crate) struct History {
    course: MeasuredCourse,
    /// The entry of the timeline that is under way.
    open: Option<usize>,
    over: bool,
    /// The members of the group that forms.
    members: usize,
    blocks: BTreeMap<String, PrunedBlock>,
    /// Of connected workers.
    memory: BTreeMap<WorkerId, WorkerMemory>,
    /// The processes of connected workers.
    processes: BTreeMap<WorkerId, u128>,
    /// What took more memory than planned, of each process once.
    excesses: BTreeSet<(u128, &'static str)>,
    workers_left: VecDeque<WorkerLeft>,
    events: VecDeque<PastEvent>,
}

impl History {
    /// Takes in where the job stands.
    pub(crate) fn step(&mut self, now: Duration, core: &Core) {
        self.stand(now, core.package(), core.phase(), core.connected());
    }

    fn stand(&mut self, now: Duration, package: Option<PackageId>, phase: Phase, workers: usize) {
        self.course.most_workers = self.course.most_workers.max(workers);
        let timeline = &mut self.course.timeline;
        let is_this = |time: &PhaseTime| time.package == package && time.phase == phase;
        if self.open.is_some_and(|open| is_this(&timeline[open])) {
            return;
        }
        if let Some(last) = self.open.take().and_then(|open| timeline.get_mut(open)) {
            last.took += last.since.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        }
        self.over = phase == Phase::Over;
        if self.over {
            return;
        }
        let known = timeline.iter().rposition(is_this);
        let open = known.unwrap_or_else(|| {
            timeline.push(PhaseTime { package, phase, took: Duration::ZERO, since: None });
            timeline.len() - 1
        });
        timeline[open].since = Some(now);
        self.open = Some(open);
    }

    /// Takes in that a worker joined, which is this process.
    pub(crate) fn joined(&mut self, worker: WorkerId, process: u128) {
        self.processes.insert(worker, process);
    }

    /// Takes in that a worker was sent away. Of one that the core did not take in, no event says that it left.
    pub(crate) fn dismissed(&mut self, worker: WorkerId) {
        self.processes.remove(&worker);
    }

    /// Takes in what happened.
    pub(crate) fn event(&mut self, now: Duration, event: &Event) {
        let past = PastEvent { at: now, fault: event.is_fault(), words: event.to_string() };
        match event {
            Event::Joined { worker, .. } | Event::Preparing { worker } => {
                let unknown = WorkerMemory { worker: *worker, peak: None, planned: None, gpu: None };
                self.memory.insert(*worker, unknown);
            }
            Event::Left { worker, why, .. } => {
                self.memory.remove(worker);
                self.processes.remove(worker);
                keep(&mut self.workers_left, LEFT, WorkerLeft { worker: *worker, at: now, why: why.clone() });
                // Workers leave once the job is over.
                self.course.workers_lost += usize::from(!self.over);
            }
            Event::Grouped { members, .. } => self.members = *members,
            Event::Formed { .. } => self.formed(),
            _ => {}
        }
        let counts = past.fault || matches!(event, Event::Left { .. });
        self.add(past, counts);
    }

    /// Adds what happened to the last events, and to what went wrong before the job was over if it counts as that.
    fn add(&mut self, past: PastEvent, counts: bool) {
        if counts && !self.over {
            if self.course.faults.len() < MOST_FAULTS {
                self.course.faults.push(past.clone());
            } else {
                self.course.further_faults += 1;
            }
        }
        keep(&mut self.events, EVENTS, past);
    }

    /// Takes in what a worker measured. What took more memory than plans count is an event.
    pub(crate) fn reported(&mut self, now: Duration, worker: WorkerId, measures: &Measures) {
        let excesses = [
            ("opening its GPU took", measures.opening_excess),
            ("a factorisation on its GPU works in", measures.solving_excess),
        ];
        for (what, excess) in excesses {
            let (Some(excess), Some(process)) = (excess, self.processes.get(&worker)) else { continue };
            if self.excesses.insert((*process, what)) {
                let words = format!("worker {worker}: {what} {excess}");
                self.add(PastEvent { at: now, fault: true, words }, true);
            }
        }
        if let Some(memory) = self.memory.get_mut(&worker) {
            memory.peak = measures.peak_memory.or(memory.peak);
            memory.planned = measures.planned_memory.or(memory.planned);
            memory.gpu = measures.gpu_memory.or(memory.gpu);
        }
    }

    fn formed(&mut self) {
        self.course.groups += 1;
        if let Some(package) = self.open.and_then(|open| self.course.timeline[open].package) {
            *self.course.sendings.entry(package).or_default() += self.members.saturating_sub(1) as u64;
        }
    }

    /// Takes in the weights that a package is committed with.
    pub(crate) fn commits(&mut self, manifest: &Manifest) {
        // A receipt that is not one of the store's is refused when the manifest is put.
        let receipts = manifest.parts.values().filter_map(|receipt| PartReceipt::try_from(receipt).ok());
        self.course.stored.insert(manifest.package, receipts.map(|receipt| receipt.bytes).sum());
    }

    /// What of it goes into the record of the output.
    pub(crate) fn course(&self) -> &MeasuredCourse {
        &self.course
    }

    /// Takes in what became of the linears of a committed package.
    pub(crate) fn pruned(&mut self, linears: Vec<LinearFigures>) {
        for linear in linears {
            let name = block_of(&linear.name);
            let block = self.blocks.entry(name.to_owned()).or_default();
            block.add(&linear);
        }
    }

    /// Blocks in the order of the model.
    fn blocks(&self) -> Vec<BlockFigures> {
        let mut blocks: Vec<_> = self.blocks.iter().collect();
        blocks.sort_by_key(|(_, block)| block.first);
        let figures = |(name, block): (&String, &PrunedBlock)| BlockFigures {
            name: name.clone(),
            weights: block.weights,
            zeros: block.zeros,
            mean_error: (block.errors.1 > 0.0).then(|| block.errors.0 / block.errors.1),
        };
        blocks.into_iter().map(figures).collect()
    }

    /// All of it, with how far the open package is.
    pub(crate) fn details(&self, core: &Core) -> JobDetails {
        let (shard_grid, part_grid) = core.grids();
        JobDetails {
            timeline: self.course.timeline.clone(),
            shard_grid,
            part_grid,
            blocks: self.blocks(),
            memory: self.memory.values().copied().collect(),
            workers_left: self.workers_left.iter().cloned().collect(),
            events: self.events.iter().cloned().collect(),
        }
    }
}

/// What became of a block, and its first linear, which says where it is in the model.
#[derive(Default)]
struct PrunedBlock {
    first: Option<LinearId>,
    weights: u64,
    zeros: u64,
    /// Of the linears whose errors are known: the sum of error times weights, and of weights.
    errors: (f64, f64),
}

impl PrunedBlock {
    fn add(&mut self, linear: &LinearFigures) {
        self.first = Some(self.first.map_or(linear.linear, |first| first.min(linear.linear)));
        self.weights += linear.weights;
        self.zeros += linear.zeros;
        if let Some(error) = linear.error {
            self.errors.0 += error * linear.weights as f64;
            self.errors.1 += linear.weights as f64;
        }
    }
}

/// The block that a linear is in: its path up to the first number, such as `transformer_blocks.3`; the whole path where it has none.
fn block_of(linear: &str) -> &str {
    let mut end = 0;
    for part in linear.split('.') {
        end += part.len();
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            return &linear[..end];
        }
        end += 1;
    }
    linear
}

/// Adds an entry, and drops the oldest where there are more than `most`.
fn keep<T>(entries: &mut VecDeque<T>, most: usize, entry: T) {
    entries.push_back(entry);
    if entries.len() > most {
        entries.pop_front();
    }
}

#[cfg(test)]
mod tests;

//! What happened in a job so far: how long each phase took, who left, and the last events.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use obsdiff_core::{Core, Event};
use obsdiff_proto::view::{BlockFigures, JobDetails, PastEvent, Phase, PhaseTime, WorkerLeft};
use obsdiff_proto::{LinearId, PackageId};
use obsdiff_store::LinearFigures;

/// The last events that are kept.
const EVENTS: usize = 100;

/// The last workers that left, of which it is kept why.
const LEFT: usize = 20;

/// The history of a job in this process. It has an entry for each phase of each package at most, and bounded lists.
#[derive(Default)]
pub(crate) struct History {
    timeline: Vec<PhaseTime>,
    /// The entry of the timeline that is under way.
    open: Option<usize>,
    blocks: BTreeMap<String, PrunedBlock>,
    workers_left: VecDeque<WorkerLeft>,
    events: VecDeque<PastEvent>,
}

impl History {
    /// Takes in where the job stands.
    pub(crate) fn step(&mut self, now: Duration, core: &Core) {
        self.stand(now, core.package(), core.phase());
    }

    fn stand(&mut self, now: Duration, package: Option<PackageId>, phase: Phase) {
        let is_this = |time: &PhaseTime| time.package == package && time.phase == phase;
        if self.open.is_some_and(|open| is_this(&self.timeline[open])) {
            return;
        }
        if let Some(last) = self.open.take().and_then(|open| self.timeline.get_mut(open)) {
            last.took += last.since.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        }
        if phase == Phase::Over {
            return;
        }
        let known = self.timeline.iter().rposition(is_this);
        let open = known.unwrap_or_else(|| {
            self.timeline.push(PhaseTime { package, phase, took: Duration::ZERO, since: None });
            self.timeline.len() - 1
        });
        self.timeline[open].since = Some(now);
        self.open = Some(open);
    }

    /// Takes in what happened.
    pub(crate) fn event(&mut self, now: Duration, event: &Event) {
        if let Event::Left { worker, why, .. } = event {
            keep(&mut self.workers_left, LEFT, WorkerLeft { worker: *worker, at: now, why: why.clone() });
        }
        let event = PastEvent { at: now, fault: event.is_fault(), told: event.to_string() };
        keep(&mut self.events, EVENTS, event);
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
            timeline: self.timeline.clone(),
            shard_grid,
            part_grid,
            blocks: self.blocks(),
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
mod tests {
    use obsdiff_proto::WorkerId;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_phase_that_goes_on_after_a_fault_has_one_entry_with_all_its_time() {
        let mut history = History::default();
        let first = Some(PackageId(0));
        for (second, package, phase) in [
            (0, None, Phase::Pilot),
            (2, first, Phase::Calibrate),
            (3, first, Phase::Calibrate),
            (7, first, Phase::Reduce),
            (8, first, Phase::Calibrate),
            (10, first, Phase::Reduce),
        ] {
            history.stand(at(second), package, phase);
        }
        let time = |package, phase, seconds, since: Option<u64>| PhaseTime {
            package,
            phase,
            took: at(seconds),
            since: since.map(at),
        };
        let calibrated = time(first, Phase::Calibrate, 7, None);
        assert_eq!(
            history.timeline,
            [time(None, Phase::Pilot, 2, None), calibrated, time(first, Phase::Reduce, 1, Some(10))]
        );
        history.stand(at(15), None, Phase::Over);
        assert_eq!(history.timeline[2], time(first, Phase::Reduce, 6, None));
    }

    #[test]
    fn lists_are_bounded_and_keep_what_came_last() {
        let mut history = History::default();
        for second in 0..1000 {
            let (worker, quiet) = (WorkerId(second), Duration::ZERO);
            let (why, lost) = ("gone".to_owned(), Vec::new());
            history.event(at(second), &Event::Left { worker, why, quiet, lost, drained: false });
        }
        assert_eq!((history.workers_left.len(), history.events.len()), (LEFT, EVENTS));
        let last = history.events.back().unwrap();
        assert!(
            last.fault && last.at == at(999) && last.told.starts_with("worker 999 left (gone)"),
            "{last:?}"
        );
        history.event(at(1000), &Event::Ready { worker: WorkerId(3) });
        assert!(!history.events.back().unwrap().fault);
    }

    #[test]
    fn blocks_stand_in_the_order_of_the_model_with_the_mean_of_their_errors() {
        let mut history = History::default();
        let linear = |id, name: &str, weights, zeros, error| LinearFigures {
            linear: LinearId(id),
            name: name.to_owned(),
            weights,
            zeros,
            error,
        };
        history.pruned(vec![
            linear(9, "single_blocks.0.proj", 10, 5, None),
            linear(2, "blocks.10.attn.to_q", 30, 10, Some(0.1)),
        ]);
        history.pruned(vec![
            linear(3, "blocks.10.attn.to_k", 10, 2, Some(0.5)),
            linear(1, "blocks.2.attn.to_k", 4, 4, Some(0.25)),
            linear(4, "proj", 1, 0, None),
        ]);
        let block = |name: &str, weights, zeros, mean_error| BlockFigures {
            name: name.to_owned(),
            weights,
            zeros,
            mean_error,
        };
        assert_eq!(
            history.blocks(),
            [
                block("blocks.2", 4, 4, Some(0.25)),
                block("blocks.10", 40, 12, Some(0.2)),
                block("proj", 1, 0, None),
                block("single_blocks.0", 10, 5, None)
            ]
        );
    }
}

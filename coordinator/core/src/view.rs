//! What a user sees of a job: derived from the facts, like everything else.

use std::collections::BTreeMap;

use obsdiff_proto::view::{Activity, Ending, Grid, Phase, View, WorkerView};
use obsdiff_proto::{PackageId, WorkerId};

use crate::ledger::ShardHolder;
use crate::state::ConnectedWorker;
use crate::{Core, Group, Outcome};

impl Core {
    /// Where the job stands.
    pub fn view(&self) -> View {
        let open = self.open.as_ref();
        let to_solve = self.parts_to_solve();
        let worker = |(worker, member): (&WorkerId, &ConnectedWorker)| {
            let leased = open.map_or(0, |open| open.ledger.leased(*worker).len());
            let solving = to_solve.get(worker).copied().unwrap_or(0);
            WorkerView {
                worker: *worker,
                applied: member.applied,
                leased,
                held: open.map_or(0, |open| open.ledger.held_by(*worker).len()),
                pace: member.pace,
                draining: member.draining.is_some(),
                preparing: member.preparing,
                solving,
                activity: self.activity(*worker, member, leased, solving),
            }
        };
        View {
            phase: self.phase(),
            packages: self.job.plan.packages.len(),
            surveys: self.job.plan.packages.iter().filter(|package| package.survey).count(),
            committed: self.committed,
            package: open.map(|open| open.package),
            shards: self.job.plan.shards.len(),
            held: open.map_or(0, |open| open.ledger.held()),
            parts: open.map_or(0, |open| open.parts.len()),
            solved: open.map_or(0, |open| open.solved.len()),
            epoch: self.attempt.as_ref().map(|a| a.group.epoch),
            workers: self.members.iter().map(worker).collect(),
            ending: self.outcome.as_ref().map(Ending::from),
        }
    }

    /// What a worker does, which has so many shards and parts to work on.
    fn activity(
        &self,
        worker: WorkerId,
        member: &ConnectedWorker,
        leased: usize,
        solving: usize,
    ) -> Activity {
        let attempt = self.attempt.as_ref().filter(|a| a.group.members.binary_search(&worker).is_ok());
        if member.draining.is_some() {
            Activity::Leaves
        } else if member.preparing {
            let encodes = !self.encoded && self.encoder == Some(worker);
            if encodes { Activity::Encodes } else { Activity::Prepares }
        } else if member.applied < self.committed {
            Activity::Applies
        } else if self.pilot == Some(worker) {
            Activity::Pilots
        } else if self.exporter == Some(worker) {
            Activity::Exports
        } else if attempt.is_some_and(|a| !a.through.contains(&worker)) {
            Activity::Reduces
        } else if solving > 0 {
            Activity::Solves
        } else if self.open.as_ref().is_some_and(|open| !open.ledger.restoring(worker).is_empty()) {
            Activity::Restores
        } else if leased > 0 {
            Activity::Calibrates
        } else {
            Activity::Waits
        }
    }

    /// How many parts each worker of the group still has to solve.
    fn parts_to_solve(&self) -> BTreeMap<WorkerId, usize> {
        let mut counts = BTreeMap::new();
        if let (Some(attempt), Some(open)) = (&self.attempt, &self.open) {
            let unsolved = attempt.group.owners.iter().filter(|(part, _)| !open.solved.contains_key(part));
            for (_, owner) in unsolved {
                *counts.entry(*owner).or_default() += 1;
            }
        }
        counts
    }

    /// How far the shards and the parts of the open package are, each in order.
    pub fn grids(&self) -> (Grid, Grid) {
        let Some(open) = &self.open else { return Default::default() };
        let (mut shards, mut parts) = (Grid::new(open.ledger.total()), Grid::new(open.parts.len()));
        for (shard, holder) in open.ledger.taken() {
            shards.count(shard.0 as usize, matches!(holder, ShardHolder::Held(_)));
        }
        let owned =
            |part| self.attempt.as_ref().is_some_and(|a| a.reducing && a.group.owners.contains_key(part));
        for (place, part) in open.parts.keys().enumerate() {
            if open.solved.contains_key(part) {
                parts.count(place, true);
            } else if owned(part) {
                parts.count(place, false);
            }
        }
        (shards, parts)
    }

    /// Whether a worker adds saved sums to its own.
    pub fn is_restoring(&self) -> bool {
        let restores = |open: &crate::state::OpenPackage| {
            self.members.keys().any(|worker| !open.ledger.restoring(*worker).is_empty())
        };
        self.open.as_ref().is_some_and(restores)
    }

    /// Packages committed, counted from the first.
    pub fn committed(&self) -> u32 {
        self.committed
    }

    /// Workers that take part.
    pub fn connected(&self) -> usize {
        self.members.len()
    }

    /// The package being pruned.
    pub fn package(&self) -> Option<PackageId> {
        self.open.as_ref().map(|open| open.package)
    }

    /// The share of the open package's shards that are in some worker's sums, and the share of its parts that are solved.
    pub fn progress(&self) -> (f64, f64) {
        let share = |done: usize, all: usize| if all == 0 { 1.0 } else { done as f64 / all as f64 };
        let shares = |open: &crate::state::OpenPackage| {
            (share(open.ledger.held(), open.ledger.total()), share(open.solved.len(), open.parts.len()))
        };
        self.open.as_ref().map_or((0.0, 0.0), shares)
    }

    /// Linears that were probed to find what pruning each costs, and how many are to be.
    pub fn probes(&self) -> (usize, usize) {
        let surveys = self.job.plan.packages.iter().filter(|package| package.survey);
        surveys.fold((0, 0), |(done, all), package| {
            let linears = package.linears.len();
            let probed = match &self.open {
                _ if package.id.0 < self.committed => linears,
                Some(open) if open.package == package.id => linears - open.unsolved_linears(),
                _ => 0,
            };
            (done + probed, all + linears)
        })
    }

    /// The group that reduces the open package, while there is one.
    pub fn group(&self) -> Option<&Group> {
        self.attempt.as_ref().map(|attempt| &*attempt.group)
    }

    /// How the job ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// What the job is busy with.
    pub fn phase(&self) -> Phase {
        if self.outcome.is_some() {
            return Phase::Over;
        }
        let Some(open) = &self.open else {
            return if self.all_committed() { Phase::Export } else { Phase::Pilot };
        };
        match &self.attempt {
            _ if open.commit.is_some() => Phase::Commit,
            Some(attempt) if attempt.all_received() => Phase::Solve,
            Some(_) => Phase::Reduce,
            None if self.ready().next().is_none() && self.members.values().any(|m| !m.preparing) => {
                Phase::Apply
            }
            None => Phase::Calibrate,
        }
    }
}

impl From<&Outcome> for Ending {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Failed(failure) => Self::Failed(failure.to_string()),
        }
    }
}

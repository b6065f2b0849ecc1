//! What a user sees of a job: derived from the facts, like everything else.

use std::time::Duration;

use obsdiff_proto::{Epoch, PackageId, WorkerId};

use crate::{Core, Outcome};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What is being done.
    pub phase: Phase,
    /// Packages planned.
    pub packages: usize,
    /// Packages committed.
    pub committed: u32,
    /// The package being pruned.
    pub package: Option<PackageId>,
    /// Shards of a package.
    pub shards: usize,
    /// Shards in some worker's sums.
    pub held: usize,
    /// Parts of the open package.
    pub parts: usize,
    /// Parts whose weights are in the store.
    pub solved: usize,
    /// The epoch of the open group.
    pub epoch: Option<Epoch>,
    /// Workers, by id.
    pub workers: Vec<WorkerView>,
    /// How the job ended.
    pub outcome: Option<Outcome>,
}

/// Where a worker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// The worker.
    pub worker: WorkerId,
    /// Packages applied.
    pub applied: u32,
    /// Shards leased to it.
    pub leased: usize,
    /// Shards in its sums.
    pub held: usize,
    /// How long a shard takes it.
    pub pace: Option<Duration>,
    /// It is about to leave.
    pub draining: bool,
}

/// What a job is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Finding exponents.
    Pilot,
    /// Shards are run.
    Calibrate,
    /// A group forms, and Grams go to their owners.
    Reduce,
    /// Parts are solved.
    Solve,
    /// The manifest is on its way to the store.
    Commit,
    /// No worker has applied the committed weights yet.
    Apply,
    /// The pipeline is written.
    Export,
    /// Nothing: the job is over.
    Over,
}

impl Core {
    /// Where the job stands.
    pub fn view(&self) -> View {
        let open = self.open.as_ref();
        let worker = |(worker, member): (&WorkerId, &crate::state::Member)| WorkerView {
            worker: *worker,
            applied: member.applied,
            leased: open.map_or(0, |open| open.ledger.leased(*worker).len()),
            held: open.map_or(0, |open| open.ledger.held_by(*worker).len()),
            pace: member.pace,
            draining: member.draining.is_some(),
        };
        View {
            phase: self.phase(),
            packages: self.job.plan.packages.len(),
            committed: self.committed,
            package: open.map(|open| open.package),
            shards: self.job.plan.shards.len(),
            held: open.map_or(0, |open| open.ledger.held()),
            parts: open.map_or(0, |open| open.parts.len()),
            solved: open.map_or(0, |open| open.solved.len()),
            epoch: self.attempt.as_ref().map(|a| a.group.epoch),
            workers: self.members.iter().map(worker).collect(),
            outcome: self.outcome.clone(),
        }
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
            None if self.ready().next().is_none() && !self.members.is_empty() => Phase::Apply,
            None => Phase::Calibrate,
        }
    }
}

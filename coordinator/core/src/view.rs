//! What a user sees of a job: derived from the facts, like everything else.

use obsdiff_proto::view::{Ending, Phase, View, WorkerView};
use obsdiff_proto::{PackageId, WorkerId};

use crate::{Core, Group, Outcome};

impl Core {
    /// Where the job stands.
    pub fn view(&self) -> View {
        let open = self.open.as_ref();
        let worker = |(worker, member): (&WorkerId, &crate::state::ConnectedWorker)| WorkerView {
            worker: *worker,
            applied: member.applied,
            leased: open.map_or(0, |open| open.ledger.leased(*worker).len()),
            held: open.map_or(0, |open| open.ledger.held_by(*worker).len()),
            pace: member.pace,
            draining: member.draining.is_some(),
            preparing: member.preparing,
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
            ending: self.outcome.as_ref().map(Ending::from),
        }
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

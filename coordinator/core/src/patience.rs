//! How long is waited for what would have to be computed again otherwise: as long as that takes, within limits.
//!
//! A small job loses seconds, and is not held up for more. A large one loses hours with its workers' sums: it waits for a worker that comes
//! back with them, and for a store or a network that somebody repairs.

use std::time::Duration;

use obsdiff_proto::{ShardId, WorkerId};

use crate::{Core, Hello};

impl Core {
    /// How long a worker takes to gather what it holds of the open package; zero where that is not known.
    pub(crate) fn worth(&self, worker: WorkerId) -> Duration {
        let (Some(open), Some(member)) = (&self.open, self.members.get(&worker)) else {
            return Duration::ZERO;
        };
        let shards = u32::try_from(open.ledger.held_by(worker).len()).unwrap_or(u32::MAX);
        member.pace.unwrap_or_default().saturating_mul(shards)
    }

    /// How long workers would take to gather the sums of the open package again, all at once, but no longer than anybody is waited for.
    pub(crate) fn at_stake(&self) -> Duration {
        let worths = self.members.keys().map(|worker| self.worth(*worker));
        worths.max().unwrap_or_default().min(self.job.options.repair)
    }

    /// Keeps the shards of a worker that has just left for when it returns with them: until the others would have gathered again what it is
    /// `worth`.
    pub(crate) fn reserve(&mut self, worth: Duration, lost: &[ShardId]) {
        let others = u32::try_from(self.members.len()).unwrap_or(u32::MAX).max(1);
        let until = self.now + (worth / others).min(self.job.options.reserve);
        if let Some(open) = &mut self.open {
            open.ledger.reserve(lost, until);
        }
    }

    /// A worker of an earlier life has come back with so many shards: others may follow, and what they hold is worth as much.
    pub(crate) fn expect_others(&mut self, hello: &Hello, kept: usize) {
        if self.job.life == 0 || kept == 0 {
            return;
        }
        let first = *self.first_return.get_or_insert(self.now);
        let worth = hello.status.pace.unwrap_or_default().saturating_mul(kept as u32);
        self.returns_until = self.returns_until.max(first + worth.min(self.job.options.reserve));
    }

    /// Whether workers of an earlier life had the time to come back.
    pub(crate) fn settled(&self) -> bool {
        self.job.life == 0 || self.now >= self.started + self.job.options.settle
    }

    /// Whether no worker is expected any more that would bring shards of an earlier life.
    pub(crate) fn all_returned(&self) -> bool {
        self.settled() && self.now >= self.returns_until
    }

    /// This process stood still for so long, and heard nobody: no worker is to blame for that.
    pub(crate) fn resume(&mut self, pause: Duration) {
        for member in self.members.values_mut() {
            member.heard = (member.heard + pause).min(self.now);
            member.moved = (member.moved + pause).min(self.now);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.begun = (attempt.begun + pause).min(self.now);
        }
        if let Some(nobody) = &mut self.no_workers {
            nobody.since = (nobody.since + pause).min(self.now);
        }
    }
}

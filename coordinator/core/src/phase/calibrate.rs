//! Calibrate: workers lease shards and add them to their sums, until every shard is held.

use std::collections::BTreeSet;
use std::sync::Arc;

use obsdiff_proto::{ShardId, SiteId, WorkerId};

use crate::ledger::{Ledger, ShardHolder};
use crate::membership::begun;
use crate::state::Subject;
use crate::{Action, Core, Event, Failure, Order, Sums, Tally, leases};

/// How often a site's exponent is lowered before the job gives up.
const MOST_LOWERINGS: u32 = 16;

impl Core {
    /// Takes in which shards a worker's sums consist of. Sums that cannot be explained by what was leased are dropped: they
    /// could count a shard twice.
    pub(crate) fn merge_sums(&mut self, worker: WorkerId, sums: &Sums, in_hand: &BTreeSet<Order>) {
        let (Some(open), Some(member)) = (&mut self.open, self.members.get_mut(&worker)) else { return };
        let begun = begun(in_hand, sums.tally);
        let empty = sums.held.is_empty() && begun.is_empty();
        let of_open = sums.package.is_some_and(|package| self.job.plan.serves(package, open.package));
        if sums.tally < member.tally {
            member.stale_sums = !empty && of_open;
            return;
        }
        member.stale_sums = false;
        let expected = sums.tally == member.tally && (of_open || empty);
        let ledger = &mut open.ledger;
        let leased = |ledger: &Ledger, s: &ShardId| ledger.holder(*s) == Some(ShardHolder::Leased(worker));
        let mine = |ledger: &Ledger, s: &ShardId| {
            leased(ledger, s) || ledger.holder(*s) == Some(ShardHolder::Held(worker))
        };
        if expected && sums.spoiled {
            return self.discard(worker, "they are spoiled".to_owned());
        }
        if expected && sums.held.iter().chain(&begun).all(|s| mine(ledger, s)) {
            for &shard in &sums.held {
                if ledger.hold(worker, shard) {
                    // What went wrong with them before was no fault of theirs.
                    self.failures.remove(&Subject::Shard(shard));
                    self.failures.remove(&Subject::Worker(worker));
                }
            }
            return;
        }
        member.tally = member.tally.max(sums.tally);
        self.discard(worker, "they are not the shards that were leased".to_owned());
    }

    /// Drops a worker's sums: its shards are pending again, and it starts a new tally.
    pub(crate) fn discard(&mut self, worker: WorkerId, why: String) {
        let (Some(open), Some(member)) = (&mut self.open, self.members.get_mut(&worker)) else { return };
        member.tally = Tally(member.tally.0 + 1);
        member.stale_sums = true;
        let lost = open.ledger.release(worker);
        self.emit(Event::Discarded { worker, why, lost });
        self.touch(worker);
    }

    /// Lowers the exponent of a Gram that overflowed, and starts the package's sums again. A report about sums with another
    /// exponent is late, and is ignored.
    pub(crate) fn lower(&mut self, site: SiteId, exponent: i32) {
        let (Some(open), Some(exponents)) = (&mut self.open, &mut self.exponents) else { return };
        if open.opening.exponents.get(&site) != Some(&exponent) {
            return;
        }
        let lowered = open.lowered.entry(site).or_default();
        *lowered += 1;
        let lower = exponent.checked_sub(self.job.options.lowering).filter(|_| *lowered <= MOST_LOWERINGS);
        let Some(lower) = lower else { return self.fail(Failure::Overflow { site, exponent }) };
        exponents.insert(site, lower);
        self.out.push(Action::Save(Arc::new(exponents.clone())));
        Arc::make_mut(&mut open.opening).exponents.insert(site, lower);
        open.ledger = Ledger::new(self.job.plan.shards.len());
        let package = open.package;
        self.break_group(format!("the Gram of site {site} overflowed"));
        self.new_tallies();
        self.emit(Event::Lowered { package, site, exponent: lower });
    }

    /// Gives every worker a new tally: what their sums were for is over.
    pub(crate) fn new_tallies(&mut self) {
        for member in self.members.values_mut() {
            member.tally = Tally(member.tally.0 + 1);
        }
        self.touch_all();
    }

    /// Leases pending shards, while somebody's work depends on them.
    pub(crate) fn decide_leases(&mut self) {
        let now = self.now;
        let Some(open) = self.open.as_ref().filter(|open| open.ledger.free(now) > 0) else { return };
        if !self.all_returned() || !self.sums_needed(open) {
            return;
        }
        let grants = leases::grants(open.ledger.free(now), &self.runners(), &self.job.options);
        for worker in grants {
            if let Some(open) = &mut self.open {
                open.ledger.lease(worker, now);
            }
            self.touch(worker);
        }
    }
}

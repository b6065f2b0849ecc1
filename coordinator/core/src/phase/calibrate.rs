//! Calibrate: workers lease shards and add them to their sums, until every shard is held.

use std::collections::BTreeSet;
use std::sync::Arc;

use obsdiff_proto::{ShardId, SiteId, WorkerId};

use crate::ledger::{Ledger, LostShards, ShardHolder};
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
            if let Some(saved) = &sums.saved
                && ledger.note_saved(worker, saved)
            {
                self.emit(Event::Saved { worker, shards: saved.shards.len() });
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
        let LostShards { run_again, saved } = open.ledger.release(worker);
        self.emit(Event::Discarded { worker, why, lost: run_again, saved: saved.len() });
        self.touch(worker);
    }

    /// Lowers the exponent of a Gram that overflowed, and starts the package's sums again. A report about sums of another package or with
    /// another exponent is late, and is ignored; where the site's sums have no exponent, the job ends.
    pub(crate) fn lower(&mut self, site: SiteId, exponent: i32) {
        let (Some(open), Some(exponents)) = (&mut self.open, &mut self.exponents) else { return };
        let package = self.job.plan.packages.get(open.package.0 as usize);
        match open.opening.exponents.get(&site) {
            Some(of_open) if *of_open == exponent => {}
            None if package.is_some_and(|package| package.sites.contains(&site)) => {
                return self.fail(Failure::Overflow { site, exponent });
            }
            _ => return,
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

    /// Gives up saved sums that a worker could not restore.
    pub(crate) fn give_up_saved(&mut self, worker: WorkerId, first: ShardId, error: &str) {
        let Some(open) = &mut self.open else { return };
        let lost = open.ledger.give_up(worker, first);
        if !lost.is_empty() {
            self.emit(Event::Unrestored { worker, error: error.to_owned(), lost });
        }
    }

    /// Leases saved sums, each to a worker that has none to restore, or else to the one that has least.
    fn lease_saved(&mut self) {
        let runners = self.runners();
        let ready = || runners.iter().filter(|runner| runner.ready).map(|runner| runner.worker);
        while let Some(open) = &mut self.open {
            let load = |worker: &WorkerId| {
                let restoring = open.ledger.restoring(*worker).iter().map(|saved| saved.shards.len());
                restoring.sum::<usize>() + open.ledger.held_by(*worker).len()
            };
            let Some(worker) = ready().min_by_key(|worker| (load(worker), *worker)) else { return };
            let Some(saved) = open.ledger.restore(worker, self.now) else { return };
            self.emit(Event::Restores { worker, shards: saved.shards.len() });
            self.touch(worker);
        }
    }

    /// Leases pending shards, while somebody's work depends on them.
    pub(crate) fn decide_leases(&mut self) {
        let now = self.now;
        let Some(open) = self.open.as_ref().filter(|open| open.ledger.free(now) > 0) else { return };
        if !self.all_returned() || !self.sums_needed(open) {
            return;
        }
        self.lease_saved();
        let Some(open) = &self.open else { return };
        let grants = leases::grants(open.ledger.free(now), &self.runners(), &self.job.options);
        for worker in grants {
            if let Some(open) = &mut self.open {
                open.ledger.lease(worker, now);
            }
            self.touch(worker);
        }
    }
}

//! Workers that join, leave, fall silent or drain.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_proto::{Epoch, ShardId, WorkerId, counted};

use crate::ledger::LostShards;
use crate::state::{ConnectedWorker, NoWorkers};
use crate::{Action, Core, Dismissal, Encoding, Event, Failure, Hello, Order, Status, Tally};

/// Tallies above this were never given out: they count from 1, and must have room to grow.
const MOST_TALLY: u64 = u64::MAX / 2;

impl Core {
    /// Takes in a new session and what its worker still holds.
    pub(crate) fn join(&mut self, worker: WorkerId, hello: &Hello) {
        if self.latest.is_some_and(|latest| worker <= latest) {
            return;
        }
        self.latest = Some(worker);
        let twin = self.members.iter().find(|(_, m)| m.instance == hello.instance).map(|(w, _)| *w);
        if let Some(twin) = twin {
            self.dismiss(twin, Dismissal::Replaced(worker));
        }
        if let Err(why) = self.admissible(&hello.status) {
            self.out.push(Action::Dismiss { worker, why: Dismissal::Refused(why) });
            return;
        }
        if let Some(why) = self.other_hardware(&hello.hardware) {
            self.stand_by(worker, why);
            return;
        }
        self.take_hardware(&hello.hardware);
        self.members.insert(worker, ConnectedWorker::new(hello, self.now));
        self.no_workers = None;
        let kept = self.adopt(worker, hello);
        if hello.status.preparing {
            self.emit(Event::Preparing { worker })
        } else {
            self.group_failures = Default::default();
            self.emit(Event::Joined { worker, kept });
        }
        self.merge(worker, &hello.status);
        self.touch(worker);
    }

    /// Takes in a worker's status.
    pub(crate) fn merge(&mut self, worker: WorkerId, status: &Status) {
        if !self.members.contains_key(&worker) {
            return;
        }
        if let Err(why) = self.admissible(status) {
            self.dismiss(worker, Dismissal::Refused(why));
            return;
        }
        let now = self.now;
        if let Some(member) = self.members.get_mut(&worker) {
            member.heard = now;
            let waits = !status.preparing || status.encoding == Encoding::Ready;
            let idle = status.in_hand.is_empty() && waits;
            if status.progress > member.progress || idle {
                member.moved = now;
                member.progress = member.progress.max(status.progress);
            }
            member.pace = status.pace.or(member.pace);
            member.in_hand.clone_from(&status.in_hand);
            member.saving = status.saving;
            if status.draining {
                member.draining.get_or_insert(now);
            }
        }
        self.merge_encoding(worker, status.encoding);
        self.merge_ready(worker, status.preparing);
        self.merge_applied(worker, status.applied);
        self.merge_pilot(status);
        self.merge_group(worker, status.group.as_ref());
        self.merge_solved(&status.solved);
        self.merge_trouble(worker, status.trouble.as_ref());
        self.merge_sums(worker, &status.sums, &status.in_hand);
        self.merge_exported(worker, status.exported);
        self.touch(worker);
    }

    /// A worker that is ready stays so: a late report changes nothing.
    fn merge_ready(&mut self, worker: WorkerId, preparing: bool) {
        let Some(member) = self.members.get_mut(&worker).filter(|m| m.preparing && !preparing) else {
            return;
        };
        member.preparing = false;
        self.group_failures = Default::default();
        self.emit(Event::Ready { worker });
    }

    /// Whether a status can be one of this job's.
    fn admissible(&self, status: &Status) -> Result<(), String> {
        if status.applied > self.committed {
            return Err(format!(
                "it applied {}, but {} are committed: start it again on the dense weights",
                counted(status.applied as usize, "package"),
                self.committed
            ));
        }
        let orders = status.in_hand.iter().filter_map(|o| match o {
            Order::Calibrate { tally, .. } | Order::Restore { tally, .. } | Order::Discard { tally } => {
                Some(*tally)
            }
            _ => None,
        });
        match orders.chain([status.sums.tally]).max() {
            Some(tally) if tally > Tally(MOST_TALLY) => Err(format!("tally {} was never given out", tally.0)),
            _ => Ok(()),
        }
    }

    /// Keeps the shards that a worker brings, if its sums are those of the open package and no other worker has a shard of them.
    /// Otherwise the worker gets a new tally. Returns how many finished shards count.
    fn adopt(&mut self, worker: WorkerId, hello: &Hello) -> usize {
        let sums = &hello.status.sums;
        let begun = begun(&hello.status.in_hand, sums.tally);
        let (plan, committed, applied) = (&self.job.plan, self.committed, hello.status.applied);
        let same_sums = |open: &crate::state::OpenPackage| {
            sums.package.is_some_and(|package| plan.serves(package, open.package))
                && !sums.spoiled
                && !hello.status.preparing
                && (applied == committed || (applied + 1 == committed && plan.keeps_sums(open.package)))
                && hello.exponents == open.opening.exponents
        };
        let ledger = self.open.as_mut().filter(|open| same_sums(open)).map(|open| &mut open.ledger);
        let restoring = restoring(&hello.status.in_hand, sums.tally);
        let kept = ledger.is_some_and(|ledger| ledger.adopt(worker, &sums.held, &begun, &restoring));
        self.expect_others(hello, if kept { sums.held.len() } else { 0 });
        if let Some(member) = self.members.get_mut(&worker) {
            member.tally = if kept { sums.tally } else { Tally(sums.tally.0 + 1) };
        }
        if kept { sums.held.len() } else { 0 }
    }

    /// Removes a worker whose session has ended. It may open another one, and bring its shards.
    pub(crate) fn leave(&mut self, worker: WorkerId, why: String) {
        let returns = self.members.get(&worker).is_some_and(|member| member.draining.is_none());
        self.remove(worker, why, returns);
    }

    /// Removes a worker: every shard it had is pending again. Where it may return, nobody else gets them at once.
    fn remove(&mut self, worker: WorkerId, why: String, returns: bool) {
        let worth = self.worth(worker);
        let Some(member) = self.members.remove(&worker) else { return };
        let quiet = self.now - member.heard;
        let lost = self.open.as_mut().map(|open| open.ledger.release(worker)).unwrap_or_default();
        if returns {
            self.reserve(worth, &lost.run_again);
            self.reserve(worth, &lost.saved);
        }
        let LostShards { run_again: lost, saved } = lost;
        if let Some(attempt) =
            self.attempt.as_mut().filter(|a| a.group.members.binary_search(&worker).is_ok())
        {
            attempt.lost.get_or_insert(worker);
        }
        self.encoder = self.encoder.filter(|w| *w != worker);
        self.pilot = self.pilot.filter(|w| *w != worker);
        self.exporter = self.exporter.filter(|w| *w != worker);
        self.group_failures = Default::default();
        if self.members.is_empty() {
            self.no_workers = Some(NoWorkers { since: self.now, last: why.clone() });
        }
        let (saved, drained) = (saved.len(), member.draining.is_some());
        self.emit(Event::Left { worker, why, quiet, lost, saved, drained });
    }

    /// Sends a worker away.
    pub(crate) fn dismiss(&mut self, worker: WorkerId, why: Dismissal) {
        self.remove(worker, why.to_string(), matches!(why, Dismissal::Silent { .. }));
        self.out.push(Action::Dismiss { worker, why });
    }

    /// What happens by the passing of time alone.
    pub(crate) fn expire(&mut self) {
        let options = &self.job.options;
        let expired = |member: &ConnectedWorker| {
            let (quiet, still) = (self.now - member.heard, self.now - member.moved);
            if quiet >= options.silence {
                Some(Dismissal::Silent { seconds: quiet.as_secs() })
            } else if still >= options.stall {
                Some(Dismissal::Stalled { seconds: still.as_secs() })
            } else {
                None
            }
        };
        let gone: Vec<_> = self.members.iter().filter_map(|(w, m)| Some((*w, expired(m)?))).collect();
        for (worker, why) in gone {
            self.dismiss(worker, why);
        }
        if let Some(NoWorkers { since, last }) = &self.no_workers
            && self.now.saturating_sub(*since) >= self.job.options.no_workers
        {
            let mut last =
                if last.is_empty() { String::new() } else { format!("; the last one left: {last}") };
            if let (Some(job), Some(other)) = (&self.hardware, self.standing_by.first()) {
                last += &format!("; workers on {other} stand by, since the job runs on {job}");
            }
            self.fail(Failure::Alone { seconds: (self.now - *since).as_secs(), last });
        }
    }

    /// Releases workers that drain once they have saved their sums, and no group waits for them or their time is over.
    pub(crate) fn decide_leaving(&mut self) {
        let leaves = |(worker, member): (&WorkerId, &ConnectedWorker)| {
            let since = member.draining?;
            let is_done = !self.group_needs(*worker) || self.now - since >= self.job.options.grace;
            (is_done && !member.saving).then_some(*worker)
        };
        let leaving: Vec<_> = self.members.iter().filter_map(leaves).collect();
        let any = !leaving.is_empty();
        for worker in leaving {
            self.dismiss(worker, Dismissal::Drained);
        }
        if any {
            self.decide_group();
        }
    }

    /// Who does what one worker does alone: the fastest that is up to date and stays.
    pub(crate) fn fastest_ready(&self) -> Option<WorkerId> {
        self.ready().max_by_key(|(worker, m)| (m.speed, std::cmp::Reverse(*worker))).map(|(worker, _)| worker)
    }
}

/// Shards of a tally that a worker has in hand.
pub(crate) fn begun(in_hand: &BTreeSet<Order>, tally: Tally) -> BTreeSet<ShardId> {
    let shard = |order: &Order| match order {
        Order::Calibrate { tally: of, shard } if *of == tally => Some(*shard),
        _ => None,
    };
    in_hand.iter().filter_map(shard).collect()
}

/// The first shards of saved sums that a worker has begun to add to the sums of a tally.
fn restoring(in_hand: &BTreeSet<Order>, tally: Tally) -> BTreeSet<ShardId> {
    let first = |order: &Order| match order {
        Order::Restore { tally: of, first } if *of == tally => Some(*first),
        _ => None,
    };
    in_hand.iter().filter_map(first).collect()
}

impl ConnectedWorker {
    fn new(hello: &Hello, now: Duration) -> Self {
        Self {
            instance: hello.instance,
            speed: hello.speed.max(1),
            pace: hello.status.pace,
            heard: now,
            moved: now,
            progress: hello.status.progress,
            applied: hello.status.applied,
            tally: hello.status.sums.tally,
            stale_sums: false,
            closed: Epoch(0),
            abort: Epoch(0),
            trouble: 0,
            draining: None,
            saving: false,
            preparing: hello.status.preparing,
            encoding: Encoding::Unready,
            in_hand: BTreeSet::new(),
            due: Default::default(),
        }
    }
}

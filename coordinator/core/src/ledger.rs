//! Who holds which shard of the open package. A shard has one holder at most: that is why it counts only once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::message::SavedSums;
use obsdiff_proto::{ShardId, WorkerId};

/// The shards of a package: pending, leased to a worker, or held in a worker's sums.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    holders: BTreeMap<ShardId, ShardHolder>,
    shares: BTreeMap<WorkerId, Share>,
    /// Shards without a holder; those that were lost more often come later, so that a worker that returns soon finds its own free.
    pending: BTreeSet<(u32, ShardId)>,
    losses: BTreeMap<ShardId, u32>,
    /// Pending shards that were lost with a worker which may come back with them, and until when nobody else gets them.
    reserved: BTreeMap<ShardId, Duration>,
    /// Sums in the store that no worker has, those of most shards first. They may share shards with each other and with what workers have.
    saved: Vec<Arc<SavedSums>>,
    held: usize,
    total: usize,
}

/// Who has a shard, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardHolder {
    /// To be run, or running; or among saved sums that the worker is to restore.
    Leased(WorkerId),
    /// In the worker's sums.
    Held(WorkerId),
}

/// A worker's shards.
#[derive(Clone, Debug, Default)]
struct Share {
    /// To be run.
    leased: BTreeSet<ShardId>,
    /// To be restored: no two share a shard, nor any with `leased`.
    restoring: Vec<Arc<SavedSums>>,
    /// In the store, of what is held.
    saved: Vec<Arc<SavedSums>>,
    /// Shared with the commands that name it.
    held: Arc<BTreeSet<ShardId>>,
}

/// What becomes of the shards of a worker that loses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostShards {
    /// Not in the store.
    pub(crate) run_again: Vec<ShardId>,
    /// Among saved sums.
    pub(crate) saved: Vec<ShardId>,
}

impl Ledger {
    /// `total` shards, all pending.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            holders: BTreeMap::new(),
            shares: BTreeMap::new(),
            pending: (0..total as u32).map(|s| (0, ShardId(s))).collect(),
            losses: BTreeMap::new(),
            reserved: BTreeMap::new(),
            saved: Vec::new(),
            held: 0,
            total,
        }
    }

    pub(crate) fn holder(&self, shard: ShardId) -> Option<ShardHolder> {
        self.holders.get(&shard).copied()
    }

    /// Shards that have a holder, in order.
    pub(crate) fn taken(&self) -> impl Iterator<Item = (ShardId, ShardHolder)> {
        self.holders.iter().map(|(shard, holder)| (*shard, *holder))
    }

    /// Shards that a worker has to run.
    pub(crate) fn leased(&self, worker: WorkerId) -> impl ExactSizeIterator<Item = ShardId> {
        self.shares.get(&worker).map(|s| s.leased.iter()).unwrap_or_default().copied()
    }

    /// Saved sums that a worker has to restore.
    pub(crate) fn restoring(&self, worker: WorkerId) -> &[Arc<SavedSums>] {
        self.shares.get(&worker).map(|share| &*share.restoring).unwrap_or_default()
    }

    /// Shards in a worker's sums.
    pub(crate) fn held_by(&self, worker: WorkerId) -> Arc<BTreeSet<ShardId>> {
        self.shares.get(&worker).map(|s| s.held.clone()).unwrap_or_default()
    }

    /// Workers that keep shards.
    pub(crate) fn holders(&self) -> impl Iterator<Item = WorkerId> {
        self.shares.keys().copied()
    }

    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn all_held(&self) -> bool {
        self.held == self.total
    }

    /// Pending shards that may be leased now.
    pub(crate) fn free(&self, now: Duration) -> usize {
        self.pending.len() - self.reserved.values().filter(|until| **until > now).count()
    }

    /// Leases the next pending shard that may be leased now.
    pub(crate) fn lease(&mut self, worker: WorkerId, now: Duration) -> Option<ShardId> {
        let is_free =
            |(_, shard): &&(u32, ShardId)| self.reserved.get(shard).is_none_or(|until| *until <= now);
        let next = *self.pending.iter().find(is_free)?;
        self.pending.remove(&next);
        let (_, shard) = next;
        self.reserved.remove(&shard);
        self.holders.insert(shard, ShardHolder::Leased(worker));
        self.shares.entry(worker).or_default().leased.insert(shard);
        Some(shard)
    }

    /// Leases to a worker all shards of saved sums, where all of them are pending and may be leased now. The worker restores the sums.
    pub(crate) fn restore(&mut self, worker: WorkerId, now: Duration) -> Option<Arc<SavedSums>> {
        let may = |shard: &ShardId| {
            !self.holders.contains_key(shard) && self.reserved.get(shard).is_none_or(|until| *until <= now)
        };
        let place = self.saved.iter().position(|saved| saved.shards.iter().all(may))?;
        Some(self.take_saved(place, worker))
    }

    fn take_saved(&mut self, place: usize, worker: WorkerId) -> Arc<SavedSums> {
        let saved = self.saved.remove(place);
        for &shard in &saved.shards {
            self.take_pending(shard, worker);
        }
        self.shares.entry(worker).or_default().restoring.push(saved.clone());
        saved
    }

    fn take_pending(&mut self, shard: ShardId, worker: WorkerId) {
        self.pending.remove(&(self.losses_of(shard), shard));
        self.reserved.remove(&shard);
        self.holders.insert(shard, ShardHolder::Leased(worker));
    }

    /// Takes note of sums in the store that no worker has.
    pub(crate) fn offer(&mut self, saved: Arc<SavedSums>) {
        let known = |shard: &ShardId| (shard.0 as usize) < self.total;
        let is_new = !self.saved.iter().any(|other| other.receipt == saved.receipt);
        if is_new && !saved.shards.is_empty() && saved.shards.iter().all(known) {
            let place = self.saved.partition_point(|other| other.shards.len() >= saved.shards.len());
            self.saved.insert(place, saved);
        }
    }

    /// Takes note that a worker has put its sums into the store, as far as it holds them. Returns whether that is new.
    pub(crate) fn note_saved(&mut self, worker: WorkerId, saved: &Arc<SavedSums>) -> bool {
        let Some(share) = self.shares.get_mut(&worker) else { return false };
        let is_known = share.saved.iter().any(|other| other.receipt == saved.receipt);
        if is_known || saved.shards.is_empty() || !saved.shards.is_subset(&share.held) {
            return false;
        }
        // The worker removes those that are a part of these.
        let stays = |other: &Arc<SavedSums>| !other.shards.is_subset(&saved.shards);
        share.saved.retain(stays);
        share.saved.push(saved.clone());
        self.saved.retain(|other| other.receipt != saved.receipt);
        true
    }

    /// Gives up saved sums that a worker could not restore: their shards are pending, and returned.
    pub(crate) fn give_up(&mut self, worker: WorkerId, first: ShardId) -> Vec<ShardId> {
        let Some(share) = self.shares.get_mut(&worker) else { return Vec::new() };
        let Some(place) = share.restoring.iter().position(|saved| saved.first() == first) else {
            return Vec::new();
        };
        let saved = share.restoring.remove(place);
        let lost: Vec<_> = saved
            .shards
            .iter()
            .copied()
            .filter(|s| self.holder(*s) == Some(ShardHolder::Leased(worker)))
            .collect();
        self.drop_holders(&lost);
        self.forget_empty(worker);
        lost
    }

    /// Moves a worker's own lease into its sums; `false` where it was none.
    pub(crate) fn hold(&mut self, worker: WorkerId, shard: ShardId) -> bool {
        if self.holder(shard) != Some(ShardHolder::Leased(worker)) {
            return false;
        }
        self.holders.insert(shard, ShardHolder::Held(worker));
        let share = self.shares.entry(worker).or_default();
        Arc::make_mut(&mut share.held).insert(shard);
        self.held += 1;
        if share.leased.remove(&shard) {
            return true;
        }
        // A worker adds all of them at once, and reports them in order.
        let ends = |saved: &Arc<SavedSums>| {
            saved.shards.last() == Some(&shard) && saved.shards.is_subset(&share.held)
        };
        if let Some(place) = share.restoring.iter().position(ends) {
            let restored = share.restoring.remove(place);
            share.saved.push(restored);
        }
        true
    }

    /// Takes over what a worker brings, if every shard of it is pending and known; else nothing of it. `restoring` are the first shards of
    /// saved sums that it has begun to restore.
    pub(crate) fn adopt(
        &mut self,
        worker: WorkerId,
        held: &BTreeSet<ShardId>,
        begun: &BTreeSet<ShardId>,
        restoring: &BTreeSet<ShardId>,
    ) -> bool {
        let free = |s: &ShardId| (s.0 as usize) < self.total && !self.holders.contains_key(s);
        let apart = |s: &ShardId| free(s) && !held.contains(s) && !begun.contains(s);
        let saved = |first: &ShardId| {
            let is_it = |saved: &Arc<SavedSums>| saved.first() == *first && saved.shards.iter().all(apart);
            self.saved.iter().find(|saved| is_it(saved)).map(|saved| saved.receipt.clone())
        };
        let Some(receipts) = restoring.iter().map(saved).collect::<Option<Vec<_>>>() else { return false };
        if receipts.len() > 1 || !held.iter().chain(begun).all(free) {
            return false;
        }
        for &shard in held.union(begun) {
            self.take_pending(shard, worker);
            self.shares.entry(worker).or_default().leased.insert(shard);
        }
        for &shard in held {
            self.hold(worker, shard);
        }
        for receipt in receipts {
            if let Some(place) = self.saved.iter().position(|saved| saved.receipt == receipt) {
                self.take_saved(place, worker);
            }
        }
        true
    }

    /// Makes all of a worker's shards pending again. What the store has of them can be restored.
    pub(crate) fn release(&mut self, worker: WorkerId) -> LostShards {
        let Some(share) = self.shares.remove(&worker) else { return LostShards::default() };
        self.held -= share.held.len();
        let in_store = || share.saved.iter().chain(&share.restoring);
        let restoring = share.restoring.iter().flat_map(|saved| &saved.shards);
        let of_worker: BTreeSet<_> =
            share.held.iter().chain(&share.leased).chain(restoring).copied().collect();
        let is_saved = |shard: &ShardId| in_store().any(|saved| saved.shards.contains(shard));
        let (saved, run_again): (Vec<_>, Vec<_>) = of_worker.into_iter().partition(is_saved);
        self.drop_holders(&saved);
        self.drop_holders(&run_again);
        in_store().for_each(|sums| self.offer(sums.clone()));
        LostShards { run_again, saved }
    }

    fn drop_holders(&mut self, lost: &[ShardId]) {
        for &shard in lost {
            self.holders.remove(&shard);
            let losses = self.losses.entry(shard).or_default();
            *losses += 1;
            self.pending.insert((*losses, shard));
        }
    }

    /// A worker without shards is no holder.
    fn forget_empty(&mut self, worker: WorkerId) {
        let is_empty =
            |share: &Share| share.held.is_empty() && share.leased.is_empty() && share.restoring.is_empty();
        if self.shares.get(&worker).is_some_and(is_empty) {
            self.shares.remove(&worker);
        }
    }

    /// Leases shards that are pending to nobody before `until`, as long as no worker brings them.
    pub(crate) fn reserve(&mut self, shards: &[ShardId], until: Duration) {
        let pending = shards.iter().filter(|shard| !self.holders.contains_key(shard));
        self.reserved.extend(pending.map(|shard| (*shard, until)));
    }

    fn losses_of(&self, shard: ShardId) -> u32 {
        self.losses.get(&shard).copied().unwrap_or(0)
    }

    /// Whether holders, shares and pending shards agree; the first disagreement, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen = 0;
        let mut held = 0;
        for (&worker, share) in &self.shares {
            let restoring = share.restoring.iter().flat_map(|saved| saved.shards.difference(&share.held));
            let leased = share.leased.iter().chain(restoring).map(|s| (*s, ShardHolder::Leased(worker)));
            for (shard, holder) in leased.chain(share.held.iter().map(|s| (*s, ShardHolder::Held(worker)))) {
                if self.holder(shard) != Some(holder) {
                    return Err(format!(
                        "shard {shard} is {holder:?} by its share, but {:?} by its holder",
                        self.holder(shard)
                    ));
                }
                seen += 1;
            }
            held += share.held.len();
            if share.saved.iter().any(|saved| !saved.shards.is_subset(&share.held)) {
                return Err(format!("worker {worker} does not hold all shards of the sums that it saved"));
            }
        }
        if seen != self.holders.len() || held != self.held {
            return Err(format!(
                "{} holders and {} held shards, but shares of {seen} and {held}",
                self.holders.len(),
                self.held
            ));
        }
        if let Some(shard) = self.reserved.keys().find(|shard| self.holders.contains_key(shard)) {
            return Err(format!("shard {shard} is kept for a worker that may return, but has a holder"));
        }
        if self.pending.iter().any(|(_, s)| self.holders.contains_key(s))
            || self.pending.len() + seen != self.total
        {
            return Err(format!("{} pending and {seen} kept shards of {}", self.pending.len(), self.total));
        }
        Ok(())
    }
}

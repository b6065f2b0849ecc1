//! Who holds which shard of the open package. A shard has one holder at most: that is why it counts only once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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
    held: usize,
    total: usize,
}

/// Who has a shard, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardHolder {
    /// To be run, or running.
    Leased(WorkerId),
    /// In the worker's sums.
    Held(WorkerId),
}

/// A worker's shards.
#[derive(Clone, Debug, Default)]
struct Share {
    leased: BTreeSet<ShardId>,
    /// Shared with the commands that name it.
    held: Arc<BTreeSet<ShardId>>,
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

    /// Moves a worker's own lease into its sums; `false` where it was none.
    pub(crate) fn hold(&mut self, worker: WorkerId, shard: ShardId) -> bool {
        if self.holder(shard) != Some(ShardHolder::Leased(worker)) {
            return false;
        }
        self.holders.insert(shard, ShardHolder::Held(worker));
        let share = self.shares.entry(worker).or_default();
        share.leased.remove(&shard);
        Arc::make_mut(&mut share.held).insert(shard);
        self.held += 1;
        true
    }

    /// Takes over what a worker brings, if every shard of it is pending and known; else nothing of it.
    pub(crate) fn adopt(
        &mut self,
        worker: WorkerId,
        held: &BTreeSet<ShardId>,
        begun: &BTreeSet<ShardId>,
    ) -> bool {
        let free = |s: &ShardId| (s.0 as usize) < self.total && !self.holders.contains_key(s);
        if !held.iter().chain(begun).all(free) {
            return false;
        }
        for &shard in held.union(begun) {
            self.pending.remove(&(self.losses_of(shard), shard));
            self.reserved.remove(&shard);
            self.holders.insert(shard, ShardHolder::Leased(worker));
            self.shares.entry(worker).or_default().leased.insert(shard);
        }
        for &shard in held {
            self.hold(worker, shard);
        }
        true
    }

    /// Makes all of a worker's shards pending again, and returns them.
    pub(crate) fn release(&mut self, worker: WorkerId) -> Vec<ShardId> {
        let Some(share) = self.shares.remove(&worker) else { return Vec::new() };
        self.held -= share.held.len();
        let lost: Vec<_> = share.held.union(&share.leased).copied().collect();
        for &shard in &lost {
            self.holders.remove(&shard);
            let losses = self.losses.entry(shard).or_default();
            *losses += 1;
            self.pending.insert((*losses, shard));
        }
        lost
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
            let leased = share.leased.iter().map(|s| (*s, ShardHolder::Leased(worker)));
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

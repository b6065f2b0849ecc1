//! Sums that processes save, and restore later: how often each shard is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use obsdiff_core::{Exponents, Fault, Opening, Order, Receipt, SavedSums, StoredSums};
use obsdiff_proto::{PackageId, ShardId};

use crate::worker::RunningProcess;
use crate::world::SimulatedWorld;

/// Sums in the store.
pub(crate) struct StoredCounts {
    package: PackageId,
    exponents: Exponents,
    counts: BTreeMap<ShardId, u32>,
}

impl StoredCounts {
    fn shards(&self) -> BTreeSet<ShardId> {
        self.counts.keys().copied().collect()
    }
}

impl SimulatedWorld {
    /// Now and then a process saves its sums once it has added a shard, and removes what it saved before.
    pub(crate) fn save_sums(&mut self, process: usize) {
        let (saves, removes, down) =
            (self.rng.once_in(3), self.rng.once_in(2), self.store_down_until > self.now);
        let name: Arc<str> = format!("sums {}", self.rng.next()).into();
        let Some(life) = self.processes[process].life.as_mut().filter(|_| saves && !down) else { return };
        let sums = &mut life.status.sums;
        let (Some(package), false) = (sums.package, sums.spoiled || life.counts.is_empty()) else { return };
        let stored = StoredCounts { package, exponents: life.exponents.clone(), counts: life.counts.clone() };
        let saved = SavedSums { shards: stored.shards(), receipt: Receipt(name.clone()) };
        let before = sums.saved.replace(Arc::new(saved));
        if let Some(before) = before.filter(|_| removes) {
            self.sums.remove(&before.receipt.0);
        }
        self.sums.insert(name, stored);
    }

    /// What a coordinator finds in the store when it starts.
    pub(crate) fn stored_sums(&self) -> Vec<StoredSums> {
        let stored = |(name, sums): (&Arc<str>, &StoredCounts)| StoredSums {
            package: sums.package,
            exponents: sums.exponents.clone(),
            saved: Arc::new(SavedSums { shards: sums.shards(), receipt: Receipt(name.clone()) }),
        };
        self.sums.iter().map(stored).collect()
    }
}

impl RunningProcess {
    /// Adds saved sums, where they are there.
    pub(crate) fn restore(
        &mut self,
        order: Order,
        (saved, opening): (&Arc<SavedSums>, &Opening),
        stored: &BTreeMap<Arc<str>, StoredCounts>,
    ) {
        let Some(sums) = stored.get(&saved.receipt.0) else {
            return self.mark_failed(order, Fault::Transient("is missing".to_owned()));
        };
        assert_eq!((&sums.exponents, sums.shards()), (&opening.exponents, saved.shards.clone()));
        for (shard, count) in &sums.counts {
            *self.counts.entry(*shard).or_insert(0) += count;
        }
        let of_status = &mut self.status.sums;
        if of_status.held.is_empty() {
            of_status.saved = Some(saved.clone());
        }
        of_status.held.extend(&saved.shards);
    }
}

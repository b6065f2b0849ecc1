//! Saved sums: when a worker saves what it has summed, and how the engine puts and adds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use obsdiff_engine::Error;
use obsdiff_engine::gram::Gram;
use obsdiff_proto::message::{Exponents, Receipt, SavedSums, Tally};
use obsdiff_proto::{Accumulate, PackageId, ShardId, SiteId};
use obsdiff_store::{SavedGram, SumsReceipt, SumsRecord};
use tokio::time::Instant;

use super::pruning::PruningEngine;
use super::{AfterStep, PartStoreError, WorkError, WorkerState};
use crate::grams::object;

/// A save may be due when so many times as long has passed as the last one took: saving costs at most a twentieth of the time.
const SHARE: u32 = 20;

/// When a worker saves its sums, and which saved sums are no longer needed.
#[derive(Default)]
pub(super) struct SavePolicy {
    /// When the last save ended, or else when the tally began.
    since: Option<Instant>,
    /// How long the last save took.
    took: Duration,
    saves: u64,
    /// What is stored of the sums: the last save, and what was restored after it.
    contained: Vec<Receipt>,
    /// What the last save contains, and the coordinator may still go by.
    replaced: Vec<Receipt>,
}

impl SavePolicy {
    /// Sums start from zero. Saves of the earlier ones stay: the coordinator may have them restored.
    pub(super) fn begin(&mut self, now: Instant) {
        let Self { took, saves, .. } = *self;
        *self = Self { since: Some(now), took, saves, ..Self::default() };
    }

    /// Whether sums are to be saved every `period`, and it is time.
    pub(super) fn is_due(&self, period: Duration, now: Instant) -> bool {
        let least = period.max(SHARE * self.took);
        self.since.is_some_and(|since| now.duration_since(since) >= least)
    }

    /// A name for a save of sums with this first shard, which no other save has.
    pub(super) fn name(&mut self, instance: u128, first: ShardId) -> String {
        self.saves += 1;
        format!("{instance:x}.{}.{first}", self.saves)
    }

    /// Saved sums were added.
    pub(super) fn restored(&mut self, receipt: Receipt) {
        self.contained.push(receipt);
    }

    /// A save was tried.
    pub(super) fn tried(&mut self, begun: Instant, now: Instant) {
        (self.since, self.took) = (Some(now), now.duration_since(begun));
    }

    /// All sums are saved.
    pub(super) fn saved(&mut self, receipt: Receipt) {
        self.replaced.extend(std::mem::replace(&mut self.contained, vec![receipt]));
    }

    /// What the last save contains. To be called once more was added after it: the coordinator has heard of it then.
    pub(super) fn take_replaced(&mut self) -> Vec<Receipt> {
        std::mem::take(&mut self.replaced)
    }
}

/// When a worker is to save its sums.
#[derive(Default)]
pub(super) struct SaveTimes {
    every: OnceLock<Duration>,
    when_it_leaves: OnceLock<()>,
}

impl WorkerState {
    /// Has the worker save its sums from now on, at most this often. Only the first period counts.
    pub fn save_every(&self, period: Duration) {
        let _ = self.saves.every.set(period);
    }

    /// Has the worker save its sums before it leaves: see [`Self::drain`].
    pub fn save_when_it_leaves(&self) {
        let _ = self.saves.when_it_leaves.set(());
    }

    /// Says that the worker wants to leave (SIGTERM). One that saves its sums then ends the shard that it has begun, and saves.
    pub fn drain(&self) {
        let saves = self.saves.when_it_leaves.get().is_some();
        self.with(|orders| orders.drain(saves));
    }

    /// How often the worker saves its sums; none where it does not.
    pub(super) fn save_period(&self) -> Option<Duration> {
        self.saves.every.get().copied()
    }

    /// Counts a step of saving the sums of a tally, and stops it once they are of no use.
    pub(super) fn advance_save(&self, tally: Tally) -> Result<(), WorkError> {
        self.advance();
        let of_use = self.is_open() && self.status().0.sums.tally == tally;
        if of_use { Ok(()) } else { Err(WorkError::Stopped) }
    }
}

impl PruningEngine<'_> {
    /// As [`Engine::save`](super::Engine::save).
    pub(super) fn save_sums(
        &self,
        save: &str,
        shards: &BTreeSet<ShardId>,
        step: AfterStep<'_>,
    ) -> Result<Option<Receipt>, WorkError> {
        let _span = tracing::info_span!("save sums").entered();
        // Sums of floats depend on their order: added in another one, they would be others.
        if self.kept.replaces_calibration() || self.pruner.accumulates() == Accumulate::F32 {
            return Ok(None);
        }
        let exponents = self.open_exponents();
        if exponents.is_empty() {
            return Ok(None);
        }
        let mut grams = Vec::new();
        let put = self.put_grams(save, &mut grams, step).and_then(|()| {
            let (package, shards) = (PackageId(self.applied), shards.clone());
            let record = SumsRecord { package, exponents, shards, grams: grams.clone() };
            Ok(Some(self.part_store.put_sums(&record)?))
        });
        if put.is_err() {
            let grams: Vec<SumsReceipt> = grams.into_iter().map(|gram| gram.receipt).collect();
            if let Err(error) = self.part_store.remove_grams(&grams) {
                tracing::debug!(%error, "what was put of a save that failed stays until its package is committed");
            }
        }
        put
    }

    /// Puts all Grams of the open package, one after another.
    fn put_grams(
        &self,
        save: &str,
        grams: &mut Vec<SavedGram>,
        step: AfterStep<'_>,
    ) -> Result<(), WorkError> {
        let mut put = |site: SiteId, group: Option<u32>, gram: &Gram| {
            step()?;
            let content = object::write_saved(gram, save)
                .map_err(|error| PartStoreError::Damaged(format!("a Gram cannot be saved: {error}")))?;
            let receipt = self.part_store.put_gram(content)?;
            grams.push(SavedGram { site, group, receipt });
            Ok::<_, WorkError>(())
        };
        for (site, gram) in self.pruner.placed_grams()? {
            put(site, None, &*self.on_host(site, &gram)?)?;
        }
        for (group, of_group) in (0..).zip(self.pruner.grams_of_groups()) {
            for (site, gram) in &of_group {
                put(*site, Some(group), gram)?;
            }
        }
        Ok(())
    }

    /// As [`Engine::check_saved`](super::Engine::check_saved).
    pub(super) fn checked_record(&self, saved: &SavedSums) -> Result<SumsRecord, WorkError> {
        let record = self.part_store.sums(&saved.receipt)?;
        let groups = self.pruner.grams_of_groups().len() as u32;
        let exponents = self.open_exponents();
        let wanted: BTreeSet<_> = exponents
            .keys()
            .flat_map(|site| std::iter::once(None).chain((0..groups).map(Some)).map(|group| (*site, group)))
            .collect();
        let found: Vec<_> = record.grams.iter().map(|gram| (gram.site, gram.group)).collect();
        let all = found.len() == wanted.len() && found.into_iter().collect::<BTreeSet<_>>() == wanted;
        let problem = if !self.plan.serves(record.package, PackageId(self.applied)) {
            format!("they are of package {}", record.package)
        } else if record.exponents != exponents {
            "they have other exponents than the open package".to_owned()
        } else if record.shards != saved.shards {
            "they are of other shards than the order names".to_owned()
        } else if exponents.is_empty() || !all {
            "they have other Grams than the open package".to_owned()
        } else {
            return Ok(record);
        };
        Err(PartStoreError::Damaged(format!("saved sums are of no use here: {problem}")).into())
    }

    /// As [`Engine::restore`](super::Engine::restore).
    pub(super) fn restore_gram(&mut self, saved: &SavedGram) -> Result<(), WorkError> {
        let _span = tracing::info_span!("restore sums").entered();
        let SavedGram { site, group, receipt } = saved;
        let missing = || PartStoreError::Damaged(format!("the open package has no Gram of site {site}"));
        let mut gram = {
            let open = self.pruner.gram(*site).ok_or_else(missing)?;
            Gram::new(open.width(), open.accumulates(), open.exponent())
        };
        let content = self.part_store.gram(receipt)?;
        object::read(&content, &mut gram)
            .map_err(|problem| PartStoreError::Damaged(format!("{}: {problem}", receipt.object)))?;
        drop(content);
        let added = self.pruner.add_gram(*site, group.map(|group| group as usize), &gram);
        added.map_err(|error| self.overflow(error.into()))
    }

    /// As [`Engine::forget`](super::Engine::forget).
    pub(super) fn remove_saved(&self, receipt: &Receipt) {
        if let Err(error) = self.part_store.remove_sums(receipt) {
            tracing::debug!(%error, "saved sums that later ones contain stay until their package is committed");
        }
    }

    /// An overflow of the open package's Gram of a site, with its exponent.
    pub(super) fn overflow(&self, error: WorkError) -> WorkError {
        match error {
            WorkError::Engine(Error::Overflow { site, name }) => match self.pruner.gram(site) {
                Some(gram) => WorkError::Overflow { site, exponent: gram.exponent() },
                None => Error::Overflow { site, name }.into(),
            },
            error => error,
        }
    }

    /// The exponents of the open package's Grams; nothing while none is open.
    fn open_exponents(&self) -> Exponents {
        let grams = self.pruner.grams().into_iter().flatten();
        grams.map(|(site, gram)| (*site, gram.exponent())).collect::<BTreeMap<_, _>>()
    }
}

#[cfg(test)]
mod tests;

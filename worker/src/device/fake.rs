//! An engine that counts instead of computing: a simulation finds out whether every shard counts exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use obsdiff_engine::Error;
use obsdiff_proto::message::{Exponents, Opening, Part, PartId, Receipt, SavedSums, Solved};
use obsdiff_proto::{PackageId, Plan, ShardId, SiteId, lock};
use obsdiff_store::{SavedGram, SumsRecord};

use super::{AfterStep, Engine, PartStore, PartStoreError, Reducer, WorkError};
use crate::collective::{Buffer, Collective, Values};

/// What a fake engine is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineCall {
    /// Read what a shard needs.
    Read(ShardId),
    /// Add a shard.
    Shard(ShardId),
    /// Save the sums.
    Save,
    /// Add saved sums.
    Restore,
    /// Take part in a site's reduction.
    Reduce(SiteId),
    /// Solve a part.
    Solve(PartId),
    /// Load a package's weights.
    Apply(PackageId),
    /// Write the result.
    Export,
}

/// Called before each engine call. It may wait, and its error makes the call fail.
pub type CallHook = Arc<dyn Fn(EngineCall) -> Result<(), WorkError> + Send + Sync>;

/// Its sums say how often each shard was added, its weights which sums they were solved by.
pub struct FakeEngine {
    plan: Arc<Plan>,
    part_store: Arc<dyn PartStore>,
    hook: CallHook,
    sums: Option<(Exponents, Vec<i64>)>,
    received: ReceivedSums,
    weights: Vec<Vec<u8>>,
    result: Arc<Mutex<Option<Vec<u8>>>>,
}

/// Counts of shards and ranks, and the sum of the ranks' exponents.
type ReceivedSums = Arc<Mutex<BTreeMap<SiteId, Vec<i64>>>>;

/// Sums what a fake engine has counted.
struct FakeReducer {
    hook: CallHook,
    /// The own sums, where they count.
    own: Option<(Exponents, Vec<i64>)>,
    shards: usize,
    received: ReceivedSums,
}

impl FakeEngine {
    /// An engine on dense weights. What an export writes goes to `result`.
    pub fn new(
        plan: Arc<Plan>,
        part_store: Arc<dyn PartStore>,
        result: Arc<Mutex<Option<Vec<u8>>>>,
        hook: CallHook,
    ) -> Self {
        let received = ReceivedSums::default();
        Self { plan, part_store, hook, sums: None, received, weights: Vec::new(), result }
    }

    /// The exponent of a Gram that arrived, in which every shard counts once.
    fn exponent(&self, site: SiteId) -> Result<i32, WorkError> {
        let Some(sum) = lock(&self.received).get(&site).cloned() else {
            Self::sound(self.plan.shards.is_empty(), "a part is solved without its Gram")?;
            return Ok(0);
        };
        let (counts, rest) = sum.split_at(self.plan.shards.len());
        Self::sound(counts.iter().all(|count| *count == 1), "a shard counts other than once")?;
        Ok(i32::try_from(rest[1] / rest[0]).unwrap_or(0))
    }

    /// Refuses what a sound coordinator never lets happen.
    fn sound(holds: bool, problem: &str) -> Result<(), WorkError> {
        if holds { Ok(()) } else { Err(Error::Argument(problem.to_owned()).into()) }
    }
}

impl Engine for FakeEngine {
    fn pilot(&mut self, _: ShardId, step: AfterStep<'_>) -> Result<Exponents, WorkError> {
        Self::sound(self.weights.is_empty(), "a pilot runs on dense weights")?;
        step()?;
        let sites = self.plan.packages.iter().flat_map(|package| &package.sites);
        Ok(sites.map(|site| (*site, 20 + site.0 as i32)).collect())
    }

    fn open(&mut self, opening: &Opening) -> Result<(), WorkError> {
        Self::sound(opening.package.0 as usize == self.weights.len(), "a package opens on other weights")?;
        self.sums = Some((opening.exponents.clone(), vec![0; self.plan.shards.len()]));
        Ok(())
    }

    fn read(&mut self, shard: ShardId) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Read(shard))
    }

    fn calibrate(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Shard(shard))?;
        let Some((_, counts)) = &mut self.sums else { return Self::sound(false, "no sums are open") };
        counts[shard.0 as usize] += 1;
        step()
    }

    fn save(
        &mut self,
        save: &str,
        shards: &BTreeSet<ShardId>,
        step: AfterStep<'_>,
    ) -> Result<Option<Receipt>, WorkError> {
        let Some((exponents, counts)) = &self.sums else { return Ok(None) };
        (self.hook)(EngineCall::Save)?;
        let counted = |shard: &ShardId| counts.get(shard.0 as usize) == Some(&1);
        let all = shards.len() as i64 == counts.iter().sum::<i64>() && shards.iter().all(counted);
        Self::sound(all, "sums are saved as those of other shards")?;
        let content = serde_json::to_vec(&(save, counts)).map_err(|error| damaged(&error.to_string()))?;
        let receipt = self.part_store.put_gram(content)?;
        step()?;
        let record = SumsRecord {
            package: PackageId(self.weights.len() as u32),
            exponents: exponents.clone(),
            shards: shards.clone(),
            grams: vec![SavedGram { site: SiteId(0), group: None, receipt }],
        };
        Ok(Some(self.part_store.put_sums(&record)?))
    }

    fn check_saved(&mut self, saved: &SavedSums) -> Result<SumsRecord, WorkError> {
        let record = self.part_store.sums(&saved.receipt)?;
        let Some((exponents, _)) = &self.sums else { return Err(damaged("no sums are open").into()) };
        let package = PackageId(self.weights.len() as u32);
        let same = self.plan.serves(record.package, package) && record.exponents == *exponents;
        if same && record.shards == saved.shards { Ok(record) } else { Err(damaged("other sums").into()) }
    }

    fn restore(&mut self, gram: &SavedGram) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Restore)?;
        let content = self.part_store.gram(&gram.receipt)?;
        let read = serde_json::from_slice(&content);
        let (_, added): (String, Vec<i64>) = read.map_err(|error| damaged(&error.to_string()))?;
        let Some((_, counts)) = &mut self.sums else { return Self::sound(false, "no sums are open") };
        counts.iter_mut().zip(added).for_each(|(count, added)| *count += added);
        Self::sound(counts.iter().all(|count| *count <= 1), "a shard is restored that was counted")
    }

    fn forget(&mut self, saved: &Receipt) {
        if let Err(error) = self.part_store.remove_sums(saved) {
            tracing::debug!(%error, "saved sums were not removed");
        }
    }

    fn reducer(&mut self, adds: bool) -> Box<dyn Reducer> {
        Box::new(FakeReducer {
            hook: self.hook.clone(),
            own: self.sums.clone().filter(|_| adds),
            shards: self.plan.shards.len(),
            received: self.received.clone(),
        })
    }

    fn release(&mut self) {
        lock(&self.received).clear();
    }

    fn solve(&mut self, part: &Part, step: AfterStep<'_>) -> Result<Solved, WorkError> {
        step()?;
        (self.hook)(EngineCall::Solve(part.id))?;
        let applied = part.id.package.0 as usize == self.weights.len();
        Self::sound(applied, "a part is solved on other weights than its package's")?;
        let exponents = part.sites.iter().map(|site| Ok((*site, self.exponent(*site)?)));
        let exponents = exponents.collect::<Result<Exponents, WorkError>>()?;
        let object = format!("{} {:?} {exponents:?} {:?};", part.id, part.slices, self.weights);
        Ok(Solved { exponents, receipt: self.part_store.put(part.id, object.into_bytes())? })
    }

    fn keeps_sums(&self, packages: u32) -> bool {
        packages as usize == self.weights.len() + 1 && self.plan.keeps_sums(PackageId(packages))
    }

    fn apply(&mut self, packages: u32, step: AfterStep<'_>) -> Result<(), WorkError> {
        if !self.keeps_sums(packages) {
            self.sums = None;
        }
        lock(&self.received).clear();
        while self.weights.len() < packages as usize {
            let package = PackageId(self.weights.len() as u32);
            (self.hook)(EngineCall::Apply(package))?;
            let mut weights = Vec::new();
            for (part, receipt) in self.part_store.manifest(package)? {
                let object = self.part_store.get(&receipt)?;
                let its = part.package == package && object.starts_with(format!("{part} ").as_bytes());
                Self::sound(its, "a manifest names what was solved for another package")?;
                weights.extend(object);
            }
            self.weights.push(weights);
            step()?;
        }
        Ok(())
    }

    fn export(&mut self, step: AfterStep<'_>) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Export)?;
        Self::sound(self.weights.len() == self.plan.packages.len(), "an export before all is applied")?;
        step()?;
        *lock(&self.result) = Some(self.weights.concat());
        Ok(())
    }
}

fn damaged(problem: &str) -> PartStoreError {
    PartStoreError::Damaged(problem.to_owned())
}

impl Reducer for FakeReducer {
    fn reduce(
        &mut self,
        site: SiteId,
        roots: &[usize],
        group: &mut dyn Collective,
    ) -> Result<bool, WorkError> {
        (self.hook)(EngineCall::Reduce(site))?;
        let mut own = vec![0; self.shards + 2];
        if let Some((exponents, counts)) = &self.own {
            own[..counts.len()].copy_from_slice(counts);
            own[counts.len()] = 1;
            own[counts.len() + 1] = i64::from(exponents.get(&site).copied().unwrap_or(0));
        }
        let mut sum = vec![0; own.len()];
        let root = roots.contains(&group.rank());
        match roots {
            [one] => {
                let receive = root.then_some(Buffer::I64(&mut sum));
                group.reduce(*one, Values::I64(&own), receive)?;
            }
            _ => group.all_reduce(Values::I64(&own), Buffer::I64(&mut sum))?,
        }
        if root {
            lock(&self.received).insert(site, sum);
        }
        Ok(root)
    }
}

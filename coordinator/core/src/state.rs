//! What the coordinator knows: facts about workers and the open package. Whatever can be derived from them is not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::{Epoch, PackageId, SiteId, WorkerId};

use crate::ledger::Ledger;
use crate::{
    Action, Encoding, Exponents, Group, InvalidJob, Job, Opening, Order, Outcome, Part, PartId, Receipt,
    Tally, split,
};

/// The coordinator of one job, as a function from what happens to what is to be done.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) job: Job,
    /// Time of the step; never runs back.
    pub(crate) now: Duration,
    pub(crate) started: Duration,
    /// Workers whose session is open. All that leaves is forgotten.
    pub(crate) members: BTreeMap<WorkerId, ConnectedWorker>,
    /// The last worker that joined.
    pub(crate) latest: Option<WorkerId>,
    pub(crate) exponents: Option<Exponents>,
    /// The kind of hardware of all members; none before the first one joins, and where kinds mix.
    pub(crate) hardware: Option<String>,
    /// Kinds that stand by and were reported.
    pub(crate) standing_by: BTreeSet<String>,
    /// Packages committed, counted from the first.
    pub(crate) committed: u32,
    /// The package being pruned; none before the pilot and after the last.
    pub(crate) open: Option<OpenPackage>,
    /// Whether a worker has found the conditioning of every prompt in the store.
    pub(crate) encoded: bool,
    /// Who sees to that.
    pub(crate) encoder: Option<WorkerId>,
    pub(crate) pilot: Option<WorkerId>,
    pub(crate) exporter: Option<WorkerId>,
    /// Epochs used in this life.
    pub(crate) epochs: u32,
    pub(crate) attempt: Option<ReductionAttempt>,
    pub(crate) group_failures: GroupFailures,
    /// How often a shard, part, pilot, export or a worker's applying failed.
    pub(crate) failures: BTreeMap<Subject, u32>,
    pub(crate) no_workers: Option<NoWorkers>,
    /// When the first worker of an earlier life came back with shards, and how long others are expected to.
    pub(crate) first_return: Option<Duration>,
    pub(crate) returns_until: Duration,
    pub(crate) outcome: Option<Outcome>,
    /// Actions of the step so far.
    pub(crate) out: Vec<Action>,
    pub(crate) changed_workers: ChangedWorkers,
}

/// A worker whose session is open.
#[derive(Clone, Debug)]
pub(crate) struct ConnectedWorker {
    pub(crate) instance: u128,
    pub(crate) speed: u64,
    pub(crate) pace: Option<Duration>,
    /// When it last spoke.
    pub(crate) heard: Duration,
    /// When it last got on with its work, and its count then.
    pub(crate) moved: Duration,
    pub(crate) progress: u64,
    /// Packages applied.
    pub(crate) applied: u32,
    /// The sums that it is to have.
    pub(crate) tally: Tally,
    /// It still shows sums of the open package that do not count.
    pub(crate) stale_sums: bool,
    /// Groups up to this epoch are closed at the worker...
    pub(crate) closed: Epoch,
    /// ...and up to this one they are to be.
    pub(crate) abort: Epoch,
    /// The last trouble taken up.
    pub(crate) trouble: u64,
    pub(crate) draining: Option<Duration>,
    /// It is to leave once it has saved its sums.
    pub(crate) saving: bool,
    /// It is not ready for orders yet: no shard, part or place in a group is for it.
    pub(crate) preparing: bool,
    /// How far it is with the conditioning of the prompts.
    pub(crate) encoding: Encoding,
    /// What it last showed in hand.
    pub(crate) in_hand: BTreeSet<Order>,
    /// When each order may be sent again.
    pub(crate) due: BTreeMap<Order, Duration>,
}

/// The package being pruned.
#[derive(Clone, Debug)]
pub(crate) struct OpenPackage {
    pub(crate) package: PackageId,
    pub(crate) opening: Arc<Opening>,
    pub(crate) parts: BTreeMap<PartId, Arc<Part>>,
    pub(crate) ledger: Ledger,
    /// Parts whose weights are in the store. What is solved stays solved: any worker would find the same.
    pub(crate) solved: BTreeMap<PartId, Receipt>,
    /// Since when parts could not be stored, with none stored in between.
    pub(crate) unstored: Option<Duration>,
    pub(crate) commit: Option<Commit>,
    /// How often each site's exponent was lowered.
    pub(crate) lowered: BTreeMap<SiteId, u32>,
}

/// A manifest on its way to the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    pub(crate) tries: u32,
    /// When it was tried first.
    pub(crate) begun: Duration,
    /// When to try again; none while the store has it.
    pub(crate) again: Option<Duration>,
}

/// A group's try at reducing the open package.
#[derive(Clone, Debug)]
pub(crate) struct ReductionAttempt {
    pub(crate) group: Arc<Group>,
    pub(crate) begun: Duration,
    pub(crate) formed: BTreeSet<WorkerId>,
    /// Its ranks were ordered to reduce.
    pub(crate) reducing: bool,
    /// Ranks that went through all reductions.
    pub(crate) through: BTreeSet<WorkerId>,
    /// Grams that arrived at their roots.
    pub(crate) received: BTreeSet<(SiteId, WorkerId)>,
    /// How many there are to be.
    pub(crate) expected: usize,
    /// A member left before all had arrived.
    pub(crate) lost: Option<WorkerId>,
}

/// Groups that failed in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupFailures {
    pub(crate) count: u32,
    /// When the first of them failed.
    pub(crate) since: Duration,
    /// When the next group may form.
    pub(crate) again: Duration,
}

/// Since when nobody is there, and why the last one left.
#[derive(Clone, Debug)]
pub(crate) struct NoWorkers {
    pub(crate) since: Duration,
    pub(crate) last: String,
}

/// What can fail repeatedly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Pilot,
    Shard(obsdiff_proto::ShardId),
    Part(PartId),
    Apply(WorkerId),
    Export,
    /// Shards and pilots of a worker.
    Worker(WorkerId),
}

/// Workers whose orders may have changed in this step.
#[derive(Clone, Debug)]
pub(crate) enum ChangedWorkers {
    Some(BTreeSet<WorkerId>),
    All,
}

impl Core {
    /// A coordinator that starts at `now`.
    ///
    /// # Errors
    /// When the job makes no sense.
    pub fn new(mut job: Job, now: Duration) -> Result<Self, InvalidJob> {
        job.validate()?;
        let exponents = match job.exponents.take() {
            None if !job.needs_exponents() => Some(Exponents::new()),
            exponents => exponents,
        };
        let mut core = Self {
            now,
            started: now,
            members: BTreeMap::new(),
            latest: None,
            exponents,
            hardware: job.hardware.take().filter(|_| !job.options.mixed_hardware),
            standing_by: BTreeSet::new(),
            committed: job.committed,
            open: None,
            encoded: false,
            encoder: None,
            pilot: None,
            exporter: None,
            epochs: 0,
            attempt: None,
            group_failures: GroupFailures::default(),
            failures: BTreeMap::new(),
            no_workers: Some(NoWorkers { since: now, last: String::new() }),
            first_return: None,
            returns_until: now,
            outcome: None,
            out: Vec::new(),
            changed_workers: ChangedWorkers::Some(BTreeSet::new()),
            job,
        };
        core.open_package();
        Ok(core)
    }

    /// Opens the package after the committed ones, once exponents are known.
    pub(crate) fn open_package(&mut self) {
        self.open = None;
        let (Some(package), Some(exponents)) =
            (self.job.plan.packages.get(self.committed as usize), &self.exponents)
        else {
            return;
        };
        let of_site = |site: &SiteId| Some((*site, *exponents.get(site)?));
        let exponents: Exponents = package.sites.iter().filter_map(of_site).collect();
        let parts = split::parts(
            &self.job.inventory,
            package,
            self.job.options.split_above,
            self.job.options.solving,
        );
        let mut ledger = Ledger::new(self.job.plan.shards.len());
        for sums in &self.job.saved {
            if self.job.plan.serves(sums.package, package.id) && sums.exponents == exponents {
                ledger.offer(sums.saved.clone());
            }
        }
        self.open = Some(OpenPackage {
            package: package.id,
            opening: Arc::new(Opening { package: package.id, exponents }),
            parts: parts.into_iter().map(|p| (p.id, Arc::new(p))).collect(),
            ledger,
            solved: BTreeMap::new(),
            unstored: None,
            commit: None,
            lowered: BTreeMap::new(),
        });
    }

    /// Whether every package is committed.
    pub(crate) fn all_committed(&self) -> bool {
        self.committed as usize == self.job.plan.packages.len()
    }

    pub(crate) fn touch(&mut self, worker: WorkerId) {
        if let ChangedWorkers::Some(workers) = &mut self.changed_workers {
            workers.insert(worker);
        }
    }

    pub(crate) fn touch_all(&mut self) {
        self.changed_workers = ChangedWorkers::All;
    }
}

impl OpenPackage {
    /// Parts whose weights are not in the store yet.
    pub(crate) fn unsolved(&self) -> impl Iterator<Item = &Arc<Part>> {
        self.parts.values().filter(|p| !self.solved.contains_key(&p.id))
    }

    /// Linears of which some rows are not in the store yet.
    pub(crate) fn unsolved_linears(&self) -> usize {
        let linears = self.unsolved().flat_map(|part| &part.slices).map(|slice| slice.linear);
        linears.collect::<BTreeSet<_>>().len()
    }

    pub(crate) fn all_solved(&self) -> bool {
        self.solved.len() == self.parts.len()
    }
}

impl ReductionAttempt {
    /// Whether every Gram is where it is solved. From then on the sums of those who leave are not needed here.
    pub(crate) fn all_received(&self) -> bool {
        self.reducing && self.received.len() == self.expected
    }
}

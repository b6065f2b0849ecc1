//! What a coordinator starts from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::message::SavedSums;
use obsdiff_proto::{Inventory, JobSpec, PackageId, Plan};
use thiserror::Error;

use crate::Exponents;
use crate::assignment::SolveCost;

/// A job as far as it has come: what is asked, and what the store already holds.
#[derive(Clone, Debug)]
pub struct Job {
    /// What can be pruned.
    pub inventory: Arc<Inventory>,
    /// What is pruned; it alone decides the result.
    pub plan: Arc<Plan>,
    /// Packages whose manifests are in the store, counted from the first.
    pub committed: u32,
    /// Exponents as an earlier life saved them, or as the last manifest has them; none makes a pilot find them. Empty for sums that
    /// need none (`accumulate = "f32"`).
    pub exponents: Option<Exponents>,
    /// The kind of hardware of the job's workers, as an earlier life took it; none makes it that of the first who joins.
    pub hardware: Option<String>,
    /// Sums that workers of earlier lives saved.
    pub saved: Vec<StoredSums>,
    /// 0 for the job's first coordinator, larger for every later one: worker ids and epochs of different lives never meet.
    pub life: u32,
    /// How patient the coordinator is.
    pub options: Options,
}

/// Saved sums, and what they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSums {
    /// The package that they were gathered for.
    pub package: PackageId,
    /// The exponents of its sites.
    pub exponents: Exponents,
    /// The sums.
    pub saved: Arc<SavedSums>,
}

/// Limits and waiting times.
#[derive(Clone, Debug)]
pub struct Options {
    /// A worker that sent nothing for so long counts as lost.
    pub silence: Duration,
    /// A worker that is busy and makes no progress for so long is gone.
    pub stall: Duration,
    /// An order that a worker does not show in hand after so long is sent again.
    pub patience: Duration,
    /// After a restart, wait so long for workers that bring shards of an earlier life before leasing any. Zero where none can.
    pub settle: Duration,
    /// The longest that the shards of a worker wait for it that may return, and after a restart for further workers of an earlier life.
    pub reserve: Duration,
    /// The longest that is waited for a store or a network to be repaired, while workers hold what would take as long to compute again.
    pub repair: Duration,
    /// A worker that drains may finish a reduction or a part for so long.
    pub grace: Duration,
    /// Shards are leased ahead for so much of a worker's time...
    pub ahead: Duration,
    /// ...but no more than so many, the running one included.
    pub most_leases: u32,
    /// A group that has not formed after so long is given up.
    pub form: Duration,
    /// Groups that fail in a row, with no worker lost or gained, before the job fails.
    pub groups: u32,
    /// The first wait before something is tried again; doubles each time.
    pub backoff: Duration,
    /// The longest such wait.
    pub backoff_most: Duration,
    /// How often the same shard or the pilot may fail before the job does.
    pub tries: u32,
    /// How many shards and pilots may fail at a worker before it is sent away.
    pub worker_tries: u32,
    /// How often what needs the store may fail before the job does: a manifest, a part's weights, the export; or before a worker
    /// is sent away that cannot apply weights.
    pub store_tries: u32,
    /// The job fails when parts could not be stored for so long, one after the other and none in between, however many they are.
    pub store_patience: Duration,
    /// Binary digits by which an exponent is lowered when its Gram overflowed.
    pub lowering: i32,
    /// The job fails after so long without a worker.
    pub no_workers: Duration,
    /// A site whose solving costs more than this is split by rows. Part of the plan: it decides which weights compete.
    pub split_above: Option<u64>,
    /// Workers of any kind of hardware may take part (`workers.mixed_hardware`).
    pub mixed_hardware: bool,
    /// What solving costs by the job's method, and so who solves what.
    pub solving: SolveCost,
}

impl Default for Options {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            silence: seconds(8),
            stall: seconds(15 * 60),
            patience: seconds(5),
            settle: seconds(4),
            reserve: seconds(60),
            repair: seconds(30 * 60),
            grace: seconds(8),
            ahead: seconds(10),
            most_leases: 4,
            form: seconds(60),
            groups: 6,
            backoff: Duration::from_millis(500),
            backoff_most: seconds(30),
            tries: 4,
            worker_tries: 3,
            store_tries: 8,
            store_patience: seconds(60),
            lowering: 4,
            no_workers: seconds(60 * 60),
            split_above: None,
            mixed_hardware: false,
            solving: SolveCost::sweep(0),
        }
    }
}

impl Options {
    /// The options that a job's specification sets. The others have their defaults.
    pub fn of(spec: &JobSpec) -> Self {
        Self {
            solving: SolveCost::of(&spec.sparsity),
            split_above: Some(spec.packages.split_above),
            mixed_hardware: spec.workers.mixed_hardware,
            ..Self::default()
        }
    }

    /// The wait after something failed for the `tries`-th time (from 1).
    pub(crate) fn wait_after(&self, tries: u32) -> Duration {
        let doubled = 1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
        self.backoff.saturating_mul(doubled).min(self.backoff_most)
    }
}

/// A job that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidJob {
    /// The plan has no packages.
    #[error("the plan has no packages")]
    NoPackages,
    /// Ids of packages or shards do not count from 0.
    #[error("the plan's {what} {found} stands in place {place}")]
    Misnumbered {
        /// `package` or `shard`.
        what: &'static str,
        /// Its id.
        found: u32,
        /// Its place.
        place: usize,
    },
    /// A package prunes nothing, names what the inventory lacks, or what another package prunes too.
    #[error("package {}: {problem}", u64::from(*package) + 1)]
    Package {
        /// The package, counted from 0.
        package: u32,
        /// What is wrong.
        problem: String,
    },
    /// More is committed than planned.
    #[error("{committed} packages are committed, but the plan has {planned}")]
    TooManyCommitted {
        /// Packages committed.
        committed: u32,
        /// Packages planned.
        planned: usize,
    },
    /// Packages are committed, but the exponents they were gathered with are not known.
    #[error(
        "{committed} packages are committed, but no exponents were saved: the dense model's pilot cannot be run again"
    )]
    NoExponents {
        /// Packages committed.
        committed: u32,
    },
    /// Exponents leave out a site.
    #[error("exponents leave out site {site}")]
    ExponentMissing {
        /// The site.
        site: u32,
    },
}

impl Job {
    /// Checks that plan, inventory and progress fit each other. A plan without shards gathers nothing: its packages need no sites.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn validate(&self) -> Result<(), InvalidJob> {
        let plan = &self.plan;
        if plan.packages.is_empty() {
            return Err(InvalidJob::NoPackages);
        }
        let shards = plan.shards.iter().map(|s| ("shard", s.id.0)).enumerate();
        let packages = plan.packages.iter().map(|p| ("package", p.id.0)).enumerate();
        for (place, (what, found)) in packages.chain(shards) {
            if found as usize != place {
                return Err(InvalidJob::Misnumbered { what, found, place });
            }
        }
        self.validate_packages()?;
        if self.committed as usize > plan.packages.len() {
            return Err(InvalidJob::TooManyCommitted {
                committed: self.committed,
                planned: plan.packages.len(),
            });
        }
        match &self.exponents {
            None if self.committed > 0 && self.needs_exponents() => {
                Err(InvalidJob::NoExponents { committed: self.committed })
            }
            Some(exponents) if !exponents.is_empty() => self.validate_exponents(exponents),
            _ => Ok(()),
        }
    }

    /// Whether Grams are gathered at all: without shards nothing is summed.
    pub(crate) fn needs_exponents(&self) -> bool {
        !self.plan.shards.is_empty()
    }

    /// Whether `exponents` has an entry for every planned site.
    pub(crate) fn validate_exponents(&self, exponents: &Exponents) -> Result<(), InvalidJob> {
        let mut planned = self.plan.packages.iter().flat_map(|p| &p.sites);
        match planned.find(|site| !exponents.contains_key(site)) {
            Some(site) => Err(InvalidJob::ExponentMissing { site: site.0 }),
            None => Ok(()),
        }
    }

    fn validate_packages(&self) -> Result<(), InvalidJob> {
        let mut seen = BTreeSet::new();
        let mut pruning = false;
        for package in &self.plan.packages {
            let wrong = |problem: String| Err(InvalidJob::Package { package: package.id.0, problem });
            if package.linears.is_empty() {
                return wrong("has nothing to prune".to_owned());
            }
            if package.survey && pruning {
                return wrong("is surveyed after something was pruned".to_owned());
            }
            if !package.survey && !pruning {
                pruning = true;
                seen.clear();
            }
            for target in &package.linears {
                let Some(linear) = self.inventory.linears.get(target.linear.0 as usize) else {
                    return wrong(format!("linear {} is not in the inventory", target.linear));
                };
                if self.needs_exponents() && !package.sites.contains(&linear.site) {
                    return wrong(format!(
                        "linear {} reads site {}, which is not gathered",
                        target.linear, linear.site
                    ));
                }
            }
            for site in &package.sites {
                let pruned = |t: &&obsdiff_proto::LinearTarget| self.inventory.linear(t.linear).site == *site;
                if self.inventory.sites.get(site.0 as usize).is_none() {
                    return wrong(format!("site {site} is not in the inventory"));
                }
                if package.linears.iter().find(pruned).is_none() {
                    return wrong(format!("site {site} has no linear to prune"));
                }
                if !seen.insert(*site) {
                    return wrong(format!("site {site} stands in two places"));
                }
            }
        }
        Ok(())
    }
}

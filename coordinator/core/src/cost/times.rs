//! How long a plan takes a number of workers, from what one of them was measured to reach.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::Add;

use obsdiff_proto::{Accumulate, Inventory, Package, Plan, WorkerId};

use super::{PackageCost, ProbeCost, Workload, gram_bytes, package_gram_flops};
use crate::{Options, assignment, split};

/// What one worker reaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Operations of forward calls in a second, while no site is open.
    pub forward: f64,
    /// Operations of Grams in a second.
    pub gram: f64,
    /// By a site's width, units of [`assignment::SolveCost`] in a second.
    pub solve: BTreeMap<usize, f64>,
}

impl Rates {
    /// The rate of solving sites of this width: that of the next larger one measured, or else of the largest.
    pub(super) fn solving(&self, width: usize) -> Option<f64> {
        self.solve.range(width..).next().or_else(|| self.solve.last_key_value()).map(|(_, rate)| *rate)
    }
}

/// Equal workers that share a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    /// How many there are.
    pub workers: u32,
    /// Bytes that each sends in a second, and receives at the same time.
    pub bandwidth: f64,
}

/// How long a package's phases take, in seconds, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PackageTimes {
    /// Until every shard is held.
    pub calibrate: f64,
    /// Until every Gram is where it is solved.
    pub reduce: f64,
    /// Until every part is solved.
    pub solve: f64,
}

impl PackageTimes {
    /// All of it.
    pub fn all(&self) -> f64 {
        self.calibrate + self.reduce + self.solve
    }
}

impl Add for PackageTimes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            calibrate: self.calibrate + other.calibrate,
            reduce: self.reduce + other.reduce,
            solve: self.solve + other.solve,
        }
    }
}

impl Sum for PackageTimes {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), Self::add)
    }
}

/// What times are predicted from, besides the plan.
#[derive(Clone, Copy, Debug)]
pub struct PredictionInputs<'a> {
    /// What the plan's ids mean.
    pub inventory: &'a Inventory,
    /// How sums are kept.
    pub accumulate: Accumulate,
    /// How sites are cut into parts.
    pub options: &'a Options,
    /// A package's forward calls.
    pub workload: &'a Workload,
    /// What one worker reaches.
    pub rates: &'a Rates,
}

/// How long each package of `plan` takes `cluster`: shards go to whoever is free first, each Gram goes around a ring of all workers to
/// the owner, and parts are solved by their owners. Groups are taken to form at once, and packages to be applied so.
pub fn times(plan: &Plan, setting: PredictionInputs<'_>, cluster: Cluster) -> Vec<PackageTimes> {
    let workers = cluster.workers.max(1);
    let times = |package: &Package| PackageTimes {
        calibrate: calibrate(plan, package, setting, workers),
        reduce: reduce(package, setting, cluster),
        solve: solve(package, setting, workers),
    };
    plan.packages.iter().map(times).collect()
}

fn calibrate(plan: &Plan, package: &Package, setting: PredictionInputs<'_>, workers: u32) -> f64 {
    let PredictionInputs { inventory, workload, rates, .. } = setting;
    if package.sites.is_empty() || workload.prompts == 0 || plan.keeps_sums(package.id) {
        return 0.0;
    }
    let grams = package_gram_flops(package, inventory, workload);
    let forward = workload.passes() as f64 * workload.forward.total();
    let of_prompt = (forward / rates.forward + grams / rates.gram) / workload.prompts as f64;
    let mut busy = vec![0.0; workers as usize];
    for shard in &plan.shards {
        if let Some(free) = busy.iter_mut().min_by(|a: &&mut f64, b: &&mut f64| a.total_cmp(b)) {
            *free += shard.prompts.len() as f64 * of_prompt;
        }
    }
    busy.into_iter().fold(0.0, f64::max)
}

/// A ring of W workers reduces by sending each W-th part W - 1 times; bringing the sum together takes as long again.
fn reduce(package: &Package, setting: PredictionInputs<'_>, cluster: Cluster) -> f64 {
    let workers = f64::from(cluster.workers.max(1));
    let width = |site| package.gram_width(setting.inventory.site(site));
    let bytes: f64 =
        package.sites.iter().map(|site| gram_bytes(width(*site), setting.accumulate) as f64).sum();
    2.0 * (workers - 1.0) / workers * bytes / cluster.bandwidth
}

fn solve(package: &Package, setting: PredictionInputs<'_>, workers: u32) -> f64 {
    let PredictionInputs { inventory, options, rates, workload, .. } = setting;
    let probes = ProbeCost::new(inventory, workload);
    // Linears are pruned to several targets, structures one part after another.
    let trials = if package.survey && !package.is_structured() { workload.survey.trials as f64 } else { 1.0 };
    let parts = split::parts(inventory, package, options.split_above, options.solving);
    let seconds = |part: &crate::Part| {
        let width = inventory.site(part.id.site).width;
        trials * rates.solving(width).map_or(0.0, |rate| part.cost as f64 / rate)
    };
    let costs: Vec<_> = parts.iter().map(|part| (part.id, part.cost)).collect();
    let equal: Vec<_> = (0..u64::from(workers)).map(|worker| (WorkerId(worker), 1)).collect();
    let owners = assignment::owners(&costs, &equal);
    let mut busy = BTreeMap::<_, (f64, Vec<_>)>::new();
    for part in &parts {
        if let Some(owner) = owners.get(&part.id) {
            let (solving, probed) = busy.entry(*owner).or_default();
            *solving += seconds(part);
            probed.extend(probes.of_part(package, part));
        }
    }
    let of_worker = |(solving, probed): (f64, Vec<_>)| solving + probes.flops(probed) / rates.forward;
    busy.into_values().map(of_worker).fold(0.0, f64::max)
}

/// The rates at which work of these costs took so many seconds: bare forward calls, the same calls while Grams were gathered, and by
/// width the solving of parts.
pub fn rates(cost: &PackageCost, bare: f64, gathering: f64, solving: BTreeMap<usize, (u64, f64)>) -> Rates {
    let least = |seconds: f64| seconds.max(1e-9);
    Rates {
        forward: cost.forward_flops / least(bare),
        gram: cost.gram_flops / least(gathering - bare),
        solve: solving
            .into_iter()
            .map(|(width, (cost, seconds))| (width, cost as f64 / least(seconds)))
            .collect(),
    }
}

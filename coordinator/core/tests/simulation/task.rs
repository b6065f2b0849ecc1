//! What is pruned in a run, and what must come out of it whatever happens on the way.

use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{Exponents, Job, Manifest, Options, Part, PartId, Receipt, split};
use obsdiff_proto::{
    Budget, Features, Inventory, Linear, LinearId, LinearTarget, Package, PackageId, PartKind, Plan, Shard,
    ShardId, Site, SiteId, StreamId, Structure, Target,
};
use obsdiff_tests::{Prng, hash};

/// A small job, drawn from a seed.
pub(crate) struct Task {
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) options: Options,
    /// What a pilot finds.
    pub(crate) pilot: Exponents,
    /// The largest exponent with which a site's Gram does not overflow.
    pub(crate) limits: Exponents,
    /// A site that no damping makes solvable.
    pub(crate) singular: Option<SiteId>,
}

impl Task {
    pub(crate) fn draw(rng: &mut Prng) -> Self {
        let (packages, per_package) = (rng.within(1..4), rng.within(1..4));
        let sites = packages * per_package;
        let shards = rng.within(1..9);
        let mut inventory = inventory(sites, rng);
        let budget = rng.once_in(3);
        if budget {
            inventory.structures = structures(packages, per_package, rng);
        }
        let target = if budget { Target::Structured { ratio: None } } else { Target::NToM { n: 2, m: 4 } };
        let package = |p: u64| {
            let ids = p * per_package..(p + 1) * per_package;
            let target = |i: u64| LinearTarget { linear: LinearId(i as u32), target };
            Package {
                id: PackageId(p as u32),
                units: 0..0,
                sites: ids.clone().map(|i| SiteId(i as u32)).collect(),
                linears: ids.map(target).collect(),
                survey: false,
            }
        };
        let shard = |s: u64| Shard { id: ShardId(s as u32), prompts: s as u32 * 4..s as u32 * 4 + 4 };
        let pilot: Exponents = (0..sites).map(|s| (SiteId(s as u32), rng.within(10..20) as i32)).collect();
        let plan = Plan {
            packages: (0..packages).map(package).collect(),
            shards: (0..shards).map(shard).collect(),
            budget: None,
        };
        let part_flops = vec![1.0; inventory.structures.len()];
        let plan = if budget { plan.with_budget(Budget { saving: 1.0, part_flops }) } else { plan };
        let limits = pilot
            .iter()
            .map(|(s, e)| (*s, if rng.once_in(12) { e - rng.within(1..7) as i32 } else { e + 9 }));
        Self {
            limits: limits.collect(),
            pilot,
            singular: rng.once_in(60).then(|| SiteId(rng.within(0..sites) as u32)),
            options: options(rng.once_in(2).then_some(3 * 8 * 8 * 8), rng.once_in(8)),
            inventory: Arc::new(inventory),
            plan: Arc::new(plan),
        }
    }

    /// The job as a coordinator finds it.
    pub(crate) fn job(
        &self,
        committed: usize,
        exponents: Option<Exponents>,
        hardware: Option<String>,
        life: u32,
    ) -> Job {
        Job {
            inventory: self.inventory.clone(),
            plan: self.plan.clone(),
            committed: committed as u32,
            exponents,
            hardware,
            saved: Vec::new(),
            life,
            options: self.options.clone(),
        }
    }

    /// What decides the bits that a worker of this kind finds.
    pub(crate) fn bits(&self, hardware: &'static str) -> &'static str {
        if self.options.mixed_hardware { "any" } else { hardware }
    }

    /// The manifests of an undisturbed run on this kind of hardware.
    pub(crate) fn expected(&self, hardware: &'static str) -> Vec<Manifest> {
        let named = (!self.options.mixed_hardware).then(|| hardware.to_owned());
        let mut weights = dense();
        let mut manifests = Vec::new();
        let mut exponents = self.pilot.clone();
        for package in &self.plan.packages {
            exponents.extend(package.sites.iter().map(|s| (*s, self.fitting(*s))));
            let parts =
                split::parts(&self.inventory, package, self.options.split_above, self.options.solving);
            let receipt = |part: Part| {
                let exponents = part.sites.iter().map(|site| (*site, exponents[site])).collect();
                (part.id, receipt(weights, part.id, &exponents, self.bits(hardware)))
            };
            let manifest = Manifest {
                package: package.id,
                parts: parts.into_iter().map(receipt).collect(),
                exponents: exponents.clone(),
                hardware: named.clone(),
            };
            weights = applied(&manifest);
            manifests.push(manifest);
        }
        manifests
    }

    fn fitting(&self, site: SiteId) -> i32 {
        let mut exponent = self.pilot[&site];
        while exponent > self.limits[&site] {
            exponent -= self.options.lowering;
        }
        exponent
    }
}

/// Kinds of hardware; most processes run on the first.
pub(crate) const KINDS: [&str; 2] = ["a processor", "another processor"];

/// Weights before anything was pruned.
pub(crate) fn dense() -> u64 {
    hash("dense")
}

/// Weights after a package.
pub(crate) fn applied(manifest: &Manifest) -> u64 {
    hash(&format!("{:?}", manifest.parts))
}

/// What solving a part gives: it depends on the weights calibrated on, the part, the exponents of the sums and the hardware.
pub(crate) fn receipt(weights: u64, part: PartId, exponents: &Exponents, bits: &str) -> Receipt {
    Receipt(format!("{part} of {weights:x} at {exponents:?} on {bits}").into())
}

/// Structures of one or two linears each, within a package.
fn structures(packages: u64, per_package: u64, rng: &mut Prng) -> Vec<Structure> {
    let mut structures = Vec::new();
    for package in 0..packages {
        let mut next = package * per_package;
        while next < (package + 1) * per_package {
            let end = (next + rng.within(1..3)).min((package + 1) * per_package);
            structures.push(Structure {
                name: format!("structures.{}", structures.len()),
                block: package as u32,
                kind: PartKind::Heads,
                count: 4,
                outputs: (next..end).map(|i| Features::whole(LinearId(i as u32), 2)).collect(),
                inputs: Vec::new(),
            });
            next = end;
        }
    }
    structures
}

fn inventory(sites: u64, rng: &mut Prng) -> Inventory {
    let name = |i: u64| format!("blocks.{i}");
    let site = |i: u64| Site {
        name: name(i),
        width: 8,
        stream: StreamId(0),
        joined: Vec::new(),
        linears: vec![LinearId(i as u32)],
    };
    let linear = |i: u64| Linear {
        name: name(i),
        rows: rng.within(4..40) as usize,
        bias: true,
        site: SiteId(i as u32),
    };
    Inventory {
        sites: (0..sites).map(site).collect(),
        linears: (0..sites).map(linear).collect(),
        ..Inventory::default()
    }
}

fn options(split_above: Option<u64>, mixed_hardware: bool) -> Options {
    Options {
        split_above,
        mixed_hardware,
        stall: Duration::from_secs(60),
        no_workers: Duration::from_secs(600),
        ..Options::default()
    }
}

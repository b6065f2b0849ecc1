//! From a specification and an inventory to packages and shards: pure, and independent of the number of workers.

mod error;
mod fit;
mod partition;
mod rules;
mod structured;

use std::ops::Range;

use obsdiff_proto::{
    Balance, ByteSize, ForwardFlops, Inventory, JobSpec, LinearId, LinearTarget, Package, PackageId, Pattern,
    Plan, Shard, ShardId, SiteId, Targets,
};

use crate::assignment::SolveCost;
use crate::cost::{Tokens, Workload, gram_bytes, gram_flops};

pub use error::PlanError;
pub use fit::{fewest_packages, packages_within};

/// One by default, because refinement gains more than further packages do, and each of those costs a calibration.
const DEFAULT_PACKAGES: u32 = 1;

/// A unit with something to prune.
struct Active {
    unit: usize,
    sites: Vec<SiteId>,
    linears: Vec<LinearTarget>,
    gram_bytes: u64,
    work: f64,
}

/// Plans a job on a model: packages by `[packages]`, targets by `[sparsity]`, shards by `[calibration]`. Of `tokens` only the
/// balance of work depends. Every unit of the inventory lies in exactly one package; every package has a linear to prune. A method
/// that needs no calibration opens no site and has no shard.
///
/// # Errors
/// When a rule decides for no linear, a linear to prune would keep all its weights, nothing is left to prune, there are more packages
/// than units, or a unit does not fit in `packages.memory`.
pub fn plan(spec: &JobSpec, inventory: &Inventory, tokens: Tokens) -> Result<Plan, PlanError> {
    let targets = Targets::new(&spec.sparsity)?;
    let structured = spec.sparsity.pattern == Pattern::Structured;
    rules::check_rules(&spec.sparsity, inventory, &targets)?;
    let active = active_units(spec, inventory, &targets, tokens);
    if active.is_empty() && structured && structured::keeps_ends(inventory, &targets) {
        return Err(PlanError::OnlyEnds);
    }
    if active.is_empty() {
        return Err(PlanError::NothingToPrune);
    }
    let pruned: Vec<LinearTarget> = active.iter().flat_map(|unit| unit.linears.iter().copied()).collect();
    if structured {
        rules::check_align(spec, inventory, &pruned)?;
    }
    rules::check_counts(spec, inventory, &targets, &pruned)?;
    let ends = split(spec, inventory, &active)?;
    Ok(Plan { packages: packages(&active, &ends, inventory.units.len()), shards: shards(spec), budget: None })
}

fn active_units(spec: &JobSpec, inventory: &Inventory, targets: &Targets, tokens: Tokens) -> Vec<Active> {
    let calibrates = spec.sparsity.calibrates();
    let whole = match spec.sparsity.pattern {
        Pattern::Structured => Some(structured::targets(inventory, targets)),
        _ => None,
    };
    let target = |linear: &LinearId| match &whole {
        Some(targets) => targets.get(linear).copied(),
        None => targets.of(&inventory.linear(*linear).name),
    };
    let workload = Workload::new(spec, tokens, ForwardFlops::default());
    let mut active = Vec::new();
    for (unit, parts) in inventory.units.iter().enumerate() {
        let mut entry = Active { unit, sites: Vec::new(), linears: Vec::new(), gram_bytes: 0, work: 0.0 };
        for id in &parts.sites {
            let site = inventory.site(*id);
            let pruned: Vec<_> = site
                .linears
                .iter()
                .filter_map(|l| Some(LinearTarget { linear: *l, target: target(l)? }))
                .collect();
            if pruned.is_empty() {
                continue;
            }
            let rows = pruned.iter().map(|p| inventory.linear(p.linear).rows).sum();
            entry.linears.extend(pruned);
            if calibrates {
                entry.sites.push(*id);
                let width = site.width + usize::from(whole.is_some());
                let bytes = gram_bytes(width, spec.hessian.accumulate);
                entry.gram_bytes = entry.gram_bytes.saturating_add(bytes);
                entry.work += gram_flops(site, width, inventory, &workload)
                    + SolveCost::of(&spec.sparsity).of_rows(site.width, rows) as f64;
            } else {
                entry.work += rows as f64 * site.width as f64;
            }
        }
        entry.linears.sort_by_key(|l| l.linear);
        if !entry.linears.is_empty() {
            active.push(entry);
        }
    }
    active
}

/// The ends of the packages, in active units.
fn split(spec: &JobSpec, inventory: &Inventory, active: &[Active]) -> Result<Vec<usize>, PlanError> {
    let limit = spec.packages.memory.unwrap_or(ByteSize(u64::MAX));
    if let Some(unit) = active.iter().filter(|a| a.gram_bytes > limit.0).max_by_key(|a| a.gram_bytes) {
        return Err(too_large(unit, limit, inventory));
    }
    let (asked, most) = (spec.packages.count.unwrap_or(DEFAULT_PACKAGES), active.len() as u32);
    if spec.packages.memory.is_none() && asked > most {
        return Err(PlanError::TooManyPackages { count: asked, most });
    }
    let sizes: Vec<u64> = active.iter().map(|a| a.gram_bytes).collect();
    let work: Vec<f64> = active.iter().map(|a| a.work).collect();
    let fits =
        |run: Range<usize>| sizes[run].iter().fold(0, |sum: u64, size| sum.saturating_add(*size)) <= limit.0;
    let first = match spec.packages.memory {
        Some(limit) => partition::fewest(&sizes, limit.0),
        None => (asked as usize).max(1),
    };
    let ends = (first..=active.len()).find_map(|count| match spec.packages.balance {
        Balance::Work => partition::balanced(&work, count, fits),
        Balance::Units => {
            let ends = partition::even(active.len(), count);
            Some(ends).filter(|ends| runs(ends).all(fits))
        }
    });
    // With one unit a package, every package fits.
    Ok(ends.unwrap_or_else(|| (1..=active.len()).collect()))
}

fn runs(ends: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
    std::iter::once(0).chain(ends.iter().copied()).zip(ends.iter().copied()).map(|(start, end)| start..end)
}

/// `unit` is the largest of all, so that what it needs is enough for every other.
fn too_large(unit: &Active, limit: ByteSize, inventory: &Inventory) -> PlanError {
    let needed = unit.gram_bytes;
    PlanError::UnitTooLarge {
        limit,
        site: unit.sites.first().map(|s| inventory.site(*s).name.clone()).unwrap_or_default(),
        needed: ByteSize(needed),
        least: match needed >> 20 {
            0 => format!("{}KiB", needed.div_ceil(1 << 10)),
            _ => format!("{}MiB", needed.div_ceil(1 << 20)),
        },
    }
}

/// Packages of active units, widened over the idle units that follow each (and precede the first), so that all are covered.
fn packages(active: &[Active], ends: &[usize], units: usize) -> Vec<Package> {
    let start_of = |first: usize| if first == 0 { 0 } else { active.get(first).map_or(units, |a| a.unit) };
    let packages = runs(ends).zip(0..).map(|(run, id)| {
        let mut linears: Vec<_> =
            active[run.clone()].iter().flat_map(|a| a.linears.iter().copied()).collect();
        linears.sort_by_key(|l| l.linear);
        Package {
            id: PackageId(id),
            units: start_of(run.start)..start_of(run.end),
            sites: active[run].iter().flat_map(|a| a.sites.iter().copied()).collect(),
            linears,
            survey: false,
        }
    });
    packages.collect()
}

fn shards(spec: &JobSpec) -> Vec<Shard> {
    let c = &spec.calibration;
    if c.grams.is_some() && spec.sparsity.calibrates() {
        // Kept Grams are the sums over all prompts, and are read by one worker.
        return vec![Shard { id: ShardId(0), prompts: 0..c.count }];
    }
    let size = c.shard_size.max(1);
    let count = if spec.sparsity.calibrates() { c.count.div_ceil(size) } else { 0 };
    let prompts = |i: u32| i * size..c.count.min((i * size).saturating_add(size));
    (0..count).map(|i| Shard { id: ShardId(i), prompts: prompts(i) }).collect()
}

#[cfg(test)]
mod tests;

//! The packages of a plan, one after another on the weights as pruned so far.

use std::collections::{BTreeMap, BTreeSet};

use obsdiff_engine::Error as EngineError;
use obsdiff_engine::export::PrunedLinear;
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::{Accumulate, Package, SiteId};

use super::Inputs;
use crate::Result;
use crate::progress::Progress;

/// Binary digits by which the exponent of a Gram that overflowed is lowered.
const LOWERING: i32 = 4;

/// Prunes package after package; returns what is to be said of each linear, in model order.
pub(super) fn prune(pruner: &mut Pruner, inputs: &Inputs, progress: &Progress) -> Result<Vec<PrunedLinear>> {
    let mut exponents = pilot(pruner, inputs, progress)?;
    let mut reports = BTreeMap::new();
    let packages = &inputs.plan.packages;
    for (at, package) in packages.iter().enumerate() {
        progress.package(at + 1, packages.len(), &describe(package));
        calibrate(pruner, inputs, package, &mut exponents, progress)?;
        let sites: BTreeSet<SiteId> = package
            .linears
            .iter()
            .map(|target| inputs.described.inventory.linear(target.linear).site)
            .collect();
        let phase = progress.phase("solve", "linears", package.linears.len() as u64);
        for site in sites {
            for solved in pruner.solve(site)? {
                pruner.apply(solved.linear, solved.weight)?;
                reports.insert(solved.linear, solved.report);
                phase.advance(1);
            }
        }
        phase.finish();
    }
    progress.packages_done();
    Ok(reports.into_values().collect())
}

fn describe(package: &Package) -> String {
    format!("{} units, {} linears", package.units.len(), package.linears.len())
}

/// The exponent of every site that will be open, from the first shard on the dense model.
fn pilot(pruner: &Pruner, inputs: &Inputs, progress: &Progress) -> Result<BTreeMap<SiteId, i32>> {
    let sites: Vec<SiteId> =
        inputs.plan.packages.iter().flat_map(|package| package.sites.iter().copied()).collect();
    let Some(shard) = inputs.plan.shards.first().filter(|_| !sites.is_empty()) else {
        return Ok(BTreeMap::new());
    };
    if pruner.accumulates() == Accumulate::F32 {
        return Ok(sites.into_iter().map(|site| (site, 0)).collect());
    }
    let phase = progress.phase("pilot", "prompt steps", pruner.steps(shard));
    let prompts = shard.prompts.len() as u64;
    let exponents = pruner.pilot(shard, sites, inputs.plan.shards.len(), &mut || {
        phase.advance(prompts);
        Ok(())
    })?;
    phase.finish();
    Ok(exponents)
}

/// Gathers the package's Grams, again with a lower exponent where one overflowed.
fn calibrate(
    pruner: &mut Pruner,
    inputs: &Inputs,
    package: &Package,
    exponents: &mut BTreeMap<SiteId, i32>,
    progress: &Progress,
) -> Result<()> {
    while let Err(error) = gather(pruner, inputs, package, exponents, progress) {
        let EngineError::Overflow { site, name } = error else { return Err(error.into()) };
        let Some(exponent) = exponents.get_mut(&site) else {
            return Err(EngineError::Overflow { site, name }.into());
        };
        *exponent -= LOWERING;
        progress
            .note(&format!("the Gram of {name} overflowed: the package is run again at exponent {exponent}"));
    }
    Ok(())
}

fn gather(
    pruner: &mut Pruner,
    inputs: &Inputs,
    package: &Package,
    exponents: &BTreeMap<SiteId, i32>,
    progress: &Progress,
) -> obsdiff_engine::Result<()> {
    pruner.open(package, exponents)?;
    if package.sites.is_empty() {
        return Ok(());
    }
    let shards = &inputs.plan.shards;
    let phase =
        progress.phase("calibrate", "prompt steps", shards.iter().map(|shard| pruner.steps(shard)).sum());
    for shard in shards {
        let prompts = shard.prompts.len() as u64;
        pruner.calibrate(shard, &mut || {
            phase.advance(prompts);
            Ok(())
        })?;
    }
    phase.finish();
    Ok(())
}

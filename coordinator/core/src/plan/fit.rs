//! How many packages it takes for their Grams to fit.

use obsdiff_proto::{ByteSize, Inventory, JobSpec, PackagesSpec, Plan, SiteId};

use super::{PlanError, plan};
use crate::cost::{Tokens, gram_bytes};

/// How many packages `packages.memory = limit` takes: the fewest whose Grams take at most so much each; none where even a unit's alone
/// take more. The rest of the job is as `spec` has it.
///
/// # Errors
/// When the job cannot be planned at all.
pub fn packages_within(
    spec: &JobSpec,
    inventory: &Inventory,
    tokens: Tokens,
    limit: ByteSize,
) -> Result<Option<u32>, PlanError> {
    match cut(spec, inventory, tokens, None, Some(limit)) {
        Ok(plan) => Ok(Some(plan.packages.len() as u32)),
        Err(PlanError::UnitTooLarge { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The smallest `packages.count` with which the Grams of every package take at most `limit` together; none where even a unit's alone
/// take more. The rest of the job is as `spec` has it.
///
/// # Errors
/// When the job cannot be planned at all.
pub fn fewest_packages(
    spec: &JobSpec,
    inventory: &Inventory,
    tokens: Tokens,
    limit: ByteSize,
) -> Result<Option<u32>, PlanError> {
    let Some(fewest) = packages_within(spec, inventory, tokens, limit)? else { return Ok(None) };
    // A count is cut for even work without a look at memory, so it may take more than the fewest; a unit each always fits.
    for count in fewest.. {
        match cut(spec, inventory, tokens, Some(count), None) {
            Ok(plan) if largest_grams(&plan, inventory, spec) <= limit.0 => return Ok(Some(count)),
            Ok(_) => {}
            Err(PlanError::TooManyPackages { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The plan with other keys of `[packages]`.
fn cut(
    spec: &JobSpec,
    inventory: &Inventory,
    tokens: Tokens,
    count: Option<u32>,
    memory: Option<ByteSize>,
) -> Result<Plan, PlanError> {
    let packages = PackagesSpec { count, memory, ..spec.packages };
    plan(&JobSpec { packages, ..spec.clone() }, inventory, tokens)
}

fn largest_grams(plan: &Plan, inventory: &Inventory, spec: &JobSpec) -> u64 {
    let grams = plan.packages.iter().map(|package| {
        let width = |site: &SiteId| package.gram_width(inventory.site(*site));
        let bytes = package.sites.iter().map(|site| gram_bytes(width(site), spec.hessian.accumulate));
        bytes.fold(0, u64::saturating_add)
    });
    grams.max().unwrap_or(0)
}

//! The briefing: specification, inventory and plan as JSON, each with its digest.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, ListOf, Nested};
use super::field::{AtMost, out_of_range, required};
use super::runs::{shards, shards_out};
use super::{FieldProblem, LONGEST_NAME, MOST_INPUTS, MOST_SITES, Result, WireError, v1};
use crate::session::Briefing;
use crate::{Digest, InputDigest, Inventory, JobSpec, Plan};

impl Briefing {
    /// Whether a worker will read it as it is. JSON has no NaN and no infinity: it has null in their place, or nothing at all.
    ///
    /// # Errors
    /// What of it does not come back as it was.
    pub fn check(&self) -> Result<()> {
        let problem = || FieldProblem::Content("does not come back as it was written".to_owned());
        if Self::try_from(v1::Briefing::from(self))? == *self {
            Ok(())
        } else {
            Err(WireError::new("briefing", problem()))
        }
    }
}

impl From<&Briefing> for v1::Briefing {
    fn from(briefing: &Briefing) -> Self {
        Self {
            spec: Some(document(&briefing.spec)),
            inventory: Some(document(&briefing.inventory)),
            plan: Some(document(&Plan { shards: Vec::new(), ..briefing.plan.clone() })),
            shards: shards_out(&briefing.plan.shards),
            inputs: briefing.inputs.iter().map(Into::into).collect(),
            store: briefing.store.clone(),
        }
    }
}

impl TryFrom<v1::Briefing> for Briefing {
    type Error = WireError;

    fn try_from(briefing: v1::Briefing) -> Result<Self> {
        let spec: JobSpec = content("spec", briefing.spec)?;
        spec.validate().map_err(|e| WireError::new("spec", FieldProblem::Content(e.to_string())))?;
        let inventory: Inventory = content("inventory", briefing.inventory)?;
        check_inventory(&inventory).map_err(|e| WireError::new("inventory", FieldProblem::Content(e)))?;
        let plan: Plan = content("plan", briefing.plan)?;
        let plan = Plan { shards: shards("shards", &briefing.shards)?, ..plan };
        check_plan(&plan, &inventory).map_err(|e| WireError::new("plan", FieldProblem::Content(e)))?;
        let inputs = ListOf(Nested, MOST_INPUTS).read("inputs", briefing.inputs)?;
        let store = AtMost(LONGEST_NAME).read("store", briefing.store)?;
        Ok(Self { spec, inventory, plan, inputs, store })
    }
}

impl From<&InputDigest> for v1::Input {
    fn from(input: &InputDigest) -> Self {
        // A digest that is none becomes an empty one, which no reader takes.
        let digest = input.sha256.parse::<Digest>().map(|d| Bytes::copy_from_slice(&d.0));
        Self { path: input.path.clone(), sha256: digest.unwrap_or_default() }
    }
}

impl TryFrom<v1::Input> for InputDigest {
    type Error = WireError;

    fn try_from(input: v1::Input) -> Result<Self> {
        let path = AtMost(LONGEST_NAME).read("path", input.path)?;
        Ok(Self { path, sha256: digest(input.sha256)?.to_string() })
    }
}

fn digest(sha256: Bytes) -> Result<Digest> {
    let wrong = |_| out_of_range("sha256.length", sha256.len(), "32");
    sha256.as_ref().try_into().map(Digest).map_err(wrong)
}

/// Words that cannot be written become none, which no reader takes; [`Briefing::check`] finds them out.
fn document(words: &impl Serialize) -> v1::Document {
    let content = Bytes::from(serde_json::to_vec(words).unwrap_or_default());
    let sha256 = Bytes::copy_from_slice(&Digest::of(&content).0);
    v1::Document { content, sha256 }
}

fn content<T: DeserializeOwned>(field: &str, document: Option<v1::Document>) -> Result<T> {
    let v1::Document { content, sha256 } = required(field, document)?;
    let said = digest(sha256).map_err(|e| e.within(field))?;
    let found = Digest::of(&content);
    let wrong = |problem| WireError::new(field, FieldProblem::Content(problem));
    if found != said {
        return Err(wrong(format!("has the digest {found}, but {said} is stated")));
    }
    serde_json::from_slice(&content).map_err(|e| wrong(format!("cannot be read: {e}")))
}

/// Whether an inventory makes sense, and is not larger than any model's.
fn check_inventory(inventory: &Inventory) -> std::result::Result<(), String> {
    let Inventory { streams, units, sites, linears, structures, .. } = inventory;
    let lists = [streams.len(), units.len(), sites.len(), linears.len(), structures.len()];
    if lists.into_iter().any(|count| count > MOST_SITES) {
        return Err(format!("has more than {MOST_SITES} streams, units, sites, linears or structures"));
    }
    inventory.check()
}

/// Whether a plan is one for this inventory.
fn check_plan(plan: &Plan, inventory: &Inventory) -> std::result::Result<(), String> {
    if plan.packages.len() > MOST_SITES {
        return Err(format!("has more than {MOST_SITES} packages"));
    }
    let (sites, linears, units) = (inventory.sites.len(), inventory.linears.len(), inventory.units.len());
    for (at, package) in plan.packages.iter().enumerate() {
        let wrong = |what: String| Err(format!("package {at} {what}"));
        if package.id.0 as usize != at {
            return wrong(format!("is numbered {}", package.id));
        }
        if package.units.start > package.units.end || package.units.end > units {
            return wrong(format!("covers units {:?} of {units}", package.units));
        }
        if let Some(site) = package.sites.iter().find(|site| site.0 as usize >= sites) {
            return wrong(format!("names site {site} of {sites}"));
        }
        if let Some(target) = package.linears.iter().find(|t| t.linear.0 as usize >= linears) {
            return wrong(format!("names linear {} of {linears}", target.linear));
        }
    }
    let structures = inventory.structures.len();
    if let Some(budget) = plan.budget.as_ref().filter(|budget| budget.part_flops.len() != structures) {
        return Err(format!("has a budget for {} structures of {structures}", budget.part_flops.len()));
    }
    Ok(())
}

//! The plan of a job: which packages, shards and targets. A pure function of specification and inventory; the number of workers
//! has no part in it, so results do not depend on it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{LinearId, PackageId, ShardId, Site, SiteId, Target};

/// Everything that decides a job's result besides the model and the prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Packages in the order in which they are pruned; none is empty.
    pub packages: Vec<Package>,
    /// Shards of calibration prompts, in order.
    pub shards: Vec<Shard>,
    /// What heads and neurons are to save together, where no ratio sets how many go of each structure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// Arithmetic to be saved over the whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Operations of a forward call that are to go.
    pub saving: f64,
    /// Operations that one part of each of the inventory's structures takes.
    pub part_flops: Vec<f64>,
}

impl Plan {
    /// The same plan with a budget, and a survey of each package.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget: Some(budget), ..self.with_surveys() }
    }

    /// The same plan with a survey of each package on the dense model, before anything is pruned. The first package is surveyed last:
    /// its survey's sums are its own.
    #[must_use]
    pub fn with_surveys(self) -> Self {
        let surveys = self.packages.iter().rev().map(|package| Package { survey: true, ..package.clone() });
        let mut packages: Vec<Package> = surveys.chain(self.packages.iter().cloned()).collect();
        for (id, package) in (0..).zip(&mut packages) {
            package.id = PackageId(id);
        }
        Self { packages, ..self }
    }

    /// Whether sums that were gathered for the package `gathered` are those of `package`.
    pub fn serves(&self, gathered: PackageId, package: PackageId) -> bool {
        gathered == package || (gathered.0.checked_add(1) == Some(package.0) && self.keeps_sums(package))
    }

    /// Whether a package's sums are those of the one before it: that was a survey of the same sites, so the model is still the same.
    pub fn keeps_sums(&self, package: PackageId) -> bool {
        let before = package.0.checked_sub(1).and_then(|before| self.packages.get(before as usize));
        let package = self.packages.get(package.0 as usize);
        before.zip(package).is_some_and(|(before, package)| {
            let same = before.sites == package.sites && before.is_structured() == package.is_structured();
            before.survey && !package.survey && same && !package.sites.is_empty()
        })
    }
}

/// Consecutive units pruned together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// Its place in the order.
    pub id: PackageId,
    /// Indices into the inventory's units.
    pub units: Range<usize>,
    /// Sites whose Grams are gathered: those with a linear to prune.
    pub sites: Vec<SiteId>,
    /// Linears to prune, in inventory order.
    pub linears: Vec<LinearTarget>,
    /// Nothing is pruned yet: it is found out what pruning each linear, or each head and neuron, would cost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub survey: bool,
}

impl Package {
    /// Whether whole heads and neurons go.
    pub fn is_structured(&self) -> bool {
        self.linears.iter().any(|linear| matches!(linear.target, Target::Structured { .. }))
    }

    /// The width of a site's Gram: that of the site, and a feature of constant 1 behind it where heads or neurons go, whose mean the
    /// biases take over.
    pub fn gram_width(&self, site: &Site) -> usize {
        site.width + usize::from(self.is_structured())
    }
}

/// A linear and what it is to become.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearTarget {
    /// Which linear.
    pub linear: LinearId,
    /// Its target.
    pub target: Target,
}

/// A fixed list of prompt ids, run as one batch: the unit of leasing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its place in the order.
    pub id: ShardId,
    /// Ids of its prompts: their places in the job's prompt list.
    pub prompts: Range<u32>,
}

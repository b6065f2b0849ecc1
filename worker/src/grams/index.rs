//! What kept Grams are of.

use std::ops::Range;

use obsdiff_engine::pruner::SurveyedSlice;
use obsdiff_proto::message::Exponents;
use obsdiff_proto::{InputDigest, Inventory, JobSpec, Package, PackageId, Pattern, Site, SiteId};
use obsdiff_store::{GramReceipt, Prompts};
use serde::{Deserialize, Serialize};

/// What kept Grams are of: all that decided them, and which Gram is which site's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GramIndex {
    /// The release that kept them.
    pub release: String,
    /// The job that they were gathered for.
    pub spec: JobSpec,
    /// The kind of hardware that it ran on; none where kinds were mixed.
    pub hardware: Option<String>,
    /// Files of the model, by their paths in its folder.
    pub model_files: Vec<InputDigest>,
    /// Files of prompts, by the paths that the job gives.
    pub prompt_files: Vec<InputDigest>,
    /// The prompts that calibrated, and those held out.
    pub prompts: Prompts,
    /// The Gram of each site.
    pub sites: Vec<KeptSite>,
    /// What was surveyed of linears, on the dense model.
    pub survey: Vec<SurveyedSlice>,
}

/// The Gram of a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptSite {
    /// The site.
    pub site: SiteId,
    /// Its name.
    pub name: String,
    /// The package for which it was gathered, counted from 0 without surveys: the model was pruned by those before it.
    pub package: PackageId,
    /// The width of the Gram.
    pub width: usize,
    /// The exponent of its sums.
    pub exponent: i32,
    /// Where it lies.
    pub gram: GramReceipt,
    /// The same over the first prompts alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of_fewer: Vec<GramOfFewer>,
}

/// The Gram of a site over the first of the prompts alone, of the same width and exponent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GramOfFewer {
    /// So many prompts.
    pub prompts: u32,
    /// Where it lies.
    pub gram: GramReceipt,
}

impl KeptSite {
    /// Where the Gram over so many of the first prompts lies, or that over all of them.
    pub fn receipt(&self, prompts: Option<u32>) -> Option<&GramReceipt> {
        match prompts {
            None => Some(&self.gram),
            Some(prompts) => self
                .of_fewer
                .iter()
                .find(|of_fewer| of_fewer.prompts == prompts)
                .map(|of_fewer| &of_fewer.gram),
        }
    }
}

impl GramIndex {
    /// Whether all Grams are those of the dense model.
    pub fn is_dense(&self) -> bool {
        self.sites.iter().all(|site| site.package.0 == 0)
    }

    /// Whether they have a constant feature behind those of their sites, as pruning heads and neurons needs.
    pub fn is_structured(&self) -> bool {
        self.spec.sparsity.pattern == Pattern::Structured
    }

    /// The Gram of a site.
    pub fn of(&self, site: SiteId) -> Option<&KeptSite> {
        self.sites.iter().find(|kept| kept.site == site)
    }

    /// The exponents of all sites.
    pub fn exponents(&self) -> Exponents {
        self.sites.iter().map(|kept| (kept.site, kept.exponent)).collect()
    }

    /// Whether the sites of a model have the names and widths of those whose Grams are kept.
    pub fn is_of(&self, inventory: &Inventory) -> bool {
        let constant = usize::from(self.is_structured());
        let is_kept =
            |kept: &KeptSite, site: &Site| kept.name == site.name && kept.width == site.width + constant;
        self.sites
            .iter()
            .all(|kept| inventory.sites.get(kept.site.0 as usize).is_some_and(|site| is_kept(kept, site)))
    }

    /// The name of the first site of some packages whose Gram is not kept.
    pub fn lacks<'i>(&self, packages: &[Package], inventory: &'i Inventory) -> Option<&'i str> {
        let mut sites =
            packages.iter().flat_map(|package| &package.sites).map(|site| (*site, inventory.site(*site)));
        let kept = |(id, name): (SiteId, &str)| self.of(id).is_some_and(|kept| kept.name == name);
        sites.find(|(id, site)| !kept((*id, &site.name))).map(|(_, site)| site.name.as_str())
    }

    /// Whether a job of this specification would get the same result from surveying a linear with the same targets.
    pub fn surveys_like(&self, spec: &JobSpec) -> bool {
        let settings = |spec: &JobSpec| {
            let (s, h) = (&spec.sparsity, &spec.hessian);
            (s.method, s.effort, s.refinement(), h.damping, h.mask_damping, h.precision, spec.probe.clone())
        };
        // Errors of linears follow from the Grams.
        spec.calibration.gram_prompts.is_none() && settings(&self.spec) == settings(spec)
    }

    /// The ids of the prompts that a job of this specification reads, which reads these Grams and has so many prompts that calibrate and
    /// that are held out: those held out, and those on whose trajectories linears are probed, unless all of that is known.
    pub(crate) fn read_prompts(&self, spec: &JobSpec, calibrating: u32, held_out: u32) -> Vec<Range<u32>> {
        let probes = spec.sparsity.probes() && !self.answers_survey(spec);
        let probed = if probes { 0..spec.probe.prompts.min(calibrating) } else { 0..0 };
        vec![probed, calibrating..calibrating + held_out]
    }

    /// Whether the kept survey is complete for a job of this specification, so that nothing has to be probed.
    pub fn answers_survey(&self, spec: &JobSpec) -> bool {
        let whole = |spec: &JobSpec| {
            let s = &spec.sparsity;
            (s.pattern, s.rules.clone(), s.trials(), s.tried_ratios(), spec.packages.split_above)
        };
        self.surveys_like(spec) && !self.survey.is_empty() && whole(&self.spec) == whole(spec)
    }
}

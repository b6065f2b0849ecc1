//! Keeping Grams: each as its site is solved, and the index once everything is.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use obsdiff_engine::gram::Gram;
use obsdiff_engine::pruner::SurveyedSlice;
use obsdiff_proto::{InputDigest, Inventory, JobSpec, PackageId, SiteId};
use obsdiff_store::{GramReceipt, GramStore, Prompts};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{GramIndex, GramOfFewer, KeptSite, object};
use crate::device::PartStoreError;

/// A kept Gram, as recorded in the object of a part that was solved by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SolvedBy {
    pub(crate) site: SiteId,
    pub(crate) width: usize,
    pub(crate) exponent: i32,
    pub(crate) gram: GramReceipt,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) of_fewer: Vec<GramOfFewer>,
}

/// The job that Grams come from.
#[derive(Clone, Debug)]
pub struct GramOrigin {
    /// The specification.
    pub spec: JobSpec,
    /// The kind of hardware that this process works on, its device's included.
    pub hardware: String,
    /// Files of the model, by their paths in its folder.
    pub model_files: Vec<InputDigest>,
    /// Files of prompts, by the paths that the job gives.
    pub prompt_files: Vec<InputDigest>,
    /// The prompts that calibrate, and those held out.
    pub prompts: Prompts,
}

/// Keeps the Grams of a job. Its calls wait on a runtime, so they must not come from one of its own threads.
#[derive(Clone, Debug)]
pub struct GramKeeper {
    store: GramStore,
    runtime: Handle,
    origin: GramOrigin,
}

impl GramKeeper {
    /// Keeps Grams that come from `origin` in a store that is claimed for them.
    pub fn new(store: GramStore, runtime: Handle, origin: GramOrigin) -> Self {
        Self { store, runtime, origin }
    }

    /// Keeps the Gram of a site, unless it is kept already, and those over fewer prompts: `of_groups` are the Grams of groups of prompts,
    /// one after the other.
    pub(crate) fn keep(
        &self,
        site: SiteId,
        gram: &Gram,
        of_groups: &[Arc<Gram>],
    ) -> Result<SolvedBy, PartStoreError> {
        let _span = tracing::info_span!("keep Gram").entered();
        let unkept = |e: &dyn Display| PartStoreError::Damaged(format!("a Gram cannot be kept: {e}"));
        let put = |gram: &Gram| {
            let content =
                object::write(gram, self.origin.spec.output.gram_precision).map_err(|e| unkept(&e))?;
            Ok::<_, PartStoreError>(self.runtime.block_on(self.store.put_gram(content))?)
        };
        let mut of_fewer = Vec::new();
        let mut sum: Option<Gram> = None;
        for (prompts, of_group) in self.origin.spec.output.gram_prompts.iter().zip(of_groups) {
            let sum = match &mut sum {
                Some(sum) => {
                    sum.merge(of_group).map_err(|e| unkept(&e))?;
                    sum
                }
                None => sum.insert(Gram::clone(of_group)),
            };
            of_fewer.push(GramOfFewer { prompts: *prompts, gram: put(sum)? });
        }
        Ok(SolvedBy { site, width: gram.width(), exponent: gram.exponent(), gram: put(gram)?, of_fewer })
    }

    /// Writes the index. `grams` are those that the job's packages were solved by, with their packages; `survey` is the survey of its
    /// linears.
    pub(crate) fn finish(
        &self,
        inventory: &Inventory,
        grams: &BTreeMap<SiteId, (PackageId, SolvedBy)>,
        survey: &[SurveyedSlice],
    ) -> Result<(), PartStoreError> {
        let GramOrigin { spec, hardware, model_files, prompt_files, prompts } = self.origin.clone();
        let site = |(site, (package, solved_by)): (&SiteId, &(PackageId, SolvedBy))| KeptSite {
            site: *site,
            name: inventory.site(*site).name.clone(),
            package: *package,
            width: solved_by.width,
            exponent: solved_by.exponent,
            gram: solved_by.gram.clone(),
            of_fewer: solved_by.of_fewer.clone(),
        };
        let index = GramIndex {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            hardware: (!spec.workers.mixed_hardware).then_some(hardware),
            spec,
            model_files,
            prompt_files,
            prompts,
            sites: grams.iter().map(site).collect(),
            survey: survey.to_vec(),
        };
        let receipts = |solved_by: &SolvedBy| -> Vec<GramReceipt> {
            let of_fewer = solved_by.of_fewer.iter().map(|of_fewer| &of_fewer.gram);
            of_fewer.chain([&solved_by.gram]).cloned().collect()
        };
        let named: Vec<GramReceipt> = grams.values().flat_map(|(_, solved_by)| receipts(solved_by)).collect();
        Ok(self.runtime.block_on(self.store.put_index(&index, &named))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_names_the_hardware_of_the_device_unless_kinds_were_mixed() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for (mixed, named) in [(false, Some("a processor, a GPU")), (true, None)] {
            let folder = tempfile::tempdir().unwrap();
            let store = GramStore::create(folder.path().to_str().unwrap(), &[]).unwrap();
            let spec = serde_json::json!({
                "model": { "path": "pipeline" },
                "sparsity": { "pattern": "2:4" },
                "calibration": { "prompts": "prompts.txt" },
                "workers": { "mixed_hardware": mixed },
                "output": { "path": "out", "grams": "grams" },
            });
            let origin = GramOrigin {
                spec: serde_json::from_value(spec).unwrap(),
                hardware: "a processor, a GPU".to_owned(),
                model_files: Vec::new(),
                prompt_files: Vec::new(),
                prompts: Prompts::default(),
            };
            let keeper = GramKeeper::new(store.clone(), runtime.handle().clone(), origin);
            keeper.finish(&Inventory::default(), &BTreeMap::new(), &[]).unwrap();
            let index: GramIndex = runtime.block_on(store.index()).unwrap();
            assert_eq!(index.hardware.as_deref(), named);
        }
    }
}

//! Kept Grams as an engine reads them.

use std::ops::Range;
use std::sync::Arc;

use obsdiff_engine::gram::Gram;
use obsdiff_engine::pruner::SurveyedSlice;
use obsdiff_proto::message::Exponents;
use obsdiff_proto::{JobSpec, LinearId, SiteId, Target};
use obsdiff_store::GramStore;
use tokio::runtime::Handle;

use super::{GramIndex, object};
use crate::device::PartStoreError;

/// The kept Grams that a job reads in place of calibration. Calls wait on a runtime, so they must not come from one of its own threads.
#[derive(Clone, Debug)]
pub struct KeptGrams {
    store: GramStore,
    runtime: Handle,
    index: Arc<GramIndex>,
    /// The Grams are those over the first so many prompts; over all when absent.
    prompts: Option<u32>,
    /// Whether the kept survey is valid for the job, too.
    surveyed: bool,
}

impl KeptGrams {
    /// The Grams in a store, whose index was read, for a job of this specification.
    pub fn new(store: GramStore, runtime: Handle, index: Arc<GramIndex>, spec: &JobSpec) -> Self {
        let surveyed = index.surveys_like(spec);
        Self { store, runtime, index, prompts: spec.calibration.gram_prompts, surveyed }
    }

    /// The exponents of all sites.
    pub(crate) fn exponents(&self) -> Exponents {
        self.index.exponents()
    }

    /// Reads the Gram of a site into one of the same width, exponent and kind.
    ///
    /// # Errors
    /// When it is not kept, missing, damaged or of another kind, or the store fails.
    pub fn read(&self, site: SiteId, gram: &mut Gram) -> Result<(), PartStoreError> {
        let store = self.store.name();
        let kept = self.index.of(site).ok_or_else(|| {
            PartStoreError::Damaged(format!(
                "{store} holds no Gram of site {site}: run again the job that kept these Grams"
            ))
        })?;
        let receipt = kept.receipt(self.prompts).ok_or_else(|| {
            let name = &kept.name;
            PartStoreError::Damaged(format!("{store} holds no Gram of {name} over so few prompts"))
        })?;
        let content = self.runtime.block_on(self.store.gram(receipt))?;
        object::read(&content, gram).map_err(|problem| {
            PartStoreError::Damaged(format!("{store}: {} of {}: {problem}", receipt.object(), kept.name))
        })
    }

    /// The kept survey of these rows of a linear with these targets, if there is one.
    pub(crate) fn surveyed(
        &self,
        linear: LinearId,
        rows: &Range<usize>,
        targets: &[Target],
    ) -> Option<SurveyedSlice> {
        let same = |slice: &&SurveyedSlice| {
            slice.linear == linear && (slice.start..slice.end) == *rows && slice.targets == targets
        };
        self.index.survey.iter().filter(|_| self.surveyed).find(same).cloned()
    }
}

//! Which object of the store holds the conditioning of which prompts.

use std::ops::Range;

use obsdiff_proto::{ComputeType, Digest, InputDigest, JobSpec};
use obsdiff_store::{JobRecord, JobStore, Prompts, StoreError};
use serde::Serialize;
use tokio::runtime::Handle;

use super::object;
use crate::grams::GramIndex;
use crate::preparation::{PreparationError, Result};

/// The objects that hold the conditioning of a job's prompts: one for each shard, which is read as a whole, and one for the empty prompt,
/// which classifier-free guidance needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditioningObjects {
    pub(super) negative: Digest,
    /// The prompts of each other object, in order of their ids.
    pub(super) shards: Vec<(Range<u32>, Digest)>,
    /// How many prompts the job has.
    pub(super) prompts: u32,
}

/// Everything that decides what an object holds. The digest of this names the object.
#[derive(Serialize)]
struct ObjectKey<'a> {
    made_by: &'a [InputDigest],
    max_sequence_length: u32,
    dtype: ComputeType,
    /// The id of the first prompt; none for the empty prompt.
    first: Option<u32>,
    texts: &'a [&'a str],
}

/// The files that the conditioning of a job's prompts is made from: those of the model with its text encoders, or, where the job names a
/// file of encoded prompts, the job's own files.
fn made_by<'a>(
    spec: &JobSpec,
    model_files: &'a [InputDigest],
    prompt_files: &'a [InputDigest],
) -> &'a [InputDigest] {
    if spec.calibration.conditioning.is_some() { prompt_files } else { model_files }
}

impl ConditioningObjects {
    /// The objects of a job whose conditioning is made from the files `made_by`. Prompts that calibrate have the ids from 0 on; those held
    /// out follow.
    ///
    /// # Errors
    /// Never for texts; an error of the JSON writer otherwise.
    pub fn new(
        spec: &JobSpec,
        made_by: &[InputDigest],
        calibration: &[String],
        held_out: &[String],
    ) -> serde_json::Result<Self> {
        let key = |first: Option<u32>, texts: &[&str]| {
            let (max_sequence_length, dtype) = (spec.calibration.max_sequence_length, spec.model.dtype);
            let key = ObjectKey { made_by, max_sequence_length, dtype, first, texts };
            serde_json::to_vec(&key).map(|json| Digest::of(&json))
        };
        let (mut shards, mut first) = (Vec::new(), 0);
        for prompts in [calibration, held_out] {
            for shard in prompts.chunks((spec.calibration.shard_size as usize).max(1)) {
                let texts: Vec<&str> = shard.iter().map(String::as_str).collect();
                let ids = first..first + shard.len() as u32;
                first = ids.end;
                shards.push((ids.clone(), key(Some(ids.start), &texts)?));
            }
        }
        Ok(Self { negative: key(None, &[""])?, shards, prompts: first })
    }

    /// The objects that a job reads whose model and prompts come from these files: those of all prompts, or, where the job reads `kept` Grams,
    /// those of the prompts that it still needs.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn needed(
        spec: &JobSpec,
        (model_files, prompt_files): (&[InputDigest], &[InputDigest]),
        prompts: &Prompts,
        kept: Option<&GramIndex>,
    ) -> Result<Self> {
        let Prompts { calibration, held_out } = prompts;
        let objects = Self::new(spec, made_by(spec, model_files, prompt_files), calibration, held_out);
        let objects = objects
            .map_err(|e| PreparationError::Argument(format!("has prompts that cannot be named: {e}")))?;
        let counts = [calibration, held_out].map(|prompts| prompts.len() as u32);
        Ok(match kept {
            Some(kept) => objects.only(&kept.read_prompts(spec, counts[0], counts[1])),
            None => objects,
        })
    }

    /// Only those objects that hold a prompt of these ranges. Other prompts are not encoded, and cannot be read.
    #[must_use]
    pub fn only(mut self, wanted: &[Range<u32>]) -> Self {
        let meet = |a: &Range<u32>, b: &Range<u32>| a.start.max(b.start) < a.end.min(b.end);
        self.shards.retain(|(ids, _)| wanted.iter().any(|wanted| meet(ids, wanted)));
        self
    }

    /// The objects of the job that a store holds.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_job(job: &JobRecord, prompts: &Prompts) -> serde_json::Result<Self> {
        let made_by = made_by(&job.spec, &job.model_files, &job.prompt_files);
        Self::new(&job.spec, made_by, &prompts.calibration, &prompts.held_out)
    }

    /// The text tokens of a prompt, as the empty one's object says.
    ///
    /// # Errors
    /// When it is missing or damaged, or the store fails.
    pub fn text_tokens(&self, store: &JobStore, runtime: &Handle) -> Result<usize, StoreError> {
        let object = runtime.block_on(store.conditioning(self.negative))?;
        object::text_tokens(&object).map_err(|problem| store.damaged_conditioning(self.negative, &problem))
    }

    /// How many prompts there are, without the empty one.
    pub fn prompts(&self) -> u32 {
        self.prompts
    }
}

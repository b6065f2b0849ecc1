//! Which prompts' conditioning lies in which object of the store.

use std::ops::Range;

use obsdiff_proto::{ComputeType, Digest, InputDigest, JobSpec};
use serde::Serialize;

/// The objects that hold the conditioning of a job's prompts: one for each shard, by which it is read, and one for the empty prompt that
/// guidance leads away from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditioningObjects {
    pub(super) negative: Digest,
    /// The prompts of each other object, in order of their ids.
    pub(super) shards: Vec<(Range<u32>, Digest)>,
}

/// All that decides what an object holds: its digest names the object.
#[derive(Serialize)]
struct Decides<'a> {
    made_by: &'a [InputDigest],
    max_sequence_length: u32,
    dtype: ComputeType,
    /// The id of the first prompt; none of the empty one.
    first: Option<u32>,
    texts: &'a [&'a str],
}

impl ConditioningObjects {
    /// The objects of a job whose text encoders lie in the files `made_by`, among others that decide no less. Prompts that calibrate
    /// have the ids from 0 on; those held out follow.
    ///
    /// # Errors
    /// Never for texts; an error of the JSON writer otherwise.
    pub fn new(
        spec: &JobSpec,
        made_by: &[InputDigest],
        calibration: &[String],
        held_out: &[String],
    ) -> Result<Self, serde_json::Error> {
        let key = |first: Option<u32>, texts: &[&str]| {
            let (max_sequence_length, dtype) = (spec.calibration.max_sequence_length, spec.model.dtype);
            let decides = Decides { made_by, max_sequence_length, dtype, first, texts };
            serde_json::to_vec(&decides).map(|json| Digest::of(&json))
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
        Ok(Self { negative: key(None, &[""])?, shards })
    }

    /// How many prompts there are, without the empty one.
    pub fn prompts(&self) -> u32 {
        self.shards.last().map_or(0, |(ids, _)| ids.end)
    }
}

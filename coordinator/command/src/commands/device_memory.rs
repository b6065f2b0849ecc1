//! What `obsdiff plan --device-memory` says about a GPU.

use std::fmt;

use obsdiff_proto::ByteSize;
use serde::Serialize;

use crate::Result;
use crate::fit::OnDevice;

/// The predicted peak of a GPU's memory by one worker, its parts, and the fewest packages with which it holds the job.
#[derive(Serialize)]
pub(super) struct DeviceMemoryReport {
    peak_bytes: u64,
    transformer_bytes: u64,
    grams_bytes: u64,
    /// No forward call runs while a site is solved: the larger of the two counts.
    activations_bytes: u64,
    solver_bytes: u64,
    /// Before weights are loaded; absent where the prompts come encoded, or no encoder is known.
    encoding_bytes: Option<u64>,
    /// To decode a picture, once the weights are gone: not a part of the peak, because a job does without pictures where there is no room. Absent
    /// where no prompt is held out, or no decoder is known.
    decoding_bytes: Option<u64>,
    context_bytes: u64,
    /// That the job is to fit in.
    memory_bytes: u64,
    fewest_packages: Option<u32>,
}

impl DeviceMemoryReport {
    /// Of a job on a GPU with so much memory.
    ///
    /// # Errors
    /// When the job cannot be planned with another number of packages.
    pub(super) fn new(job: &OnDevice<'_>, memory: ByteSize) -> Result<Self> {
        let needs = job.needs;
        Ok(Self {
            peak_bytes: needs.peak(job.grams, 1),
            transformer_bytes: needs.model,
            grams_bytes: job.grams,
            activations_bytes: needs.activations,
            solver_bytes: needs.solver,
            encoding_bytes: Some(needs.encoding).filter(|bytes| *bytes > 0),
            decoding_bytes: Some(needs.decoding).filter(|bytes| *bytes > 0),
            context_bytes: needs.base,
            memory_bytes: memory.0,
            fewest_packages: job.fewest_packages(1, memory)?,
        })
    }
}

impl fmt::Display for DeviceMemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoding = self.encoding_bytes.map(ByteSize);
        let encoding = encoding.map(|bytes| format!("; before, {bytes} to encode the prompts"));
        let decoding = self.decoding_bytes.map(ByteSize);
        let decoding = decoding.map(|bytes| format!("; afterwards, {bytes} to decode a picture"));
        let fewest = self.fewest_packages.map_or("none".to_owned(), |packages| packages.to_string());
        writeln!(
            f,
            "Peak memory of a GPU, predicted: {}\n  ({} transformer, {} Grams of the largest package, {} activations or {} solver, {} CUDA{}{})\n\
             Fewest packages that fit a GPU of {}: {fewest}",
            ByteSize(self.peak_bytes),
            ByteSize(self.transformer_bytes),
            ByteSize(self.grams_bytes),
            ByteSize(self.activations_bytes),
            ByteSize(self.solver_bytes),
            ByteSize(self.context_bytes),
            encoding.unwrap_or_default(),
            decoding.unwrap_or_default(),
            ByteSize(self.memory_bytes),
        )
    }
}

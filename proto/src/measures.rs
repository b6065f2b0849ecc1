//! What a worker measures of its own work, for those who watch the job.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::ByteSize;

/// What a worker has done since its process started, and what that takes. The coordinator decides nothing by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Denoising steps of prompts that it ran to calibrate, pilots included: each brings one observation to every site.
    pub prompt_steps: u64,
    /// Time in forward calls, without the Grams that they sum.
    pub forward: Duration,
    /// Time in which Grams were summed.
    pub gram: Duration,
    /// Time in which linears, structures and probes were solved.
    pub solve: Duration,
    /// Bytes of sums that it gave to reductions.
    pub reduced_bytes: u64,
    /// The most bytes of memory that its process has held, where that is known.
    pub peak_memory: Option<u64>,
    /// The bytes that the plan expects at most.
    pub planned_memory: Option<u64>,
    /// The memory of its GPU when it last looked; none where it has no GPU.
    pub gpu_memory: Option<GpuMemory>,
    /// Where opening its GPU took more of that memory than plans count.
    pub opening_excess: Option<MemoryExcess>,
    /// Where a factorisation by its GPU's library worked in more of that memory than plans count.
    pub solving_excess: Option<MemoryExcess>,
    /// What the packages that it has applied have become.
    pub pruned: PrunedSoFar,
}

/// The memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GpuMemory {
    /// What is in use, by whatever process, with what is kept for buffers to come.
    #[serde(rename = "used_bytes")]
    pub used: u64,
    /// All of it.
    #[serde(rename = "total_bytes")]
    pub total: u64,
}

/// Memory of a GPU that was taken beyond what plans count, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryExcess {
    /// What was taken.
    pub taken: u64,
    /// What plans count for it.
    pub planned: u64,
}

impl fmt::Display for MemoryExcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of its memory, but plans count {}", ByteSize(self.taken), ByteSize(self.planned))
    }
}

/// What a job's finished packages have become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrunedSoFar {
    /// Linears that were pruned.
    pub linears: u64,
    /// Their weights.
    pub weights: u64,
    /// Those of them that are zero.
    pub zeros: u64,
    /// Linears whose damping had to be raised.
    pub raised: u64,
    /// Linears whose relative output error is known.
    pub measured: u64,
    /// The sum of these errors, in billionths.
    pub error_billionths: u64,
}

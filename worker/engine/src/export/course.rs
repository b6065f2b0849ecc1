//! How a job went, as its coordinator saw it: what each package took, and what went wrong on the way and was made good.

use serde::{Deserialize, Serialize};

/// How a job went in the process that coordinated it to its end. What an earlier process of the same job did is not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobCourse {
    /// The most workers that took part at one time.
    pub most_workers: usize,
    /// Workers that left before the job was done, however they left.
    pub workers_lost: usize,
    /// Groups of workers that formed to sum their Grams: one of each package, and one more after each that was given up.
    pub groups: usize,
    /// Bytes of the source's files that the process read: all of them for their digests, and the transformer's to load it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes of the output's files, but for links to the source's; absent where the coordinator does not see the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    /// What each package took, in the order in which they were pruned.
    pub packages: Vec<PackageCourse>,
    /// What went wrong, in its order. Of very many, only the first are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRecord>,
    /// Faults past these.
    #[serde(default)]
    pub further_faults: usize,
}

/// What a package took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PackageCourse {
    /// The package, counted from 0.
    pub package: u32,
    /// Seconds in which workers loaded what earlier packages had pruned.
    pub load_seconds: f64,
    /// Seconds of calibration.
    pub calibrate_seconds: f64,
    /// Seconds in which workers summed their Grams.
    pub reduce_seconds: f64,
    /// Seconds of solving, after all Grams were summed.
    pub solve_seconds: f64,
    /// Seconds in which the package was put into the job's store.
    pub commit_seconds: f64,
    /// Bytes of its Grams, of which each worker holds its own.
    pub gram_bytes: u64,
    /// Bytes of Grams that workers sent to be summed.
    pub sent_gram_bytes: u64,
    /// Bytes of its pruned weights, as they were put into the job's store.
    #[serde(default)]
    pub stored_bytes: u64,
}

/// Something that went wrong and was made good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultRecord {
    /// Seconds since the process began.
    pub seconds: f64,
    /// What happened, in words.
    pub what: String,
}

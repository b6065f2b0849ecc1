//! The parts of a report beyond the job's current state: what it asks for, how long each package took, which shards and parts are done, what
//! happened.

use std::time::Duration;

use serde::Serialize;

use super::{Phase, seconds, seconds_where_known};
use crate::{Allocation, GpuMemory, JobSpec, PackageId, Pattern, WorkerId};

/// What a job asks for, in the words of its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobRequest {
    /// `unstructured`, `structured` or N:M.
    pub pattern: String,
    /// How much goes, such as `50%`.
    pub sparsity: String,
    /// How it is chosen what goes, such as `admm, global`.
    pub method: String,
    /// Calibration prompts.
    pub prompts: u32,
    /// Denoising steps of each.
    pub steps: u32,
}

impl JobRequest {
    /// What a specification asks for.
    pub fn of(spec: &JobSpec) -> Self {
        let sparsity = &spec.sparsity;
        let percent = |share: f64| format!("{}%", (share * 1e4).round() / 1e2);
        let goes = match (sparsity.pattern, sparsity.budget, sparsity.ratio) {
            (Pattern::NToM { n, m }, ..) => percent((1.0 - sparsity.dense) * n as f64 / m as f64),
            (_, Some(budget), _) => format!("{} of the arithmetic", percent(budget)),
            (Pattern::Structured, _, Some(ratio)) => format!("{} of heads and neurons", percent(ratio)),
            (_, _, Some(ratio)) => percent(ratio),
            (_, _, None) => "as its rules say".to_owned(),
        };
        let allocation = match (sparsity.pattern, sparsity.allocation()) {
            (Pattern::Unstructured, Allocation::Global) => ", global",
            (Pattern::Unstructured, Allocation::Uniform) => ", uniform",
            _ => "",
        };
        Self {
            pattern: sparsity.pattern.to_string(),
            sparsity: goes,
            method: format!("{}{allocation}", sparsity.method().name()),
            prompts: spec.calibration.prompt_count(),
            steps: spec.calibration.steps,
        }
    }
}

/// More about a job. Times are counted from when its coordinator started.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JobDetails {
    /// How long each phase of each package took, in the order in which they began. What an earlier coordinator of the job did is not in it.
    pub timeline: Vec<PhaseTime>,
    /// Shards of the open package, in order.
    pub shard_grid: Grid,
    /// Parts of the open package, in order.
    pub part_grid: Grid,
    /// Blocks of which linears are pruned and committed, in the order of the model.
    pub blocks: Vec<BlockFigures>,
    /// The memory that connected workers have reported, by worker.
    pub memory: Vec<WorkerMemory>,
    /// Workers that left, the last ones.
    pub workers_left: Vec<WorkerLeft>,
    /// What happened, the last events.
    pub events: Vec<PastEvent>,
}

/// How long a phase of a package took. A phase that was interrupted and continued later is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseTime {
    /// The package; none for phases before the first package and after the last.
    pub package: Option<PackageId>,
    /// The phase.
    pub phase: Phase,
    /// How long it took, up to `since` where it is under way.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// When it began or continued, while it is under way.
    #[serde(rename = "since_seconds", serialize_with = "seconds_where_known")]
    pub since: Option<Duration>,
}

/// Things in order, in groups of equal size of which the last may be smaller, and how far those of each group are. The others wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Grid {
    /// Things in a group.
    pub group_size: u32,
    /// Things of each group that a worker is busy with.
    pub running: Vec<u32>,
    /// Things of each group that are done; as many groups.
    pub done: Vec<u32>,
}

impl Grid {
    /// The most groups of a grid.
    pub const MOST_GROUPS: usize = 400;

    /// A grid of `total` things, none of which is begun.
    pub fn new(total: usize) -> Self {
        let group_size = total.div_ceil(Self::MOST_GROUPS).max(1);
        let groups = total.div_ceil(group_size);
        Self {
            group_size: u32::try_from(group_size).unwrap_or(u32::MAX),
            running: vec![0; groups],
            done: vec![0; groups],
        }
    }

    /// The thing at this place is done, or somebody is busy with it.
    pub fn count(&mut self, place: usize, done: bool) {
        let counts = if done { &mut self.done } else { &mut self.running };
        if let Some(count) = counts.get_mut(place / self.group_size.max(1) as usize) {
            *count += 1;
        }
    }
}

/// What became of a block of the model so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockFigures {
    /// Its module path.
    pub name: String,
    /// Weights of its linears that are pruned and committed.
    pub weights: u64,
    /// Those of them that are zero or gone.
    pub zeros: u64,
    /// The mean relative output error of these linears, each by its weights, where it was measured on Grams.
    pub mean_error: Option<f64>,
}

/// The memory of a connected worker, in bytes, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerMemory {
    /// The worker.
    pub worker: WorkerId,
    /// The most that its process has held.
    #[serde(rename = "peak_bytes")]
    pub peak: Option<u64>,
    /// The most that the plan expects.
    #[serde(rename = "planned_bytes")]
    pub planned: Option<u64>,
    /// Of its GPU, where it has one.
    pub gpu: Option<GpuMemory>,
}

/// A worker that left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerLeft {
    /// The worker.
    pub worker: WorkerId,
    /// When.
    #[serde(rename = "at_seconds", serialize_with = "seconds")]
    pub at: Duration,
    /// Why, in words.
    pub why: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PastEvent {
    /// When.
    #[serde(rename = "at_seconds", serialize_with = "seconds")]
    pub at: Duration,
    /// Whether something went wrong.
    pub fault: bool,
    /// What, in words.
    pub words: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_a_bounded_number_of_groups_that_hold_everything() {
        for total in [0, 1, 399, 400, 401, 10_000, 1 << 20] {
            let mut grid = Grid::new(total);
            assert!(grid.done.len() <= Grid::MOST_GROUPS && grid.done.len() == grid.running.len());
            (0..total).for_each(|place| grid.count(place, place % 3 == 0));
            let counted: u32 = grid.done.iter().chain(&grid.running).sum();
            assert_eq!(counted as usize, total);
            if total <= Grid::MOST_GROUPS {
                assert_eq!(grid.group_size, 1);
            }
        }
    }

    #[test]
    fn a_request_is_shown_in_the_jobs_own_words() {
        let request = |sparsity: &str| {
            let job = format!(
                "[model]\npath = \"m\"\n[sparsity]\n{sparsity}\n[calibration]\nprompts = \"p\"\ncount = 8\nsteps = 20\n\
                 [output]\npath = \"o\"\n"
            );
            let request = JobRequest::of(&toml::from_str(&job).unwrap());
            assert_eq!((request.prompts, request.steps), (8, 20));
            [request.pattern, request.sparsity, request.method]
        };
        assert_eq!(
            request("pattern = \"unstructured\"\nratio = 0.5"),
            ["unstructured", "50%", "admm, global"]
        );
        assert_eq!(request("pattern = \"2:4\"\nmethod = \"obs\""), ["2:4", "50%", "obs"]);
        assert_eq!(
            request("pattern = \"structured\"\nbudget = 0.255"),
            ["structured", "25.5% of the arithmetic", "obs"]
        );
        assert_eq!(
            request("pattern = \"structured\"\nratio = 0.3"),
            ["structured", "30% of heads and neurons", "obs"]
        );
    }
}

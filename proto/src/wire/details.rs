//! What a report of a job says beyond where it stands.

use std::time::Duration;

use super::field::{clipped, count, each, inner, millis, words};
use super::jobs::phase;
use super::{Problem, Result, WireError, v1};
use crate::view::{
    BlockFigures, Grid, JobDetails, JobRequest, PastEvent, PhaseTime, WorkerLeft, WorkerMemory,
};
use crate::{PackageId, WorkerId};

/// More than any report has of each kind.
const MOST_ENTRIES: usize = 1 << 16;

impl From<&JobRequest> for v1::job::Request {
    fn from(request: &JobRequest) -> Self {
        Self {
            pattern: clipped(&request.pattern),
            sparsity: clipped(&request.sparsity),
            method: clipped(&request.method),
            prompts: request.prompts,
            steps: request.steps,
        }
    }
}

impl TryFrom<v1::job::Request> for JobRequest {
    type Error = WireError;

    fn try_from(request: v1::job::Request) -> Result<Self> {
        Ok(Self {
            pattern: words("pattern", request.pattern)?,
            sparsity: words("sparsity", request.sparsity)?,
            method: words("method", request.method)?,
            prompts: request.prompts,
            steps: request.steps,
        })
    }
}

impl From<&JobDetails> for v1::job::Details {
    fn from(details: &JobDetails) -> Self {
        Self {
            timeline: details.timeline.iter().map(Into::into).collect(),
            shard_grid: Some((&details.shard_grid).into()),
            part_grid: Some((&details.part_grid).into()),
            memory: details.memory.iter().map(Into::into).collect(),
            workers_left: details.workers_left.iter().map(Into::into).collect(),
            events: details.events.iter().map(Into::into).collect(),
            blocks: details.blocks.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::job::Details> for JobDetails {
    type Error = WireError;

    fn try_from(details: v1::job::Details) -> Result<Self> {
        Ok(Self {
            timeline: each("timeline", details.timeline, MOST_ENTRIES)?,
            shard_grid: inner("shard_grid", details.shard_grid)?,
            part_grid: inner("part_grid", details.part_grid)?,
            memory: each("memory", details.memory, MOST_ENTRIES)?,
            workers_left: each("workers_left", details.workers_left, MOST_ENTRIES)?,
            events: each("events", details.events, MOST_ENTRIES)?,
            blocks: each("blocks", details.blocks, MOST_ENTRIES)?,
        })
    }
}

impl From<&PhaseTime> for v1::job::PhaseTime {
    fn from(time: &PhaseTime) -> Self {
        Self {
            package: time.package.map(|package| package.0),
            phase: v1::job::Phase::from(time.phase).into(),
            took_millis: millis(time.took),
            since_millis: time.since.map(millis),
        }
    }
}

impl TryFrom<v1::job::PhaseTime> for PhaseTime {
    type Error = WireError;

    fn try_from(time: v1::job::PhaseTime) -> Result<Self> {
        Ok(Self {
            package: time.package.map(PackageId),
            phase: phase(time.phase())?,
            took: Duration::from_millis(time.took_millis),
            since: time.since_millis.map(Duration::from_millis),
        })
    }
}

impl From<&Grid> for v1::job::Grid {
    fn from(grid: &Grid) -> Self {
        Self { group_size: grid.group_size, running: grid.running.clone(), done: grid.done.clone() }
    }
}

impl TryFrom<v1::job::Grid> for Grid {
    type Error = WireError;

    fn try_from(grid: v1::job::Grid) -> Result<Self> {
        count("done", grid.done.len(), Self::MOST_GROUPS)?;
        if grid.running.len() != grid.done.len() {
            let problem = format!("has {} groups, but done has {}", grid.running.len(), grid.done.len());
            return Err(WireError::new("running", Problem::Content(problem)));
        }
        Ok(Self { group_size: grid.group_size, running: grid.running, done: grid.done })
    }
}

impl From<&BlockFigures> for v1::job::Block {
    fn from(block: &BlockFigures) -> Self {
        Self {
            name: clipped(&block.name),
            weights: block.weights,
            zeros: block.zeros,
            mean_error: block.mean_error,
        }
    }
}

impl TryFrom<v1::job::Block> for BlockFigures {
    type Error = WireError;

    fn try_from(block: v1::job::Block) -> Result<Self> {
        if let Some(error) = block.mean_error.filter(|error| !error.is_finite()) {
            return Err(WireError::new(
                "mean_error",
                Problem::Content(format!("is {error}, which is no error")),
            ));
        }
        let name = words("name", block.name)?;
        Ok(Self { name, weights: block.weights, zeros: block.zeros, mean_error: block.mean_error })
    }
}

impl From<&WorkerMemory> for v1::job::WorkerMemory {
    fn from(memory: &WorkerMemory) -> Self {
        Self {
            worker: memory.worker.0,
            peak_bytes: memory.peak,
            planned_bytes: memory.planned,
            gpu: memory.gpu.map(Into::into),
        }
    }
}

impl TryFrom<v1::job::WorkerMemory> for WorkerMemory {
    type Error = WireError;

    fn try_from(memory: v1::job::WorkerMemory) -> Result<Self> {
        Ok(Self {
            worker: WorkerId(memory.worker),
            peak: memory.peak_bytes,
            planned: memory.planned_bytes,
            gpu: memory.gpu.map(Into::into),
        })
    }
}

impl From<&WorkerLeft> for v1::job::WorkerLeft {
    fn from(left: &WorkerLeft) -> Self {
        Self { worker: left.worker.0, at_millis: millis(left.at), why: clipped(&left.why) }
    }
}

impl TryFrom<v1::job::WorkerLeft> for WorkerLeft {
    type Error = WireError;

    fn try_from(left: v1::job::WorkerLeft) -> Result<Self> {
        let at = Duration::from_millis(left.at_millis);
        Ok(Self { worker: WorkerId(left.worker), at, why: words("why", left.why)? })
    }
}

impl From<&PastEvent> for v1::job::PastEvent {
    fn from(event: &PastEvent) -> Self {
        Self { at_millis: millis(event.at), fault: event.fault, told: clipped(&event.told) }
    }
}

impl TryFrom<v1::job::PastEvent> for PastEvent {
    type Error = WireError;

    fn try_from(event: v1::job::PastEvent) -> Result<Self> {
        let at = Duration::from_millis(event.at_millis);
        Ok(Self { at, fault: event.fault, told: words("told", event.told)? })
    }
}

//! The parts of a report beyond the job's current state.

use super::codec::{ListOf, Maybe, Nested, Required, Same, Variant};
use super::field::{Millis, WORDS};
use super::{FieldProblem, Result, WireError, v1};
use crate::view::{
    BlockFigures, Grid, JobDetails, JobRequest, PastEvent, PhaseTime, WorkerLeft, WorkerMemory,
};

/// More than any report has of each kind.
const MOST_ENTRIES: usize = 1 << 16;

message! {
    JobRequest = v1::job::Request { pattern: WORDS, sparsity: WORDS, method: WORDS, prompts, steps }
}

message! {
    JobDetails = v1::job::Details {
        timeline: ListOf(Nested, MOST_ENTRIES),
        shard_grid: Required(Nested),
        part_grid: Required(Nested),
        memory: ListOf(Nested, MOST_ENTRIES),
        workers_left: ListOf(Nested, MOST_ENTRIES),
        events: ListOf(Nested, MOST_ENTRIES),
        blocks: ListOf(Nested, MOST_ENTRIES),
    }
}

message! {
    PhaseTime = v1::job::PhaseTime {
        package,
        phase: Variant;
        renamed took = took_millis: Millis, since = since_millis: Maybe(Millis)
    }
}

message! {
    Grid = v1::job::Grid, after as_many_groups {
        group_size,
        done: ListOf(Same, Grid::MOST_GROUPS),
        running: ListOf(Same, Grid::MOST_GROUPS),
    }
}

fn as_many_groups(grid: v1::job::Grid) -> Result<v1::job::Grid> {
    let (running, done) = (grid.running.len(), grid.done.len());
    if running != done {
        let problem = format!("has {running} groups, but done has {done}");
        return Err(WireError::new("running", FieldProblem::Content(problem)));
    }
    Ok(grid)
}

message! {
    BlockFigures = v1::job::Block, after finite_error { name: WORDS, weights, zeros, mean_error }
}

fn finite_error(block: v1::job::Block) -> Result<v1::job::Block> {
    match block.mean_error {
        Some(error) if !error.is_finite() => {
            Err(WireError::new("mean_error", FieldProblem::Content(format!("is {error}, which is no error"))))
        }
        _ => Ok(block),
    }
}

message! {
    WorkerMemory = v1::job::WorkerMemory {
        worker,
        gpu: Maybe(Nested);
        renamed peak = peak_bytes, planned = planned_bytes
    }
}

message! { WorkerLeft = v1::job::WorkerLeft { worker, why: WORDS; renamed at = at_millis: Millis } }

message! { PastEvent = v1::job::PastEvent { fault, words: WORDS; renamed at = at_millis: Millis } }

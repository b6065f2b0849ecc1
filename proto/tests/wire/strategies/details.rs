//! What a report says beyond where a job stands.

use obsdiff_proto::PackageId;
use obsdiff_proto::session::JobProgress;
use obsdiff_proto::view::{BlockFigures, Grid, JobDetails, PastEvent, PhaseTime, WorkerLeft, WorkerMemory};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::measures::gpu_memory;
use super::{phase, small, time, words, worker};

fn grid() -> impl Strategy<Value = Grid> {
    (small(), vec((any::<u32>(), any::<u32>()), 0..5)).prop_map(|(group_size, counts)| {
        let (running, done) = counts.into_iter().unzip();
        Grid { group_size, running, done }
    })
}

pub(super) fn progress() -> impl Strategy<Value = JobProgress> {
    (0u8..=100, option::of(time()), any::<[u32; 2]>())
        .prop_map(|(percent, left, [committed, packages])| JobProgress { percent, left, committed, packages })
}

pub(super) fn details() -> impl Strategy<Value = JobDetails> {
    let phase_time = (option::of(small()), phase(), time(), option::of(time())).prop_map(
        |(package, phase, took, since)| PhaseTime { package: package.map(PackageId), phase, took, since },
    );
    let left = (worker(), time(), words()).prop_map(|(worker, at, why)| WorkerLeft { worker, at, why });
    let event =
        (time(), any::<bool>(), words()).prop_map(|(at, fault, words)| PastEvent { at, fault, words });
    let block = (words(), any::<[u64; 2]>(), option::of(-1e9..1e9))
        .prop_map(|(name, [weights, zeros], mean_error)| BlockFigures { name, weights, zeros, mean_error });
    let memory = (worker(), option::of(any::<u64>()), option::of(any::<u64>()), option::of(gpu_memory()))
        .prop_map(|(worker, peak, planned, gpu)| WorkerMemory { worker, peak, planned, gpu });
    let workers = (vec(memory, 0..3), vec(left, 0..3));
    (vec(phase_time, 0..4), [grid(), grid()], vec(block, 0..3), workers, vec(event, 0..3)).prop_map(
        |(timeline, [shard_grid, part_grid], blocks, (memory, workers_left), events)| JobDetails {
            timeline,
            blocks,
            memory,
            shard_grid,
            part_grid,
            workers_left,
            events,
        },
    )
}

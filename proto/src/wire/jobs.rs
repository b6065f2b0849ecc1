//! The messages to the watchers of a job.

use super::codec::{Boxed, ListOf, Maybe, Nested, OrDefault, Variant};
use super::field::{Clipped, Millis, Nanos, Size, WORDS};
use super::{LONGEST_NAME, MOST_WORKERS, Result, WireError, v1};
use crate::view::{Activity, Ending, JobReport, Phase, View, WatchMessage, WorkerView};

one_of! {
    WatchMessage = v1::watch_response::News as news of v1::WatchResponse {
        Report(report) = Job(report: Boxed(Nested)),
        Event(words) = Event(words: WORDS),
    }
}

message! {
    JobReport = v1::Job {
        release: Clipped(LONGEST_NAME),
        model: Clipped(LONGEST_NAME),
        output: Clipped(LONGEST_NAME),
        request: OrDefault(Nested),
        details: OrDefault(Nested);
        renamed elapsed = elapsed_millis: Millis, left = left_millis: Maybe(Millis);
        flat view: View {
            phase: Variant,
            packages: Size,
            surveys: Size,
            committed,
            package,
            shards: Size,
            held: Size,
            parts: Size,
            solved: Size,
            epoch,
            workers: ListOf(Nested, MOST_WORKERS),
            ending: Maybe(Nested),
        }
    }
}

variants! {
    Phase = v1::job::Phase { Pilot, Calibrate, Reduce, Solve, Commit, Apply, Export, Over }
}

message! {
    WorkerView = v1::job::Worker, after with_activity {
        worker,
        applied,
        leased: Size,
        held: Size,
        draining,
        preparing,
        solving: Size,
        activity: Variant;
        renamed pace = pace_nanos: Maybe(Nanos)
    }
}

/// Finds out what a worker does, where its coordinator does not say so.
fn with_activity(mut worker: v1::job::Worker) -> Result<v1::job::Worker> {
    use v1::job::Activity::{Calibrates, Leaves, Prepares, Unspecified, Waits};
    worker.set_activity(match worker.activity() {
        Unspecified if worker.draining => Leaves,
        Unspecified if worker.preparing => Prepares,
        Unspecified if worker.leased > 0 => Calibrates,
        Unspecified => Waits,
        activity => activity,
    });
    Ok(worker)
}

variants! {
    Activity = v1::job::Activity {
        Leaves,
        Prepares,
        Encodes,
        Applies,
        Pilots,
        Calibrates,
        Restores,
        Reduces,
        Solves,
        Exports,
        Waits,
    }
}

variants_or_failure! { Ending = v1::job::Outcome as outcome { Done, Cancelled; Failed } }

impl From<&Ending> for v1::job::Ending {
    fn from(ending: &Ending) -> Self {
        let (outcome, failure): (v1::job::Outcome, String) = ending.into();
        Self { outcome: outcome.into(), failure }
    }
}

impl TryFrom<v1::job::Ending> for Ending {
    type Error = WireError;

    fn try_from(ending: v1::job::Ending) -> Result<Self> {
        (ending.outcome(), ending.failure).try_into()
    }
}

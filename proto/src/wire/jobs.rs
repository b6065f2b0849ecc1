//! The messages to the watchers of a job.

use std::time::Duration;

use super::field::{clipped, each, inner, millis, nanos, optional, required, size, text, words};
use super::{LONGEST_NAME, MOST_WORKERS, Problem, Result, WireError, v1};
use crate::view::{Activity, Ending, JobReport, Phase, View, WatchMessage, WorkerView};
use crate::{Epoch, PackageId, WorkerId};

impl From<&WatchMessage> for v1::WatchResponse {
    fn from(message: &WatchMessage) -> Self {
        use v1::watch_response::News as N;
        Self {
            news: Some(match message {
                WatchMessage::Report(report) => N::Job(report.as_ref().into()),
                WatchMessage::Event(told) => N::Event(clipped(told)),
            }),
        }
    }
}

impl TryFrom<v1::WatchResponse> for WatchMessage {
    type Error = WireError;

    fn try_from(response: v1::WatchResponse) -> Result<Self> {
        use v1::watch_response::News as N;
        Ok(match required("news", response.news)? {
            N::Job(job) => Self::Report(Box::new(inner("job", Some(job))?)),
            N::Event(told) => Self::Event(words("event", told)?),
        })
    }
}

impl From<&JobReport> for v1::Job {
    fn from(report: &JobReport) -> Self {
        let view = &report.view;
        Self {
            release: clipped(&report.release),
            model: clipped(&report.model),
            output: clipped(&report.output),
            elapsed_millis: millis(report.elapsed),
            phase: v1::job::Phase::from(view.phase).into(),
            packages: view.packages as u64,
            committed: view.committed,
            package: view.package.map(|p| p.0),
            shards: view.shards as u64,
            held: view.held as u64,
            parts: view.parts as u64,
            solved: view.solved as u64,
            epoch: view.epoch.map(|e| e.0),
            workers: view.workers.iter().map(Into::into).collect(),
            ending: view.ending.as_ref().map(Into::into),
            left_millis: report.left.map(millis),
            surveys: view.surveys as u64,
            request: Some((&report.request).into()),
            details: Some((&report.details).into()),
        }
    }
}

impl TryFrom<v1::Job> for JobReport {
    type Error = WireError;

    fn try_from(job: v1::Job) -> Result<Self> {
        let view = View {
            phase: phase(job.phase())?,
            packages: size("packages", job.packages)?,
            surveys: size("surveys", job.surveys)?,
            committed: job.committed,
            package: job.package.map(PackageId),
            shards: size("shards", job.shards)?,
            held: size("held", job.held)?,
            parts: size("parts", job.parts)?,
            solved: size("solved", job.solved)?,
            epoch: job.epoch.map(Epoch),
            workers: each("workers", job.workers, MOST_WORKERS)?,
            ending: optional("ending", job.ending)?,
        };
        Ok(Self {
            release: text("release", job.release, LONGEST_NAME)?,
            model: text("model", job.model, LONGEST_NAME)?,
            output: text("output", job.output, LONGEST_NAME)?,
            elapsed: Duration::from_millis(job.elapsed_millis),
            left: job.left_millis.map(Duration::from_millis),
            request: optional("request", job.request)?.unwrap_or_default(),
            view,
            details: optional("details", job.details)?.unwrap_or_default(),
        })
    }
}

impl From<Phase> for v1::job::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Pilot => Self::Pilot,
            Phase::Calibrate => Self::Calibrate,
            Phase::Reduce => Self::Reduce,
            Phase::Solve => Self::Solve,
            Phase::Commit => Self::Commit,
            Phase::Apply => Self::Apply,
            Phase::Export => Self::Export,
            Phase::Over => Self::Over,
        }
    }
}

pub(super) fn phase(phase: v1::job::Phase) -> Result<Phase> {
    use v1::job::Phase as P;
    Ok(match phase {
        P::Unspecified => return Err(WireError::new("phase", Problem::Missing)),
        P::Pilot => Phase::Pilot,
        P::Calibrate => Phase::Calibrate,
        P::Reduce => Phase::Reduce,
        P::Solve => Phase::Solve,
        P::Commit => Phase::Commit,
        P::Apply => Phase::Apply,
        P::Export => Phase::Export,
        P::Over => Phase::Over,
    })
}

impl From<&WorkerView> for v1::job::Worker {
    fn from(view: &WorkerView) -> Self {
        Self {
            worker: view.worker.0,
            applied: view.applied,
            leased: view.leased as u64,
            held: view.held as u64,
            pace_nanos: view.pace.map(nanos),
            draining: view.draining,
            preparing: view.preparing,
            solving: view.solving as u64,
            activity: v1::job::Activity::from(view.activity).into(),
        }
    }
}

impl TryFrom<v1::job::Worker> for WorkerView {
    type Error = WireError;

    fn try_from(worker: v1::job::Worker) -> Result<Self> {
        Ok(Self {
            activity: activity(&worker),
            solving: size("solving", worker.solving)?,
            worker: WorkerId(worker.worker),
            applied: worker.applied,
            leased: size("leased", worker.leased)?,
            held: size("held", worker.held)?,
            pace: worker.pace_nanos.map(Duration::from_nanos),
            draining: worker.draining,
            preparing: worker.preparing,
        })
    }
}

impl From<Activity> for v1::job::Activity {
    fn from(activity: Activity) -> Self {
        match activity {
            Activity::Leaves => Self::Leaves,
            Activity::Prepares => Self::Prepares,
            Activity::Encodes => Self::Encodes,
            Activity::Applies => Self::Applies,
            Activity::Pilots => Self::Pilots,
            Activity::Calibrates => Self::Calibrates,
            Activity::Reduces => Self::Reduces,
            Activity::Solves => Self::Solves,
            Activity::Exports => Self::Exports,
            Activity::Waits => Self::Waits,
        }
    }
}

/// What a worker does. A coordinator that does not say so says enough to tell.
fn activity(worker: &v1::job::Worker) -> Activity {
    use v1::job::Activity as A;
    match worker.activity() {
        A::Unspecified if worker.draining => Activity::Leaves,
        A::Unspecified if worker.preparing => Activity::Prepares,
        A::Unspecified if worker.leased > 0 => Activity::Calibrates,
        A::Unspecified => Activity::Waits,
        A::Leaves => Activity::Leaves,
        A::Prepares => Activity::Prepares,
        A::Encodes => Activity::Encodes,
        A::Applies => Activity::Applies,
        A::Pilots => Activity::Pilots,
        A::Calibrates => Activity::Calibrates,
        A::Reduces => Activity::Reduces,
        A::Solves => Activity::Solves,
        A::Exports => Activity::Exports,
        A::Waits => Activity::Waits,
    }
}

impl From<&Ending> for v1::job::Ending {
    fn from(ending: &Ending) -> Self {
        use v1::job::Outcome as O;
        let (outcome, failure) = match ending {
            Ending::Done => (O::Done, String::new()),
            Ending::Cancelled => (O::Cancelled, String::new()),
            Ending::Failed(why) => (O::Failed, clipped(why)),
        };
        Self { outcome: outcome.into(), failure }
    }
}

impl TryFrom<v1::job::Ending> for Ending {
    type Error = WireError;

    fn try_from(ending: v1::job::Ending) -> Result<Self> {
        use v1::job::Outcome as O;
        Ok(match ending.outcome() {
            O::Unspecified => return Err(WireError::new("outcome", Problem::Missing)),
            O::Done => Self::Done,
            O::Cancelled => Self::Cancelled,
            O::Failed => Self::Failed(words("failure", ending.failure)?),
        })
    }
}

//! What opens, carries and closes a session.

use std::sync::Arc;
use std::time::Duration;

use super::field::{clipped, exponents, exponents_out, inner, millis, optional, protocol, required, words};
use super::{Problem, Result, Side, WireError, v1};
use crate::WorkerId;
use crate::message::{Command, Hello, Status};
use crate::session::{CoordinatorEvent, Dismissed, JobProgress, PROTOCOL, Reason, Welcome, WorkerEvent};

impl From<&WorkerEvent> for v1::WorkerEvent {
    fn from(event: &WorkerEvent) -> Self {
        use v1::worker_event::Event as E;
        Self {
            event: Some(match event {
                WorkerEvent::Hello(hello) => E::Hello(hello.as_ref().into()),
                WorkerEvent::Status(status) => E::Status(status.as_ref().into()),
            }),
        }
    }
}

impl TryFrom<v1::WorkerEvent> for WorkerEvent {
    type Error = WireError;

    fn try_from(event: v1::WorkerEvent) -> Result<Self> {
        use v1::worker_event::Event as E;
        Ok(match required("event", event.event)? {
            E::Hello(hello) => Self::Hello(Box::new(Hello::try_from(hello).map_err(|e| e.within("hello"))?)),
            E::Status(status) => {
                Self::Status(Box::new(Status::try_from(status).map_err(|e| e.within("status"))?))
            }
        })
    }
}

impl From<&CoordinatorEvent> for v1::CoordinatorEvent {
    fn from(event: &CoordinatorEvent) -> Self {
        use v1::coordinator_event::Event as E;
        Self {
            event: Some(match event {
                CoordinatorEvent::Welcome(welcome) => E::Welcome(welcome.as_ref().into()),
                CoordinatorEvent::Command(command) => E::Command(command.into()),
                CoordinatorEvent::Dismissed(dismissed) => E::Dismissed(dismissed.into()),
                CoordinatorEvent::Heartbeat(progress) => {
                    E::Heartbeat(v1::Heartbeat { progress: progress.map(Into::into) })
                }
                CoordinatorEvent::StandBy(why) => E::StandBy(v1::StandBy { words: clipped(why) }),
            }),
        }
    }
}

impl TryFrom<v1::CoordinatorEvent> for CoordinatorEvent {
    type Error = WireError;

    fn try_from(event: v1::CoordinatorEvent) -> Result<Self> {
        use v1::coordinator_event::Event as E;
        Ok(match required("event", event.event)? {
            E::Welcome(w) => Self::Welcome(Box::new(Welcome::try_from(w).map_err(|e| e.within("welcome"))?)),
            E::Command(c) => Self::Command(Command::try_from(c).map_err(|e| e.within("command"))?),
            E::Dismissed(d) => Self::Dismissed(Dismissed::try_from(d).map_err(|e| e.within("dismissed"))?),
            E::Heartbeat(h) => {
                Self::Heartbeat(optional("progress", h.progress).map_err(|e| e.within("heartbeat"))?)
            }
            E::StandBy(s) => Self::StandBy(words("stand_by.words", s.words)?),
        })
    }
}

impl From<JobProgress> for v1::Progress {
    fn from(progress: JobProgress) -> Self {
        Self {
            percent: progress.percent.into(),
            left_millis: progress.left.map(millis),
            packages_committed: progress.committed,
            packages: progress.packages,
        }
    }
}

impl TryFrom<v1::Progress> for JobProgress {
    type Error = WireError;

    fn try_from(progress: v1::Progress) -> Result<Self> {
        let percent = u8::try_from(progress.percent).ok().filter(|percent| *percent <= 100);
        let percent = percent.ok_or_else(|| {
            let problem =
                Problem::Range { found: progress.percent.to_string(), wanted: "0 to 100".to_owned() };
            WireError::new("percent", problem)
        })?;
        Ok(Self {
            percent,
            left: progress.left_millis.map(Duration::from_millis),
            committed: progress.packages_committed,
            packages: progress.packages,
        })
    }
}

impl From<&Hello> for v1::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol: PROTOCOL,
            instance_high: (hello.instance >> 64) as u64,
            instance_low: hello.instance as u64,
            speed: hello.speed,
            hardware: clipped(&hello.hardware),
            exponents: exponents_out(&hello.exponents),
            status: Some((&hello.status).into()),
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = WireError;

    fn try_from(hello: v1::Hello) -> Result<Self> {
        protocol(Side::Worker, hello.protocol)?;
        Ok(Self {
            instance: u128::from(hello.instance_high) << 64 | u128::from(hello.instance_low),
            speed: hello.speed,
            hardware: words("hardware", hello.hardware)?,
            exponents: exponents("exponents", hello.exponents)?,
            status: inner("status", hello.status)?,
        })
    }
}

impl From<&Welcome> for v1::Welcome {
    fn from(welcome: &Welcome) -> Self {
        Self {
            protocol: PROTOCOL,
            worker: welcome.worker.0,
            heartbeat_millis: u32::try_from(millis(welcome.heartbeat)).unwrap_or(u32::MAX).max(1),
            briefing: Some(welcome.briefing.as_ref().into()),
        }
    }
}

impl TryFrom<v1::Welcome> for Welcome {
    type Error = WireError;

    fn try_from(welcome: v1::Welcome) -> Result<Self> {
        protocol(Side::Coordinator, welcome.protocol)?;
        if welcome.heartbeat_millis == 0 {
            let problem = Problem::Range { found: "0".to_owned(), wanted: "at least 1".to_owned() };
            return Err(WireError::new("heartbeat_millis", problem));
        }
        Ok(Self {
            worker: WorkerId(welcome.worker),
            heartbeat: Duration::from_millis(welcome.heartbeat_millis.into()),
            briefing: Arc::new(inner("briefing", welcome.briefing)?),
        })
    }
}

impl From<&Dismissed> for v1::Dismissed {
    fn from(dismissed: &Dismissed) -> Self {
        use v1::dismissed::Reason as R;
        let reason = match dismissed.reason {
            Reason::Silent => R::Silent,
            Reason::Stalled => R::Stalled,
            Reason::Replaced => R::Replaced,
            Reason::Drained => R::Drained,
            Reason::Refused => R::Refused,
            Reason::Useless => R::Useless,
            Reason::Done => R::Done,
            Reason::Cancelled => R::Cancelled,
            Reason::Failed => R::Failed,
            Reason::Protocol => R::Protocol,
            Reason::Restarting => R::Restarting,
            Reason::OtherHardware => R::OtherHardware,
        };
        Self { reason: reason.into(), words: clipped(&dismissed.words) }
    }
}

impl TryFrom<v1::Dismissed> for Dismissed {
    type Error = WireError;

    fn try_from(dismissed: v1::Dismissed) -> Result<Self> {
        use v1::dismissed::Reason as R;
        let reason = match dismissed.reason() {
            R::Unspecified => return Err(WireError::new("reason", Problem::Missing)),
            R::Silent => Reason::Silent,
            R::Stalled => Reason::Stalled,
            R::Replaced => Reason::Replaced,
            R::Drained => Reason::Drained,
            R::Refused => Reason::Refused,
            R::Useless => Reason::Useless,
            R::Done => Reason::Done,
            R::Cancelled => Reason::Cancelled,
            R::Failed => Reason::Failed,
            R::Protocol => Reason::Protocol,
            R::Restarting => Reason::Restarting,
            R::OtherHardware => Reason::OtherHardware,
        };
        Ok(Self { reason, words: words("words", dismissed.words)? })
    }
}

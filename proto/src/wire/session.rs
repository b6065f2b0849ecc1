//! What opens, carries and closes a session.

use std::time::Duration;

use super::codec::{Boxed, Codec, Maybe, Nested, Required, Shared, Variant};
use super::field::{BySite, Millis, WORDS, out_of_range};
use super::{Result, Side, WireError, v1};
use crate::WorkerId;
use crate::message::Hello;
use crate::session::{CoordinatorEvent, Dismissed, JobProgress, PROTOCOL, Reason, Welcome, WorkerEvent};

one_of! {
    WorkerEvent = v1::worker_event::Event as event of v1::WorkerEvent {
        Hello(hello) = Hello(hello: Boxed(Nested)),
        Status(status) = Status(status: Boxed(Nested)),
    }
}

one_of! {
    CoordinatorEvent = v1::coordinator_event::Event as event of v1::CoordinatorEvent {
        StandBy(words) = StandBy: v1::StandBy { words: WORDS },
        Welcome(welcome) = Welcome(welcome: Boxed(Nested)),
        Command(command) = Command(command: Nested),
        Dismissed(dismissed) = Dismissed(dismissed: Nested),
        Heartbeat(progress) = Heartbeat: v1::Heartbeat { progress: Maybe(Nested) },
    }
}

message! { Dismissed = v1::Dismissed { reason: Variant, words: WORDS } }

variants! {
    Reason = v1::dismissed::Reason {
        Silent,
        Stalled,
        Replaced,
        Drained,
        Refused,
        Useless,
        Done,
        Cancelled,
        Failed,
        Protocol,
        Restarting,
        OtherHardware,
    }
}

message! {
    JobProgress = v1::Progress {
        percent: Percent,
        packages;
        renamed left = left_millis: Maybe(Millis), committed = packages_committed
    }
}

struct Percent;

impl Codec<u8, u32> for Percent {
    fn write(&self, value: &u8) -> u32 {
        (*value).into()
    }

    fn read(&self, field: &str, wire: u32) -> Result<u8> {
        let percent = u8::try_from(wire).ok().filter(|percent| *percent <= 100);
        percent.ok_or_else(|| out_of_range(field, wire, "0 to 100"))
    }
}

impl From<&Hello> for v1::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol: PROTOCOL,
            instance_high: (hello.instance >> 64) as u64,
            instance_low: hello.instance as u64,
            speed: hello.speed,
            hardware: WORDS.write(&hello.hardware),
            exponents: BySite.write(&hello.exponents),
            status: Some((&hello.status).into()),
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = WireError;

    fn try_from(hello: v1::Hello) -> Result<Self> {
        check_protocol(Side::Worker, hello.protocol)?;
        Ok(Self {
            instance: u128::from(hello.instance_high) << 64 | u128::from(hello.instance_low),
            speed: hello.speed,
            hardware: WORDS.read("hardware", hello.hardware)?,
            exponents: BySite.read("exponents", hello.exponents)?,
            status: Required(Nested).read("status", hello.status)?,
        })
    }
}

impl From<&Welcome> for v1::Welcome {
    fn from(welcome: &Welcome) -> Self {
        Self {
            protocol: PROTOCOL,
            worker: welcome.worker.0,
            heartbeat_millis: u32::try_from(welcome.heartbeat.as_millis()).unwrap_or(u32::MAX).max(1),
            briefing: Some(welcome.briefing.as_ref().into()),
        }
    }
}

impl TryFrom<v1::Welcome> for Welcome {
    type Error = WireError;

    fn try_from(welcome: v1::Welcome) -> Result<Self> {
        check_protocol(Side::Coordinator, welcome.protocol)?;
        if welcome.heartbeat_millis == 0 {
            return Err(out_of_range("heartbeat_millis", 0, "at least 1"));
        }
        Ok(Self {
            worker: WorkerId(welcome.worker),
            heartbeat: Duration::from_millis(welcome.heartbeat_millis.into()),
            briefing: Required(Shared(Nested)).read("briefing", welcome.briefing)?,
        })
    }
}

/// Refuses another protocol before anything else of a message is looked at.
fn check_protocol(them: Side, theirs: u32) -> Result<()> {
    if theirs == PROTOCOL { Ok(()) } else { Err(WireError::Protocol { them, theirs }) }
}

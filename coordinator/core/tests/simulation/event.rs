//! What happens in a run.

use std::sync::Arc;

use obsdiff_core::{Command, Event, Input, Manifest, Status};
use obsdiff_proto::{Epoch, WorkerId};

use crate::faults::SimulatedFault;

/// What will happen.
#[derive(Clone, Debug)]
pub(crate) enum SimulatedEvent {
    Fault(SimulatedFault),
    Tick {
        life: u32,
    },
    /// A message reaches the coordinator.
    Report {
        worker: WorkerId,
        status: Box<Status>,
    },
    /// The coordinator's end of a session notices that it broke.
    Lost {
        worker: WorkerId,
    },
    /// A message reaches a worker.
    Command {
        worker: WorkerId,
        command: Command,
    },
    /// The worker's end of a session notices that it broke; `leave` when it was dismissed.
    Hangup {
        worker: WorkerId,
        leave: bool,
    },
    /// A process starts.
    Start {
        process: usize,
    },
    /// A process is ready for orders.
    Prepared {
        process: usize,
        lives: u64,
    },
    /// A process tries to open a session.
    Dial {
        process: usize,
        lives: u64,
    },
    /// A process says what it knows.
    Beat {
        process: usize,
        worker: WorkerId,
    },
    /// A process looks at its work.
    Work {
        process: usize,
        lives: u64,
    },
    /// A draining process runs out of time.
    Expire {
        process: usize,
        lives: u64,
    },
    /// Every member of a group is connected.
    Formed {
        epoch: Epoch,
    },
    /// A group's next reduction is complete.
    Reduced {
        epoch: Epoch,
    },
    /// A member notices that its group is broken.
    Broken {
        epoch: Epoch,
        process: usize,
        lives: u64,
    },
    /// A group had its time to form.
    FormBy {
        epoch: Epoch,
    },
    /// A put reaches the store.
    Put {
        life: u32,
        manifest: Arc<Manifest>,
    },
    /// The store's answer reaches the coordinator.
    Stored {
        life: u32,
        input: Input,
    },
    /// The coordinator starts again.
    Revive,
}

/// A word for the statistics.
pub(crate) fn kind(event: &Event) -> &'static str {
    match event {
        Event::Joined { kept: 0, .. } => "joined",
        Event::Joined { .. } => "joined with shards that count",
        Event::Preparing { .. } => "joined to prepare",
        Event::Encodes { .. } => "encodes",
        Event::Ready { .. } => "ready",
        Event::StandingBy { .. } => "stands by",
        Event::Left { lost, .. } if lost.is_empty() => "left",
        Event::Left { .. } => "left and lost shards",
        Event::Discarded { .. } => "sums discarded",
        Event::Saved { .. } => "sums saved",
        Event::Restores { .. } => "sums restored",
        Event::Unrestored { .. } => "saved sums given up",
        Event::Grouped { .. } => "group formed",
        Event::Formed { .. } => "group reduces",
        Event::Arrived { .. } => "Grams arrived",
        Event::Broken { .. } => "group broken",
        Event::Lowered { .. } => "exponent lowered",
        Event::Retried { .. } => "tried again",
        Event::Committed { .. } => "committed",
    }
}

//! What goes wrong in a run: a bounded number of faults, drawn from the seed, each of which ends.

use std::time::Duration;

use obsdiff_tests::Prng;

use crate::hosts::COORDINATOR;

/// Something that goes wrong, and by when it is over.
#[derive(Clone, Debug)]
pub(crate) enum InjectedFault {
    /// The host's process is killed; another starts after a while.
    Crash { host: String, again: u64 },
    /// Nothing gets through between two hosts, without any notice.
    Partition { a: String, b: String, length: u64 },
    /// Nothing gets through from one host to another.
    OneWay { from: String, to: String, length: u64 },
    /// Nothing gets through to a host, or from it.
    Isolate { host: String, length: u64 },
    /// Messages between two hosts are kept back, and all come at the end.
    Hold { a: String, b: String, length: u64 },
    /// Messages between two hosts take long.
    Slow { a: String, b: String, latency: u64, length: u64 },
    /// Some messages between two hosts are lost: their connections hang.
    Loss { a: String, b: String, length: u64 },
    /// A worker's connections break, and both ends hear of it.
    Disconnect { worker: usize },
    /// A worker is asked to leave (SIGTERM); another process takes its place.
    Drain { worker: usize },
    /// The store fails.
    StoreDown { length: u64 },
}

/// Kinds of faults.
const KINDS: u64 = 14;

impl InjectedFault {
    /// The faults of a run and when they strike, in milliseconds.
    pub(crate) fn draw(rng: &mut Prng, workers: usize) -> Vec<(u64, Self)> {
        let count = if rng.once_in(12) { 0 } else { rng.within(1..8) };
        (0..count).map(|_| (rng.within(0..15_000), Self::one(rng, workers))).collect()
    }

    fn one(rng: &mut Prng, workers: usize) -> Self {
        let worker = rng.within(0..workers as u64) as usize;
        let (a, b) = Self::link(rng, worker, workers);
        let length = rng.within(100..14_000);
        match rng.within(0..KINDS) {
            0..3 => Self::Crash { host: name(worker), again: rng.within(10..8000) },
            3..5 => Self::Crash { host: COORDINATOR.to_owned(), again: rng.within(10..9000) },
            5 => Self::Partition { a, b, length },
            6 => Self::OneWay { from: b, to: a, length },
            7 => Self::Isolate { host: name(worker), length },
            8 => Self::Hold { a, b, length },
            9 => Self::Slow { a, b, latency: rng.within(100..2500), length },
            10 => Self::Loss { a, b, length },
            11 => Self::Disconnect { worker },
            12 => Self::Drain { worker },
            _ => Self::StoreDown { length: rng.within(100..8000) },
        }
    }

    /// A worker and the coordinator or another worker, in either order.
    fn link(rng: &mut Prng, worker: usize, workers: usize) -> (String, String) {
        let other = match rng.within(0..workers as u64) as usize {
            other if other == worker => COORDINATOR.to_owned(),
            other => name(other),
        };
        if rng.once_in(2) { (name(worker), other) } else { (other, name(worker)) }
    }

    /// What it is, for the statistics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Crash { host, .. } if host == COORDINATOR => "coordinator crash",
            Self::Crash { .. } => "worker crash",
            Self::Partition { .. } => "partition",
            Self::OneWay { .. } => "one-way partition",
            Self::Isolate { .. } => "isolation",
            Self::Hold { .. } => "hold",
            Self::Slow { .. } => "delay",
            Self::Loss { .. } => "loss",
            Self::Disconnect { .. } => "disconnect",
            Self::Drain { .. } => "drain",
            Self::StoreDown { .. } => "store failure",
        }
    }

    /// How long it lasts.
    pub(crate) fn length(&self) -> Duration {
        Duration::from_millis(match self {
            Self::Crash { again, .. } => *again,
            Self::Partition { length, .. }
            | Self::OneWay { length, .. }
            | Self::Isolate { length, .. }
            | Self::Hold { length, .. }
            | Self::Slow { length, .. }
            | Self::Loss { length, .. }
            | Self::StoreDown { length } => *length,
            Self::Disconnect { .. } | Self::Drain { .. } => 0,
        })
    }
}

/// A worker's host, counted from 0.
pub(crate) fn name(worker: usize) -> String {
    format!("worker-{}", worker + 1)
}

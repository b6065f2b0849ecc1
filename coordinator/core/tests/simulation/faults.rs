//! What goes wrong in a run: a bounded number of faults, drawn from the seed.

use obsdiff_core::{Failure, Outcome};

use obsdiff_tests::Prng;

use crate::event::SimulatedEvent;
use crate::worker::SimulatedProcess;
use crate::world::SimulatedWorld;

/// Something that goes wrong at a point in time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SimulatedFault {
    /// kill -9; back after a while, or never.
    Kill { process: usize, again: Option<u64> },
    /// kill -9 of everything: coordinator and workers.
    KillAll { again: u64 },
    /// kill -9 of the coordinator.
    KillCoordinator { again: u64 },
    /// SIGSTOP, then SIGCONT.
    Pause { process: usize, length: u64 },
    /// Nothing gets through to a worker or from it, and neither side notices.
    Cut { process: usize, length: u64 },
    /// A connection breaks.
    Disconnect { process: usize },
    /// SIGTERM; another process takes its place after a while.
    Drain { process: usize, again: u64 },
    /// The device hangs for good.
    Hang { process: usize },
    /// The store fails.
    StoreDown { length: u64 },
}

/// How unreliable messages are.
pub(crate) struct Unreliability {
    pub(crate) drop_percent: u64,
    /// Messages that may still be dropped.
    pub(crate) drops: u32,
    pub(crate) repeat_percent: u64,
    pub(crate) late_percent: u64,
    /// Orders that may still fail for no reason.
    pub(crate) mishaps: u32,
    /// The store fails for good.
    pub(crate) store_lost: bool,
    faults: u64,
}

impl Unreliability {
    pub(crate) fn draw(rng: &mut Prng) -> Self {
        let of = |rng: &mut Prng, most: u64| if rng.once_in(2) { 0 } else { rng.within(0..most) };
        Self {
            drop_percent: of(rng, 30),
            drops: 60,
            repeat_percent: of(rng, 30),
            late_percent: of(rng, 20),
            mishaps: of(rng, 3) as u32,
            store_lost: rng.once_in(80),
            faults: if rng.once_in(8) { 0 } else { rng.within(1..9) },
        }
    }
}

impl SimulatedFault {
    /// The faults of a run, and when they strike.
    pub(crate) fn draw(world: &mut SimulatedWorld) -> Vec<(u64, Self)> {
        let mut faults: Vec<_> =
            (0..world.knobs.faults).map(|_| (world.rng.within(0..40_000), Self::one(world))).collect();
        if world.knobs.store_lost {
            faults.push((world.rng.within(0..20_000), Self::StoreDown { length: u64::MAX / 4 }));
        }
        faults
    }

    fn one(world: &mut SimulatedWorld) -> Self {
        let count = world.processes.len() as u64;
        let rng = &mut world.rng;
        let process = rng.within(0..count) as usize;
        match rng.within(0..16) {
            0..4 => Self::Kill {
                process,
                again: (process == 0 || rng.once_in(2)).then(|| rng.within(10..10_000)),
            },
            4 => Self::KillAll { again: rng.within(10..10_000) },
            5..8 => Self::KillCoordinator { again: rng.within(10..12_000) },
            8..10 => Self::Pause { process, length: rng.within(100..20_000) },
            10..12 => Self::Cut { process, length: rng.within(100..20_000) },
            12 => Self::Disconnect { process },
            13 => Self::Drain { process, again: rng.within(10..10_000) },
            14 => Self::Hang { process },
            _ => Self::StoreDown { length: rng.within(100..8000) },
        }
    }
}

impl SimulatedWorld {
    /// A fault strikes.
    pub(crate) fn strike(&mut self, fault: SimulatedFault) {
        match fault {
            SimulatedFault::Kill { process, again } => self.kill(process, again),
            SimulatedFault::KillAll { again } => {
                for process in 0..self.processes.len() {
                    self.kill(process, Some(again + process as u64));
                }
                self.strike(SimulatedFault::KillCoordinator { again });
            }
            SimulatedFault::KillCoordinator { again } => {
                self.kill_coordinator();
                self.after(again, SimulatedEvent::Revive);
            }
            SimulatedFault::Pause { process, length } => {
                if self.processes[process].life.is_some() {
                    self.processes[process].paused_until = self.now + length;
                }
            }
            SimulatedFault::Cut { process, length } => self.cut(process, length),
            SimulatedFault::Disconnect { process } => {
                let session = self.processes[process].life.as_ref().and_then(|life| life.session);
                if let Some(worker) = session {
                    // Either end may be the first to notice.
                    let (one, other) = (self.rng.within(1..1800), self.rng.within(1..1800));
                    self.after(one, SimulatedEvent::Lost { worker });
                    self.after(other, SimulatedEvent::Hangup { worker, leave: false });
                }
            }
            SimulatedFault::Drain { process, again } => {
                let lives = self.processes[process].lives;
                let saves = self.rng.once_in(2);
                if let Some(life) = &mut self.processes[process].life {
                    life.status.draining = true;
                    life.status.saving = saves && life.running.is_some();
                    self.report(process);
                    self.after(10_000, SimulatedEvent::Expire { process, lives });
                    self.after(10_000 + again, SimulatedEvent::Start { process });
                }
            }
            SimulatedFault::Hang { process } => {
                if let Some(life) = self.processes[process].life.as_mut() {
                    life.stuck = true;
                }
            }
            SimulatedFault::StoreDown { length } => {
                self.store_down_until = self.store_down_until.max(self.now.saturating_add(length));
            }
        }
    }

    /// The worker gives up its session when it has received nothing for as long as the coordinator would wait.
    fn cut(&mut self, process: usize, length: u64) {
        self.processes[process].cut_until = self.now + length;
        let session = self.processes[process].life.as_ref().and_then(|life| life.session);
        if let Some(worker) = session.filter(|_| length > 8000) {
            self.after(8000, SimulatedEvent::Hangup { worker, leave: false });
        }
    }

    /// Whether nobody is left who is of the job's kind.
    fn all_stand_by(&self) -> bool {
        let of_kind = |process: &SimulatedProcess| self.kind.as_deref() == Some(process.hardware);
        !self.processes.iter().any(|process| process.life.is_some() && of_kind(process))
    }

    /// Whether this end is one that what happened can justify.
    pub(crate) fn justified(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Done => self.store.len() == self.task.plan.packages.len(),
            Outcome::Failed(Failure::Fatal { .. }) => self.task.singular.is_some(),
            Outcome::Failed(Failure::Alone { .. }) if self.all_stand_by() => true,
            Outcome::Failed(Failure::Store { .. } | Failure::TooOften { .. } | Failure::Alone { .. }) => {
                self.store_down_until > self.now || self.knobs.store_lost
            }
            _ => false,
        }
    }
}

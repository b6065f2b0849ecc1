//! Processes as the world sees them, the coordinator's too: they start, open sessions, report, hang up and die.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_core::{Command, Core, Encoding, Input};
use obsdiff_proto::{Epoch, WorkerId};

use crate::event::SimulatedEvent;
use crate::worker::{CommandEffect, RunningProcess};
use crate::world::SimulatedWorld;

impl SimulatedWorld {
    /// The coordinator dies: every session with it.
    pub(crate) fn kill_coordinator(&mut self) {
        self.core = None;
        let workers: Vec<_> = self.sessions.keys().copied().collect();
        self.sessions.values_mut().for_each(|session| session.1 = false);
        for worker in workers {
            let wait = self.rng.within(1..1500);
            self.after(wait, SimulatedEvent::Hangup { worker, leave: false });
        }
    }

    pub(crate) fn revive(&mut self) {
        if self.core.is_some() {
            return;
        }
        self.life += 1;
        // What was saved may have been lost: the last manifest has it too.
        let saved = self.saved.take().filter(|_| !self.rng.once_in(8));
        self.saved = saved.or_else(|| self.store.last().map(|m| m.exponents.clone()));
        let kept = self.kept_hardware.take().filter(|_| !self.rng.once_in(8));
        self.kept_hardware = kept.or_else(|| self.store.last().and_then(|m| m.hardware.clone()));
        let mut job =
            self.task.job(self.store.len(), self.saved.clone(), self.kept_hardware.clone(), self.life);
        job.saved = self.stored_sums();
        self.core = Some(Core::new(job, Duration::from_millis(self.now)).unwrap());
        self.after(0, SimulatedEvent::Tick { life: self.life });
    }

    /// The life behind a session, as long as it has no other.
    pub(crate) fn life_of(&mut self, worker: WorkerId) -> Option<&mut RunningProcess> {
        let process = self.sessions.get(&worker)?.0;
        self.processes[process].life.as_mut().filter(|life| life.session == Some(worker))
    }

    /// Sends a process's status over its session.
    pub(crate) fn report(&mut self, process: usize) {
        let Some(life) = &mut self.processes[process].life else { return };
        life.status.progress += u64::from(life.status.preparing && !life.stuck);
        let (Some(worker), status) = (life.session, life.status.clone()) else { return };
        for wait in self.travel(process) {
            self.after(wait, SimulatedEvent::Report { worker, status: Box::new(status.clone()) });
        }
    }

    pub(crate) fn command_arrives(&mut self, worker: WorkerId, command: Command) {
        let Some((process, _)) = self.sessions.get(&worker).copied() else { return };
        let group = if let Command::Form { group, .. } = &command { Some(group.clone()) } else { None };
        let Some(life) = self.life_of(worker) else { return };
        let taken = life.take(command);
        match taken {
            CommandEffect::Enter(epoch) => self.enter(process, epoch, group),
            CommandEffect::Leave(epoch) => self.leave_groups(process, epoch, false),
            CommandEffect::Queued | CommandEffect::Answered => {}
        }
        if taken != CommandEffect::Queued {
            self.report(process);
        }
        let lives = self.processes[process].lives;
        self.after(0, SimulatedEvent::Work { process, lives });
    }

    pub(crate) fn start(&mut self, process: usize) {
        if self.processes[process].life.is_some() {
            return;
        }
        let instance = (process as u128) << 64 | u128::from(self.rng.next());
        let it = &mut self.processes[process];
        it.lives += 1;
        it.life = Some(RunningProcess::new(instance));
        let lives = it.lives;
        // Now and then for longer than a worker may be without progress.
        let prepares = if self.rng.once_in(40) { 90_000 } else { self.rng.within(0..4000) };
        self.after(0, SimulatedEvent::Dial { process, lives });
        self.after(prepares, SimulatedEvent::Prepared { process, lives });
    }

    pub(crate) fn prepared(&mut self, process: usize, lives: u64) {
        let it = &mut self.processes[process];
        let Some(life) = it.life.as_mut().filter(|life| it.lives == lives && !life.stuck) else { return };
        match life.status.encoding {
            // It waits until it is asked to encode.
            Encoding::Unready | Encoding::Ready => life.status.encoding = Encoding::Ready,
            Encoding::Done => {
                assert!(self.encoded, "ready before the prompts were encoded");
                life.status.preparing = false;
            }
        }
        self.report(process);
    }

    pub(crate) fn dial(&mut self, process: usize, lives: u64) {
        let it = &mut self.processes[process];
        let Some(life) = it.life.as_mut().filter(|life| life.session.is_none() && it.lives == lives) else {
            return;
        };
        if self.core.is_none() || it.cut_until > self.now || it.stands_by_until > self.now {
            let wait = self.rng.within(200..1500);
            return self.after(wait, SimulatedEvent::Dial { process, lives });
        }
        let worker = WorkerId((u64::from(self.life) << 32) + self.next_worker);
        self.next_worker += 1;
        let hello = Box::new(life.hello(it.speed, it.hardware));
        life.session = Some(worker);
        self.sessions.insert(worker, (process, true));
        self.heard.insert(worker, self.now);
        self.step(Input::Joined { worker, hello });
        self.after(2000, SimulatedEvent::Beat { process, worker });
    }

    pub(crate) fn hang_up(&mut self, worker: WorkerId, leave: bool) {
        let Some((process, _)) = self.sessions.get(&worker).copied() else { return };
        let it = &mut self.processes[process];
        let Some(life) = it.life.as_mut().filter(|life| life.session == Some(worker)) else { return };
        life.session = None;
        let lives = it.lives;
        if leave || life.stuck {
            let again = self.rng.within(500..5000);
            return self.kill(process, Some(again));
        }
        self.after(1, SimulatedEvent::Dial { process, lives });
    }

    /// A process dies with all it holds, and starts again after a while.
    pub(crate) fn kill(&mut self, process: usize, again: Option<u64>) {
        self.leave_groups(process, Epoch(u64::MAX), true);
        let Some(life) = self.processes[process].life.take() else { return };
        self.processes[process].paused_until = 0;
        if let Some(worker) = life.session {
            let wait = self.rng.within(1..1800);
            self.after(wait, SimulatedEvent::Lost { worker });
        }
        let again = again.or(self.survivors().is_empty().then_some(3000));
        if let Some(wait) = again {
            self.after(wait, SimulatedEvent::Start { process });
        }
    }

    /// Processes that run, or will.
    fn survivors(&self) -> BTreeSet<usize> {
        (0..self.processes.len()).filter(|p| self.processes[*p].life.is_some()).collect()
    }
}

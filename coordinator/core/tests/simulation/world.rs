//! The world around the core: a clock, a network, processes and a store, all of them at the mercy of a seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{Action, Core, Dismissal, Exponents, GroupStage, Input, Manifest, Outcome, Status};
use obsdiff_proto::{Epoch, WorkerId};
use obsdiff_tests::Prng;

use crate::collective::SimulatedCollective;
use crate::event::{SimulatedEvent, kind};
use crate::faults::{SimulatedFault, Unreliability};
use crate::saving::StoredCounts;
use crate::task::{KINDS, Task};
use crate::worker::{NOT_THE_SUMS, SimulatedProcess};

/// A run.
pub(crate) struct SimulatedWorld {
    pub(crate) task: Task,
    pub(crate) rng: Prng,
    pub(crate) knobs: Unreliability,
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), SimulatedEvent>,
    sequence: u64,
    pub(crate) core: Option<Core>,
    pub(crate) life: u32,
    pub(crate) next_worker: u64,
    /// Sessions by worker: its process, and whether the coordinator's end is open.
    pub(crate) sessions: BTreeMap<WorkerId, (usize, bool)>,
    /// When the coordinator last heard from each worker.
    pub(crate) heard: BTreeMap<WorkerId, u64>,
    pub(crate) processes: Vec<SimulatedProcess>,
    pub(crate) collectives: BTreeMap<Epoch, SimulatedCollective>,
    pub(crate) store: Vec<Arc<Manifest>>,
    pub(crate) store_down_until: u64,
    /// A process has seen to the conditioning of the prompts.
    pub(crate) encoded: bool,
    pub(crate) saved: Option<Exponents>,
    /// Sums that processes saved, by their receipts.
    pub(crate) sums: BTreeMap<Arc<str>, StoredCounts>,
    /// What was saved of the job's kind of hardware.
    pub(crate) kept_hardware: Option<String>,
    /// The kind that the job has.
    pub(crate) kind: Option<String>,
    /// The manifests of an undisturbed run on each kind of hardware.
    pub(crate) expected: [Vec<Manifest>; 2],
    pub(crate) outcome: Option<Outcome>,
    pub(crate) steps: u64,
    /// How often the core emitted each kind of event.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// A line for each step, where one is kept.
    pub(crate) log: Option<String>,
}

impl SimulatedWorld {
    pub(crate) fn new(seed: u64, keep_log: bool) -> Self {
        let mut rng = Prng::new(seed);
        let task = Task::draw(&mut rng);
        let knobs = Unreliability::draw(&mut rng);
        let count = rng.within(1..6);
        let mut process = |_| {
            let (speed, pace) = (rng.within(1..200), rng.within(100..4000));
            SimulatedProcess::new(speed, pace, KINDS[usize::from(rng.once_in(6))])
        };
        let processes = (0..count).map(&mut process).collect();
        let core = Core::new(task.job(0, None, None, 0), Duration::ZERO).unwrap();
        let expected = KINDS.map(|kind| task.expected(kind));
        let mut world = Self {
            task,
            rng,
            knobs,
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            core: Some(core),
            life: 0,
            next_worker: 0,
            sessions: BTreeMap::new(),
            heard: BTreeMap::new(),
            processes,
            collectives: BTreeMap::new(),
            store: Vec::new(),
            store_down_until: 0,
            encoded: false,
            saved: None,
            sums: BTreeMap::new(),
            kept_hardware: None,
            kind: None,
            expected,
            outcome: None,
            steps: 0,
            events: BTreeMap::new(),
            log: keep_log.then(String::new),
        };
        world.after(0, SimulatedEvent::Tick { life: 0 });
        for process in 0..world.processes.len() {
            let late =
                if world.rng.once_in(4) { world.rng.within(0..20_000) } else { world.rng.within(0..300) };
            world.after(late, SimulatedEvent::Start { process });
        }
        for (at, fault) in SimulatedFault::draw(&mut world) {
            world.after(at, SimulatedEvent::Fault(fault));
        }
        world
    }

    /// Runs to the end, or for so much virtual time.
    pub(crate) fn run(&mut self, limit: Duration) {
        for happened in 0.. {
            if self.outcome.is_some() {
                return;
            }
            assert!(happened < 300_000, "events without end: {:?}", self.core.as_ref().map(Core::view));
            let Some(((at, _), event)) = self.queue.pop_first() else { panic!("nothing more happens") };
            assert!(
                u128::from(at) < limit.as_millis(),
                "no end after {limit:?}: {:?}",
                self.core.as_ref().map(Core::view)
            );
            self.now = self.now.max(at);
            self.happen(event);
        }
    }

    pub(crate) fn after(&mut self, wait: u64, event: SimulatedEvent) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), event);
    }

    fn happen(&mut self, event: SimulatedEvent) {
        if let Some(until) = self.asleep(&event) {
            return self.after(until - self.now, event);
        }
        match event {
            SimulatedEvent::Fault(fault) => self.strike(fault),
            SimulatedEvent::Tick { life } if life == self.life && self.core.is_some() => {
                self.step(Input::Tick);
                self.check_silence();
                self.after(500, SimulatedEvent::Tick { life });
            }
            SimulatedEvent::Tick { .. } => {}
            SimulatedEvent::Report { worker, status } => self.report_arrives(worker, status),
            SimulatedEvent::Lost { worker } => self.session_lost(worker),
            SimulatedEvent::Command { worker, command } => self.command_arrives(worker, command),
            SimulatedEvent::Hangup { worker, leave } => self.hang_up(worker, leave),
            SimulatedEvent::Start { process } => self.start(process),
            SimulatedEvent::Prepared { process, lives } => self.prepared(process, lives),
            SimulatedEvent::Dial { process, lives } => self.dial(process, lives),
            SimulatedEvent::Beat { process, worker } => {
                if self.life_of(worker).is_some() {
                    self.report(process);
                    self.after(2000, SimulatedEvent::Beat { process, worker });
                }
            }
            SimulatedEvent::Work { process, lives } => self.work(process, lives),
            SimulatedEvent::Expire { process, lives } => {
                if self.processes[process].lives == lives {
                    self.kill(process, None);
                }
            }
            SimulatedEvent::Formed { epoch } => self.formed(epoch),
            SimulatedEvent::Reduced { epoch } => self.reduced(epoch),
            SimulatedEvent::Broken { epoch, process, lives } => self.broken(epoch, process, lives),
            SimulatedEvent::FormBy { epoch } => self.form_by(epoch),
            SimulatedEvent::Put { life, manifest } => self.put(life, manifest),
            SimulatedEvent::Stored { life, input } if life == self.life => self.step(input),
            SimulatedEvent::Stored { .. } => {}
            SimulatedEvent::Revive => self.revive(),
        }
    }

    /// Until when the process sleeps that an event is about.
    fn asleep(&self, event: &SimulatedEvent) -> Option<u64> {
        let process = match event {
            SimulatedEvent::Command { worker, .. } | SimulatedEvent::Hangup { worker, .. } => {
                self.sessions.get(worker)?.0
            }
            SimulatedEvent::Dial { process, .. }
            | SimulatedEvent::Prepared { process, .. }
            | SimulatedEvent::Beat { process, .. }
            | SimulatedEvent::Work { process, .. } => *process,
            SimulatedEvent::Expire { process, .. } | SimulatedEvent::Broken { process, .. } => *process,
            _ => return None,
        };
        Some(self.processes[process].paused_until).filter(|until| *until > self.now)
    }

    /// One step of the core: every invariant is checked after it.
    pub(crate) fn step(&mut self, input: Input) {
        let Some(core) = &mut self.core else { return };
        let actions = core.step(Duration::from_millis(self.now), input.clone());
        self.steps += 1;
        if let Some(log) = &mut self.log {
            writeln!(log, "{} {input:?} -> {actions:?}", self.now).unwrap();
        }
        if let Err(violation) = core.check(&actions) {
            panic!("{violation}, at {} ms after {input:?}", self.now);
        }
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { worker, command } => {
                let session = self.sessions.get(&worker).copied();
                let Some((process, true)) = session else { panic!("{command:?} for {worker}, which left") };
                for wait in self.travel(process) {
                    self.after(wait, SimulatedEvent::Command { worker, command: command.clone() });
                }
            }
            Action::Dismiss { worker, why } => {
                if let Some(session) = self.sessions.get_mut(&worker) {
                    session.1 = false;
                }
                let leave = matches!(
                    why,
                    Dismissal::Drained
                        | Dismissal::Refused(_)
                        | Dismissal::Useless(_)
                        | Dismissal::Stalled { .. }
                );
                if let (Dismissal::OtherHardware { .. }, Some((process, _))) =
                    (&why, self.sessions.get(&worker))
                {
                    self.processes[*process].stands_by_until = self.now + 3000;
                }
                let wait = self.rng.within(1..200);
                self.after(wait, SimulatedEvent::Hangup { worker, leave });
            }
            Action::Commit(manifest) => {
                let wait = self.rng.within(1..100);
                self.after(wait, SimulatedEvent::Put { life: self.life, manifest });
            }
            Action::Save(exponents) => self.saved = Some((*exponents).clone()),
            Action::SaveHardware(kind) => {
                self.kind = Some(kind.clone());
                self.kept_hardware = Some(kind);
            }
            Action::ForgetSums => self.sums.clear(),
            Action::Emit(event) => *self.events.entry(kind(&event)).or_insert(0) += 1,
            Action::Finish(outcome) => self.outcome = Some(outcome),
        }
    }

    /// When copies of a message arrive: none, one or two of them.
    pub(crate) fn travel(&mut self, process: usize) -> Vec<u64> {
        let cut = self.processes[process].cut_until > self.now;
        if cut || (self.knobs.drops > 0 && self.rng.percent(self.knobs.drop_percent)) {
            self.knobs.drops = self.knobs.drops.saturating_sub(u32::from(!cut));
            return Vec::new();
        }
        let copies = 1 + usize::from(self.rng.percent(self.knobs.repeat_percent));
        let late = |rng: &mut Prng, knobs: &Unreliability| {
            if rng.percent(knobs.late_percent) { rng.within(1..4000) } else { rng.within(1..30) }
        };
        (0..copies).map(|_| late(&mut self.rng, &self.knobs)).collect()
    }

    fn put(&mut self, life: u32, manifest: Arc<Manifest>) {
        let package = manifest.package;
        let down = self.store_down_until > self.now;
        // A put that failed may have been durable all the same.
        if !down || self.rng.once_in(8) {
            match self.store.get(package.0 as usize) {
                Some(stored) => {
                    assert_eq!(*stored, manifest, "package {package} is committed twice, and differs")
                }
                None => {
                    assert_eq!(package.0 as usize, self.store.len(), "packages are committed out of order");
                    let kinds = self.store.iter().map(|earlier| &earlier.hardware);
                    assert!(kinds.eq(self.store.iter().map(|_| &manifest.hardware)), "kinds of hardware mix");
                    let kind = usize::from(manifest.hardware.as_deref() == Some(KINDS[1]));
                    assert_eq!(
                        *manifest,
                        self.expected[kind][self.store.len()],
                        "the result differs from an undisturbed run's"
                    );
                    self.store.push(manifest);
                }
            }
        }
        let input = if down {
            Input::CommitFailed { package, error: "the store is down".to_owned() }
        } else {
            Input::Committed { package }
        };
        let wait = self.rng.within(1..100);
        self.after(wait, SimulatedEvent::Stored { life, input });
    }

    fn report_arrives(&mut self, worker: WorkerId, status: Box<Status>) {
        if self.sessions.get(&worker).is_none_or(|s| !s.1) {
            return;
        }
        if let (Some(group), Some(core)) = (&status.group, &self.core) {
            let refused = group.stage == GroupStage::Failed(NOT_THE_SUMS.to_owned());
            assert!(
                !(refused && core.view().epoch == Some(group.epoch)),
                "worker {worker} holds other sums than asked for"
            );
        }
        self.heard.insert(worker, self.now);
        self.step(Input::Reported { worker, status });
    }

    /// No worker that sent nothing for ten seconds counts as present.
    fn check_silence(&self) {
        let Some(core) = &self.core else { return };
        for worker in core.view().workers {
            let quiet = self.now - self.heard[&worker.worker];
            assert!(quiet < 10_000, "worker {} is silent for {quiet} ms and still counts", worker.worker);
        }
    }

    fn session_lost(&mut self, worker: WorkerId) {
        if let Some(session) = self.sessions.get_mut(&worker).filter(|s| s.1) {
            session.1 = false;
            self.step(Input::Left { worker, why: "connection lost".to_owned() });
        }
    }
}

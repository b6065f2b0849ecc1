//! Workers with fake engines, and gates that a test opens.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use obsdiff_proto::message::{Command, Status};
use obsdiff_proto::{Plan, WorkerId};

use super::super::{FakeEngine, Gate, MemoryPartStore, Moment, Patience, WorkError, WorkerState, follow};
use super::{calibrate, machine, plan};
use crate::collective::Local;

/// Longer than any of these tests should take.
const LONG: Duration = Duration::from_secs(60);

/// What a gate of a worker lets pass, one moment at a time, where it is closed.
pub(super) struct Gatekeeper {
    reached: Receiver<Moment>,
    pub(super) open: Sender<Result<(), WorkError>>,
}

impl Gatekeeper {
    pub(super) fn new() -> (Self, Gate) {
        let (reaches, reached) = mpsc::channel();
        let (open, opened) = mpsc::channel();
        let opened = Mutex::new(opened);
        let gate = move |moment| {
            reaches.send(moment).unwrap();
            opened.lock().unwrap().recv_timeout(LONG).unwrap()
        };
        (Self { reached, open }, Arc::new(gate))
    }

    /// Waits for the worker to come to a moment.
    pub(super) fn reached(&self) -> Moment {
        self.reached.recv_timeout(LONG).unwrap()
    }
}

/// Two workers with fake engines, by their names.
pub(super) struct Workers {
    pub(super) worker_states: Vec<Arc<WorkerState>>,
    threads: Vec<thread::JoinHandle<()>>,
    pub(super) part_store: MemoryPartStore,
}

impl Workers {
    pub(super) fn new(plan: &Arc<Plan>, gates: Vec<Gate>) -> Self {
        let transport = Arc::new(Local::default());
        let part_store = MemoryPartStore::default();
        let mut workers =
            Self { worker_states: Vec::new(), threads: Vec::new(), part_store: part_store.clone() };
        for (name, gate) in (1u64..).zip(gates) {
            let worker_state =
                WorkerState::new(machine(u128::from(name)), transport.clone(), Patience::default());
            worker_state.hello();
            worker_state.named(WorkerId(name));
            let result = Arc::new(Mutex::new(None));
            let mut engine = FakeEngine::new(plan.clone(), Arc::new(part_store.clone()), result, gate);
            let its = worker_state.clone();
            workers.threads.push(thread::spawn(move || follow(&its, &mut engine)));
            workers.worker_states.push(worker_state);
        }
        workers
    }

    pub(super) fn open(plan: &Arc<Plan>, count: usize) -> Self {
        let open = || -> Gate { Arc::new(|_| Ok(())) };
        Self::new(plan, (0..count).map(|_| open()).collect())
    }

    /// Two workers that hold a shard each, the second one behind a gate.
    pub(super) fn with_a_shard_each() -> (Gatekeeper, Self) {
        let (gatekeeper, gate) = Gatekeeper::new();
        let open: Gate = Arc::new(|_| Ok(()));
        let workers = Self::new(&plan(2), vec![open, gate]);
        workers.take(1, calibrate(1, 0));
        workers.take(2, calibrate(1, 1));
        gatekeeper.reached();
        gatekeeper.open.send(Ok(())).unwrap();
        workers.idle(1);
        workers.idle(2);
        (gatekeeper, workers)
    }

    pub(super) fn take(&self, worker: usize, command: Command) {
        self.worker_states[worker - 1].take(command);
    }

    /// The status of a worker, once it is as wanted.
    pub(super) fn wait(&self, worker: usize, wanted: impl Fn(&Status) -> bool) -> Status {
        let worker_state = &self.worker_states[worker - 1];
        let end = Instant::now() + LONG;
        loop {
            let (status, version) = worker_state.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < end, "worker {worker} stays {status:?}");
            worker_state.wait(version, Duration::from_secs(1));
        }
    }

    pub(super) fn idle(&self, worker: usize) -> Status {
        self.wait(worker, |status| status.in_hand.is_empty())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.worker_states.iter().for_each(|worker_state| worker_state.close());
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

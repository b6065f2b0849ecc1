//! Workers with fake engines, and hooks that a test opens.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use obsdiff_proto::message::{Command, Status};
use obsdiff_proto::{Plan, WorkerId};

use super::super::{
    CallHook, EngineCall, FakeEngine, GroupTimeouts, MemoryPartStore, WorkError, WorkerState, follow,
};
use super::{calibrate, machine, plan};
use crate::collective::Local;

/// Longer than any of these tests should take.
const LONG: Duration = Duration::from_secs(60);

/// Holds each call of a worker's engine until a test lets it pass, but those that read.
pub(super) struct CallControl {
    reached: Receiver<EngineCall>,
    pub(super) open: Sender<Result<(), WorkError>>,
}

impl CallControl {
    pub(super) fn new() -> (Self, CallHook) {
        let (reaches, reached) = mpsc::channel();
        let (open, opened) = mpsc::channel();
        let opened = Mutex::new(opened);
        let hook = move |call| {
            if matches!(call, EngineCall::Read(_)) {
                return Ok(());
            }
            reaches.send(call).unwrap();
            opened.lock().unwrap().recv_timeout(LONG).unwrap()
        };
        (Self { reached, open }, Arc::new(hook))
    }

    /// Waits until the worker makes a call.
    pub(super) fn reached(&self) -> EngineCall {
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
    pub(super) fn new(plan: &Arc<Plan>, hooks: Vec<CallHook>) -> Self {
        let transport = Arc::new(Local::default());
        let part_store = MemoryPartStore::default();
        let mut workers =
            Self { worker_states: Vec::new(), threads: Vec::new(), part_store: part_store.clone() };
        for (name, hook) in (1u64..).zip(hooks) {
            let worker_state =
                WorkerState::new(machine(u128::from(name)), transport.clone(), GroupTimeouts::default());
            worker_state.hello();
            worker_state.set_worker_id(WorkerId(name));
            let result = Arc::new(Mutex::new(None));
            let mut engine = FakeEngine::new(plan.clone(), Arc::new(part_store.clone()), result, hook);
            let its = worker_state.clone();
            workers.threads.push(thread::spawn(move || follow(&its, &mut engine)));
            workers.worker_states.push(worker_state);
        }
        workers
    }

    pub(super) fn open(plan: &Arc<Plan>, count: usize) -> Self {
        let open = || -> CallHook { Arc::new(|_| Ok(())) };
        Self::new(plan, (0..count).map(|_| open()).collect())
    }

    /// Two workers that hold a shard each, the calls of the second one held back.
    pub(super) fn with_a_shard_each() -> (CallControl, Self) {
        let (control, hook) = CallControl::new();
        let open: CallHook = Arc::new(|_| Ok(()));
        let workers = Self::new(&plan(2), vec![open, hook]);
        workers.take(1, calibrate(1, 0));
        workers.take(2, calibrate(1, 1));
        control.reached();
        control.open.send(Ok(())).unwrap();
        workers.idle(1);
        workers.idle(2);
        (control, workers)
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

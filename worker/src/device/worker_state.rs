//! What a session and the device's thread share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use obsdiff_proto::message::{Command, Fault, Group, Hello, Order, Status};
use obsdiff_proto::{Epoch, Measures, WorkerId, lock};
use tokio::sync::Notify;

use super::WorkError;
use super::orders::{Effect, Machine, Orders};
use super::saving::SaveTimes;
use crate::collective::{Abort, Collective, CollectiveError, Member, Transport};

/// The state of a worker, which its session and its device's thread share: the session brings commands and reads the status, the device's
/// thread takes orders and reports their results.
pub struct WorkerState {
    state: Mutex<SharedState>,
    /// Wakes threads.
    changed: Condvar,
    /// Wakes tasks.
    notify: Notify,
    transport: Arc<dyn Transport>,
    timeouts: GroupTimeouts,
    measures: OnceLock<Box<MeasuresSource>>,
    pub(super) saves: SaveTimes,
}

/// Says what a worker has measured of its work so far.
pub type MeasuresSource = dyn Fn() -> Measures + Send + Sync;

/// How long a thread sleeps at a time; any change of the state wakes it.
pub(super) const SLEEP: Duration = Duration::from_secs(60);

/// How long a worker waits for its peers.
#[derive(Clone, Copy, Debug)]
pub struct GroupTimeouts {
    /// For a group to form.
    pub form: Duration,
    /// For anything to arrive within a collective.
    pub silence: Duration,
}

impl Default for GroupTimeouts {
    fn default() -> Self {
        Self { form: Duration::from_secs(50), silence: Duration::from_secs(300) }
    }
}

struct SharedState {
    orders: Orders,
    /// The group being joined or in use.
    group: Option<Connection>,
    /// The device is to drop the Grams that it received.
    release: bool,
    /// The order that the device follows, with the flag that stops it when it is obsolete.
    running: Option<(Order, Stop)>,
    /// Grows with every change that is worth a report.
    version: u64,
    closed: bool,
    failure: Option<WorkError>,
}

struct Connection {
    epoch: Epoch,
    abort: Abort,
    /// Absent while it is being joined, and while the device has it.
    collective: Option<Box<dyn Collective>>,
}

/// Closes a worker's state when it is dropped.
pub struct CloseOnDrop<'a>(&'a WorkerState);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Stops the device, because nobody needs the result of its current order any more.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn check(&self) -> Result<(), WorkError> {
        if self.0.load(Ordering::Relaxed) { Err(WorkError::Stopped) } else { Ok(()) }
    }
}

/// What the device does next.
pub(super) enum DeviceTask {
    Follow(Command, Stop),
    /// Drop the Grams that were received.
    Release,
    /// Save the sums, because the worker leaves.
    Save,
}

impl WorkerState {
    /// The state of a process that has just started, and prepares until a device follows it.
    pub fn new(machine: Machine, transport: Arc<dyn Transport>, timeouts: GroupTimeouts) -> Arc<Self> {
        let state = SharedState {
            orders: Orders::new(machine),
            group: None,
            release: false,
            running: None,
            version: 0,
            closed: false,
            failure: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            notify: Notify::new(),
            transport,
            timeouts,
            measures: OnceLock::new(),
            saves: SaveTimes::default(),
        })
    }

    /// Begins a session: drops the orders that are not started, and returns what the worker holds.
    pub fn hello(&self) -> Hello {
        self.change(|state| state.orders.hello())
    }

    /// Sets the worker's id in this session. To be called before any command of the session.
    pub fn set_worker_id(&self, worker: WorkerId) {
        self.change(|state| state.orders.set_worker_id(worker));
    }

    /// Takes a command of the open session.
    pub fn take(self: &Arc<Self>, command: Command) {
        let effect = self.change(|state| {
            let effect = state.orders.take(command);
            state.stop_if_dropped();
            effect
        });
        match effect {
            Effect::None => {}
            Effect::Leave(epoch) => self.leave(epoch),
            Effect::Join(group, rank) => {
                self.leave(Epoch(group.epoch.0.saturating_sub(1)));
                self.join(group, rank);
            }
        }
    }

    /// Has the worker say from now on what `source` measures. Only the first source counts.
    pub fn measure_by(&self, source: Box<MeasuresSource>) {
        let _ = self.measures.set(source);
    }

    /// All that the worker knows of its own work, and the number of this version.
    pub fn status(&self) -> (Status, u64) {
        let measures = self.measures.get().map(|source| source()).unwrap_or_default();
        let state = lock(&self.state);
        (Status { measures, ..state.orders.status.clone() }, state.version)
    }

    /// Waits until the status is newer than `version`, but no longer than `most`. Returns whether the worker state is open.
    pub fn wait(&self, version: u64, most: Duration) -> bool {
        let end = Instant::now() + most;
        let mut state = lock(&self.state);
        while state.version == version && !state.closed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.closed
    }

    /// The same for a task: waits until the status is newer than `version`, or the worker state is closed.
    pub async fn changed(&self, version: u64) {
        loop {
            // Before the check, so that no change between the two is missed.
            let notified = self.notify.notified();
            {
                let state = lock(&self.state);
                if state.version != version || state.closed {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Whether the worker wants to leave.
    pub fn is_draining(&self) -> bool {
        lock(&self.state).orders.status.draining
    }

    /// Whether the worker goes on.
    pub fn is_open(&self) -> bool {
        !lock(&self.state).closed
    }

    /// Wakes everybody who waits for a change.
    pub fn wake(&self) {
        self.change(|_| ());
    }

    /// A guard that ends the worker when it is dropped.
    pub fn close_on_drop(&self) -> CloseOnDrop<'_> {
        CloseOnDrop(self)
    }

    /// Ends the worker: the device stops at its next step, and groups are left.
    pub fn close(&self) {
        let group = self.change(|state| {
            state.closed = true;
            state.stop_if_dropped();
            state.group.take()
        });
        if let Some(group) = group {
            self.abandon(group);
        }
    }

    /// Ends every wait in a group that is left. Its connections are dropped on another thread: that may take a while, and the caller may be
    /// the session's task.
    fn abandon(&self, group: Connection) {
        group.abort.raise();
        if let Some(collective) = group.collective
            && let Err(error) = self.transport.start(Box::new(move || drop(collective)))
        {
            tracing::debug!(%error, "no thread could be started to leave a group: it was left on the current one");
        }
    }

    /// Reports that the worker can encode prompts, and waits until it is asked to. Returns whether another worker has found everything in
    /// the store already; none when the worker is closed before it is asked.
    pub fn wait_to_encode(&self) -> Option<bool> {
        self.change(|state| state.orders.can_encode());
        loop {
            let (asked, version) = {
                let mut state = lock(&self.state);
                (state.orders.begin_encoding(), state.version)
            };
            if asked.is_some() || !self.wait(version, SLEEP) {
                return asked;
            }
        }
    }

    /// Reports that the conditioning of every prompt is in the store.
    pub fn encoded(&self) {
        self.change(|state| state.orders.encoded());
    }

    /// The engine's error behind the last failure that another attempt would not cure.
    pub fn take_failure(&self) -> Option<WorkError> {
        lock(&self.state).failure.take()
    }

    /// The next task of the device, as soon as there is one; none when the worker state is closed. `wait` waits until the version is newer
    /// than the one it is given, and may return earlier.
    pub(super) fn next(&self, wait: &mut dyn FnMut(u64)) -> Option<DeviceTask> {
        loop {
            let mut state = lock(&self.state);
            if state.closed {
                return None;
            }
            if !state.orders.is_reducing() && std::mem::take(&mut state.release) {
                return Some(DeviceTask::Release);
            }
            if state.orders.saves_now() {
                return Some(DeviceTask::Save);
            }
            if let Some(command) = state.orders.next() {
                let stop = Stop::default();
                state.running = Some((command.order(), stop.clone()));
                self.notify_all(&mut state);
                return Some(DeviceTask::Follow(command, stop));
            }
            let version = state.version;
            drop(state);
            wait(version);
        }
    }

    /// Changes the orders, and wakes everybody who waits for a change.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Orders) -> T) -> T {
        self.change(|state| change(&mut state.orders))
    }

    /// Counts a step of work or of preparation, which is not worth a report of its own.
    pub fn advance(&self) {
        lock(&self.state).orders.advance();
    }

    /// Reports that an order failed.
    pub(super) fn failed(&self, order: Order, error: WorkError) {
        let fault = error.fault();
        match &fault {
            // Nobody sees the cause better than whoever runs this worker: a store or disk that fails, or a right that it lost.
            Fault::Transient(_) if error.is_of_host() && !matches!(order, Order::Restore { .. }) => {
                tracing::warn!(%order, %error, "this worker waits until it can do this, which is tried again");
            }
            _ => tracing::debug!(%order, %error, "an order failed"),
        }
        self.change(|state| {
            if state.orders.is_running(order) {
                state.orders.mark_failed(order, fault.clone());
                if matches!(fault, Fault::Environment(_) | Fault::Fatal(_)) {
                    state.failure = Some(error);
                }
            }
        });
    }

    /// Takes the connection of a group that is formed, for the device.
    pub(super) fn take_group(&self, epoch: Epoch) -> Option<Box<dyn Collective>> {
        let mut state = lock(&self.state);
        state.group.as_mut().filter(|group| group.epoch == epoch)?.collective.take()
    }

    /// Runs a group's reductions on a thread of the transport, like the one that joined the group.
    pub(super) fn start(&self, reducing: Box<dyn FnOnce() + Send>) -> Result<(), CollectiveError> {
        self.transport.start(reducing)
    }

    /// Leaves groups up to an epoch, and makes the device drop the Grams received from them.
    pub(super) fn leave(&self, epoch: Epoch) {
        let left = self.change(|state| {
            state.release = true;
            state.group.take_if(|group| group.epoch <= epoch)
        });
        if let Some(group) = left {
            self.abandon(group);
        }
    }

    /// Joins a group, on a thread that the transport starts.
    fn join(self: &Arc<Self>, group: Arc<Group>, rank: usize) {
        let abort = Abort::default();
        let member = Member {
            epoch: group.epoch,
            rank,
            world: group.members.len(),
            form: self.timeouts.form,
            silence: self.timeouts.silence,
        };
        self.change(|state| {
            state.group = Some(Connection { epoch: group.epoch, abort: abort.clone(), collective: None });
        });
        let worker_state = Arc::clone(self);
        let joining = move || {
            let joined = worker_state.transport.join(member, &abort);
            worker_state.joined(member.epoch, joined.map_err(|error| error.among(&group.members)));
        };
        if let Err(error) = self.transport.start(Box::new(joining)) {
            self.joined(member.epoch, Err(error.to_string()));
        }
    }

    fn joined(&self, epoch: Epoch, joined: Result<Box<dyn Collective>, String>) {
        // A collective of a group that was left meanwhile is dropped outside the lock.
        let _unwanted = self.change(|state| match joined {
            Ok(collective) => match state.group.as_mut().filter(|group| group.epoch == epoch) {
                Some(group) if state.orders.formed(epoch) => {
                    group.collective = Some(collective);
                    None
                }
                _ => Some(collective),
            },
            Err(why) => {
                state.orders.fail_group(epoch, why);
                None
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut SharedState) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.notify_all(&mut state);
        result
    }

    fn notify_all(&self, state: &mut MutexGuard<'_, SharedState>) {
        state.version += 1;
        self.changed.notify_all();
        self.notify.notify_waiters();
    }
}

impl SharedState {
    /// Stops the device where its order was dropped.
    fn stop_if_dropped(&mut self) {
        if let Some((order, stop)) = &self.running
            && (self.closed || !self.orders.is_running(*order))
        {
            stop.0.store(true, Ordering::Relaxed);
        }
    }
}

//! The device's thread: one order after another. A group's reductions run beside it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use obsdiff_proto::message::{Command, Fault, Group, Opening, Order, Part, SavedSums, Tally};
use obsdiff_proto::{Epoch, ShardId};
use tokio::time::Instant;

use super::saving::SavePolicy;
use super::worker_state::{DeviceTask, SLEEP, Stop};
use super::{Engine, PartStoreError, Reducer, WorkError, WorkerState};
use crate::collective::{Buffer, Collective, Values};

/// How long a worker waits for a store that cannot be read, while it holds what it would have to compute again otherwise.
const STORE_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Follows the orders of a worker state by an engine until the worker state is closed; closes it when it ends in any other way.
pub fn follow(worker_state: &Arc<WorkerState>, engine: &mut dyn Engine) {
    follow_waiting(worker_state, engine, &mut |version, most| {
        worker_state.wait(version, most);
    });
}

/// As [`follow`], with another way to wait: `wait` returns once the worker state's version is newer than the one it is given, and after the
/// time it is given at the latest.
pub fn follow_waiting(
    worker_state: &Arc<WorkerState>,
    engine: &mut dyn Engine,
    wait: &mut dyn FnMut(u64, Duration),
) {
    let _closes = worker_state.close_on_drop();
    let mut device = DeviceThread { worker_state, engine, wait, opened: None, saving: SavePolicy::default() };
    worker_state.with(|orders| orders.ready());
    while let Some(work) = tracing::info_span!("wait")
        .in_scope(|| worker_state.next(&mut |version| (device.wait)(version, SLEEP)))
    {
        match work {
            DeviceTask::Release => device.engine.release(),
            DeviceTask::Save => {
                if let Some(tally) = device.opened {
                    device.save(tally);
                }
                worker_state.with(|orders| orders.end_saving());
            }
            DeviceTask::Follow(command, stop) => device.follow(command, &stop),
        }
    }
}

struct DeviceThread<'a> {
    worker_state: &'a Arc<WorkerState>,
    engine: &'a mut dyn Engine,
    /// Waits until the worker state is newer than this version, but for no longer than this.
    wait: &'a mut dyn FnMut(u64, Duration),
    /// The tally that the engine's sums are of.
    opened: Option<Tally>,
    saving: SavePolicy,
}

impl DeviceThread<'_> {
    fn follow(&mut self, command: Command, stop: &Stop) {
        let order = command.order();
        tracing::debug!(%order, "begins");
        let outcome = match command {
            Command::Pilot { shard } => self.pilot(shard, stop),
            Command::Calibrate { tally, shard, opening } => self.calibrate(tally, shard, &opening, stop),
            Command::Restore { tally, saved, opening } => {
                self.restore(tally, &saved, &opening, stop).map_err(may_pass)
            }
            Command::Reduce { epoch } => self.reduce(epoch),
            Command::Solve { epoch, part } => self.solve(epoch, &part, stop),
            Command::Apply { packages } => self.apply(packages, stop),
            Command::Export => self.export(stop),
            // Encoding ends before the device follows; the worker state itself carries out the others.
            Command::Encode { .. }
            | Command::Abort { .. }
            | Command::Discard { .. }
            | Command::Form { .. } => Ok(()),
        };
        if let Err(error) = outcome {
            self.worker_state.failed(order, error);
        }
    }

    fn pilot(&mut self, shard: ShardId, stop: &Stop) -> Result<(), WorkError> {
        let exponents = self.engine.pilot(shard, &mut step(self.worker_state, stop))?;
        self.worker_state.with(|orders| orders.piloted(exponents));
        Ok(())
    }

    fn calibrate(
        &mut self,
        tally: Tally,
        shard: ShardId,
        opening: &Opening,
        stop: &Stop,
    ) -> Result<(), WorkError> {
        self.open(tally, opening)?;
        self.patiently(Order::Calibrate { tally, shard }, stop, |engine| engine.read(shard))?;
        self.worker_state.with(|orders| orders.begin_adding());
        let begun = Instant::now();
        self.engine.calibrate(shard, &mut step(self.worker_state, stop))?;
        let took = begun.elapsed();
        self.worker_state.with(|orders| orders.calibrated(tally, shard, took));
        self.save_if_due(tally);
        Ok(())
    }

    /// Adds saved sums in place of running their shards.
    fn restore(
        &mut self,
        tally: Tally,
        saved: &Arc<SavedSums>,
        opening: &Opening,
        stop: &Stop,
    ) -> Result<(), WorkError> {
        self.open(tally, opening)?;
        if !self.worker_state.status().0.sums.held.is_disjoint(&saved.shards) {
            let problem = "some shards of the saved sums are in those of this worker already";
            return Err(PartStoreError::Damaged(problem.to_owned()).into());
        }
        let order = Order::Restore { tally, first: saved.first() };
        let record = self.patiently(order, stop, |engine| engine.check_saved(saved))?;
        self.worker_state.with(|orders| orders.begin_adding());
        let mut step = step(self.worker_state, stop);
        for gram in &record.grams {
            self.patiently(order, stop, |engine| engine.restore(gram))?;
            step()?;
        }
        self.worker_state.with(|orders| orders.restored(tally, saved));
        self.saving.restored(saved.receipt.clone());
        self.save_if_due(tally);
        Ok(())
    }

    /// Starts sums from zero where a tally is new.
    fn open(&mut self, tally: Tally, opening: &Opening) -> Result<(), WorkError> {
        if self.opened != Some(tally) {
            self.opened = None;
            self.engine.open(opening)?;
            self.opened = Some(tally);
            self.saving.begin(Instant::now());
        }
        Ok(())
    }

    /// Does what needs the store, and leaves the sums as they are where that fails. A store that may be read again later is waited for.
    fn patiently<T>(
        &mut self,
        order: Order,
        stop: &Stop,
        mut read: impl FnMut(&mut dyn Engine) -> Result<T, WorkError>,
    ) -> Result<T, WorkError> {
        let (begun, mut pause) = (Instant::now(), Duration::from_secs(1));
        loop {
            let (_, version) = self.worker_state.status();
            let error = match read(self.engine) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !matches!(error.fault(), Fault::Transient(_)) || begun.elapsed() >= STORE_PATIENCE {
                return Err(error);
            }
            tracing::warn!(%order, %error, "this worker keeps what it holds until it can read what this needs");
            (self.wait)(version, pause);
            pause = SLEEP.min(2 * pause);
            self.worker_state.advance();
            stop.check()?;
        }
    }

    /// Saves the sums of a tally, to which something was added, where it is time.
    fn save_if_due(&mut self, tally: Tally) {
        for replaced in self.saving.take_replaced() {
            self.engine.forget(&replaced);
        }
        let period = self.worker_state.save_period();
        if period.is_some_and(|period| self.saving.is_due(period, Instant::now())) {
            self.save(tally);
        }
    }

    /// Saves the sums of a tally, unless all are saved. A save that fails is no failure of the work.
    fn save(&mut self, tally: Tally) {
        let begun = Instant::now();
        let sums = self.worker_state.status().0.sums;
        let stored = sums.saved.is_some_and(|saved| saved.shards == sums.held);
        let Some(first) = sums.held.first().copied() else { return };
        if sums.tally != tally || sums.spoiled || stored {
            return;
        }
        let save = self.saving.name(self.worker_state.with(|orders| orders.instance()), first);
        let (worker_state, held) = (self.worker_state, sums.held);
        let saved = self.engine.save(&save, &held, &mut || worker_state.advance_save(tally));
        self.saving.tried(begun, Instant::now());
        match saved {
            Ok(Some(receipt)) => {
                self.saving.saved(receipt.clone());
                worker_state.with(|orders| orders.saved(tally, SavedSums { shards: held, receipt }));
            }
            Ok(None) | Err(WorkError::Stopped) => {}
            Err(error) => tracing::warn!(
                "what this worker has summed could not be saved: {error}; if the worker ended, {} shards would be run again",
                held.len()
            ),
        }
    }

    /// Starts a group's reductions.
    fn reduce(&mut self, epoch: Epoch) -> Result<(), WorkError> {
        let fail = |why: String| self.worker_state.with(|orders| orders.fail_group(epoch, why));
        let taken =
            self.worker_state.take_group(epoch).zip(self.worker_state.with(|orders| orders.reduction(epoch)));
        let Some((collective, (group, held, tally))) = taken else {
            fail("it was left".to_owned());
            return Ok(());
        };
        let adds = held && self.opened == Some(tally);
        let reducer = self.engine.reducer(adds);
        self.worker_state.with(|orders| orders.begin_reducing(epoch));
        let worker_state = self.worker_state.clone();
        let reductions = Reductions { worker_state, group, collective, reducer: Some(reducer) };
        if let Err(error) = self.worker_state.start(Box::new(move || reductions.run())) {
            fail(error.to_string());
        }
        Ok(())
    }

    fn solve(&mut self, epoch: Epoch, part: &Part, stop: &Stop) -> Result<(), WorkError> {
        // The group was left meanwhile, and its Grams are dropped.
        if !self.worker_state.with(|orders| orders.reduces(epoch, part)) {
            return Ok(());
        }
        let solved = self.engine.solve(part, &mut step(self.worker_state, stop))?;
        self.worker_state.with(|orders| orders.solved(epoch, part.id, solved));
        Ok(())
    }

    fn apply(&mut self, packages: u32, stop: &Stop) -> Result<(), WorkError> {
        if let Some(epoch) = self.worker_state.with(|orders| orders.begin_apply()) {
            self.worker_state.leave(epoch);
        }
        let kept = self.engine.keeps_sums(packages);
        if !kept {
            self.opened = None;
        }
        self.engine.apply(packages, &mut step(self.worker_state, stop))?;
        self.worker_state.with(|orders| orders.applied(packages, kept));
        Ok(())
    }

    fn export(&mut self, stop: &Stop) -> Result<(), WorkError> {
        self.engine.export(&mut step(self.worker_state, stop))?;
        self.worker_state.with(|orders| orders.exported());
        Ok(())
    }
}

/// The error of saved sums that are missing or damaged. Their shards can be run instead, so it is none that would come again.
fn may_pass(error: WorkError) -> WorkError {
    match error {
        WorkError::PartStore(PartStoreError::Damaged(problem)) => PartStoreError::Failed(problem).into(),
        error => error,
    }
}

/// The reductions of a group. An error in one of them fails the group.
struct Reductions {
    worker_state: Arc<WorkerState>,
    group: Arc<Group>,
    collective: Box<dyn Collective>,
    /// Present until they have ended.
    reducer: Option<Box<dyn Reducer>>,
}

impl Reductions {
    fn run(mut self) {
        let epoch = self.group.epoch;
        let ended = self.run_all();
        self.worker_state.with(|orders| match ended {
            Ok(None) => orders.reduced(epoch),
            Ok(Some(overflow)) => {
                orders.reduced(epoch);
                orders.mark_failed(Order::Reduce { epoch }, overflow.fault());
            }
            Err(error) => orders.fail_group(epoch, error.among(&self.group.members)),
        });
    }

    /// Runs all reductions. Returns the overflow of a Gram, if there was one: every rank finds the same.
    fn run_all(&mut self) -> Result<Option<WorkError>, WorkError> {
        let Self { worker_state, group, collective, reducer } = self;
        let mut overflow = None;
        for reduction in &group.reductions {
            let Some(reducer) = reducer else { break };
            let place = |worker| group.members.iter().position(|member| member == worker);
            let roots: Vec<usize> = reduction.roots.iter().filter_map(place).collect();
            match reducer.reduce(reduction.site, &roots, &mut **collective) {
                Ok(true) => worker_state.with(|orders| orders.received(group.epoch, reduction.site)),
                Ok(false) => worker_state.advance(),
                Err(error @ WorkError::Overflow { .. }) => overflow = Some(error),
                Err(error) => return Err(error),
            }
        }
        // No member leaves before all members have finished.
        collective.all_reduce(Values::I64(&[0]), Buffer::I64(&mut [0]))?;
        Ok(overflow)
    }
}

impl Drop for Reductions {
    /// Whether the reductions finished, failed or never started, the engine owns its sums again.
    fn drop(&mut self) {
        let epoch = self.group.epoch;
        // First it lets go of the sums, which are copied while anybody shares them.
        self.reducer = None;
        self.worker_state.with(|orders| {
            if thread::panicking() {
                orders.fail_group(epoch, "its reductions were not finished".to_owned());
            }
            orders.end_reducing();
        });
    }
}

/// What is called after each step of work: it shows that the worker is not stuck, and stops work that is obsolete.
fn step<'a>(worker_state: &'a WorkerState, stop: &'a Stop) -> impl FnMut() -> Result<(), WorkError> + 'a {
    || {
        worker_state.advance();
        stop.check()
    }
}

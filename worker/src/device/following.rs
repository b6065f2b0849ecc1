//! The device's thread: one order after another. A group's reductions run beside it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use obsdiff_proto::Epoch;
use obsdiff_proto::message::{Command, Group, Opening, Order, Part, Tally};
use tokio::time::Instant;

use super::desk::{Stop, Work};
use super::{Desk, Engine, Reducer, WorkError};
use crate::collective::{Buffer, Collective, Values};

/// How long a device's thread sleeps at a time; any change of its desk wakes it.
const SLEEP: Duration = Duration::from_secs(60);

/// Follows the orders of a desk by an engine until the desk is closed; closes it when it ends in any other way.
pub fn follow(desk: &Arc<Desk>, engine: &mut dyn Engine) {
    follow_waiting(desk, engine, &mut |version| {
        desk.wait(version, SLEEP);
    });
}

/// As [`follow`], on a thread that has its own way to wait until the desk's version is a newer one than it is given, or a while.
pub fn follow_waiting(desk: &Arc<Desk>, engine: &mut dyn Engine, wait: &mut dyn FnMut(u64)) {
    let _closes = Closes(desk);
    let mut device = Device { desk, engine, opened: None };
    desk.with(|duties| duties.ready());
    while let Some(work) = tracing::info_span!("wait").in_scope(|| desk.next(wait)) {
        match work {
            Work::Release => device.engine.release(),
            Work::Follow(command, stop) => device.follow(command, &stop),
        }
    }
}

struct Closes<'a>(&'a Desk);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Device<'a> {
    desk: &'a Arc<Desk>,
    engine: &'a mut dyn Engine,
    /// The tally that the engine's sums are of.
    opened: Option<Tally>,
}

impl Device<'_> {
    fn follow(&mut self, command: Command, stop: &Stop) {
        let order = command.order();
        tracing::debug!(%order, "begins");
        let outcome = match command {
            Command::Pilot { shard } => self.pilot(shard, stop),
            Command::Calibrate { tally, shard, opening } => self.calibrate(tally, shard, &opening, stop),
            Command::Reduce { epoch } => self.reduce(epoch),
            Command::Solve { epoch, part } => self.solve(epoch, &part),
            Command::Apply { packages } => self.apply(packages, stop),
            Command::Export => self.export(stop),
            // Done by the desk as they come.
            Command::Abort { .. } | Command::Discard { .. } | Command::Form { .. } => Ok(()),
        };
        if let Err(error) = outcome {
            self.desk.failed(order, error);
        }
    }

    fn pilot(&mut self, shard: obsdiff_proto::ShardId, stop: &Stop) -> Result<(), WorkError> {
        let exponents = self.engine.pilot(shard, &mut step(self.desk, stop))?;
        self.desk.with(|duties| duties.piloted(exponents));
        Ok(())
    }

    fn calibrate(
        &mut self,
        tally: Tally,
        shard: obsdiff_proto::ShardId,
        opening: &Opening,
        stop: &Stop,
    ) -> Result<(), WorkError> {
        if self.opened != Some(tally) {
            self.opened = None;
            self.engine.open(opening)?;
            self.opened = Some(tally);
        }
        let begun = Instant::now();
        self.engine.calibrate(shard, &mut step(self.desk, stop))?;
        let took = begun.elapsed();
        self.desk.with(|duties| duties.calibrated(tally, shard, took));
        Ok(())
    }

    /// Sets a group's reductions going.
    fn reduce(&mut self, epoch: Epoch) -> Result<(), WorkError> {
        let fail = |why: String| self.desk.with(|duties| duties.fail_group(epoch, why));
        let taken = self.desk.take_group(epoch).zip(self.desk.with(|duties| duties.reduction(epoch)));
        let Some((collective, (group, held, tally))) = taken else {
            fail("it was left".to_owned());
            return Ok(());
        };
        let adds = held && self.opened == Some(tally);
        let reducer = self.engine.reducer(adds);
        self.desk.with(|duties| duties.begin_reducing(epoch));
        let reductions = Reductions { desk: self.desk.clone(), group, collective, reducer };
        if let Err(error) = self.desk.start(Box::new(move || reductions.run())) {
            fail(error.to_string());
        }
        Ok(())
    }

    fn solve(&mut self, epoch: Epoch, part: &Part) -> Result<(), WorkError> {
        // The group was left meanwhile: its Grams go.
        if !self.desk.with(|duties| duties.reduces(epoch, part)) {
            return Ok(());
        }
        let solved = self.engine.solve(part)?;
        self.desk.with(|duties| duties.solved(epoch, part.id, solved));
        Ok(())
    }

    fn apply(&mut self, packages: u32, stop: &Stop) -> Result<(), WorkError> {
        if let Some(epoch) = self.desk.with(|duties| duties.begin_apply()) {
            self.desk.leave(epoch);
        }
        self.opened = None;
        self.engine.apply(packages, &mut step(self.desk, stop))?;
        self.desk.with(|duties| duties.applied(packages));
        Ok(())
    }

    fn export(&mut self, stop: &Stop) -> Result<(), WorkError> {
        self.engine.export(&mut step(self.desk, stop))?;
        self.desk.with(|duties| duties.exported());
        Ok(())
    }
}

/// A group's way through its reductions. What fails in it fails the group.
struct Reductions {
    desk: Arc<Desk>,
    group: Arc<Group>,
    collective: Box<dyn Collective>,
    reducer: Box<dyn Reducer>,
}

impl Reductions {
    fn run(mut self) {
        let epoch = self.group.epoch;
        let ended = self.all();
        self.desk.with(|duties| match ended {
            Ok(None) => duties.reduced(epoch),
            Ok(Some(overflow)) => {
                duties.reduced(epoch);
                duties.hit(Order::Reduce { epoch }, overflow.fault());
            }
            Err(error) => duties.fail_group(epoch, error.to_string()),
        });
    }

    /// Says which Gram overflowed, if one did: every rank finds the same.
    fn all(&mut self) -> Result<Option<WorkError>, WorkError> {
        let Self { desk, group, collective, reducer } = self;
        let mut overflow = None;
        for reduction in &group.reductions {
            let place = |worker| group.members.iter().position(|member| member == worker);
            let roots: Vec<usize> = reduction.roots.iter().filter_map(place).collect();
            match reducer.reduce(reduction.site, &roots, &mut **collective) {
                Ok(true) => desk.with(|duties| duties.received(group.epoch, reduction.site)),
                Ok(false) => desk.advance(),
                Err(error @ WorkError::Overflow { .. }) => overflow = Some(error),
                Err(error) => return Err(error),
            }
        }
        // Nobody leaves before everybody is through.
        collective.all_reduce(Values::I64(&[0]), Buffer::I64(&mut [0]))?;
        Ok(overflow)
    }
}

impl Drop for Reductions {
    /// However they end, and where they never began: the sums are the engine's again.
    fn drop(&mut self) {
        let epoch = self.group.epoch;
        self.desk.with(|duties| {
            if thread::panicking() {
                duties.fail_group(epoch, "its reductions were not finished".to_owned());
            }
            duties.end_reducing();
        });
    }
}

/// Called after each step of work: it shows that the worker is not stuck, and stops what is of no use any more.
fn step<'a>(desk: &'a Desk, stop: &'a Stop) -> impl FnMut() -> Result<(), WorkError> + 'a {
    || {
        desk.advance();
        stop.check()
    }
}

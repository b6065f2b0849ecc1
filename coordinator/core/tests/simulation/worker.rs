//! A worker as the coordinator must expect it: it keeps sums and Grams, and loses them when its process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use obsdiff_core::{
    Command, Encoding, Exponents, Fault, GroupStage, GroupStatus, Hello, Order, Status, Sums, Tally, Trouble,
};
use obsdiff_proto::{Epoch, PackageId, ShardId, SiteId, WorkerId};

use crate::task::dense;

/// One process. What a process that dies takes with it lies in `life`.
pub(crate) struct SimulatedProcess {
    pub(crate) life: Option<RunningProcess>,
    /// Counts its lives.
    pub(crate) lives: u64,
    pub(crate) paused_until: u64,
    pub(crate) cut_until: u64,
    pub(crate) speed: u64,
    pub(crate) hardware: &'static str,
    /// It was asked to stand by, and connects again then.
    pub(crate) stands_by_until: u64,
    /// Milliseconds a shard takes.
    pub(crate) pace: u64,
}

/// A running process.
pub(crate) struct RunningProcess {
    pub(crate) instance: u128,
    pub(crate) session: Option<WorkerId>,
    pub(crate) status: Status,
    /// What the sums truly consist of: how often each shard was added.
    pub(crate) counts: BTreeMap<ShardId, u32>,
    /// With which exponents and on which weights.
    pub(crate) exponents: Exponents,
    pub(crate) weights: u64,
    /// Grams received, and the exponents they are of.
    pub(crate) grams: BTreeMap<SiteId, i32>,
    /// Orders taken, in order of arrival.
    pub(crate) queue: Vec<Command>,
    /// The order being followed, and until when.
    pub(crate) running: Option<(Order, u64)>,
    /// The device hangs.
    pub(crate) stuck: bool,
    troubles: u64,
}

/// What taking a command led to.
#[derive(PartialEq)]
pub(crate) enum CommandEffect {
    /// It waits for its turn.
    Queued,
    /// It is done or obsolete: the status says so.
    Answered,
    /// The group is to be entered.
    Enter(Epoch),
    /// A group was left.
    Leave(Epoch),
}

impl RunningProcess {
    pub(crate) fn new(instance: u128) -> Self {
        Self {
            instance,
            session: None,
            status: Status { preparing: true, ..Status::default() },
            counts: BTreeMap::new(),
            exponents: Exponents::new(),
            weights: dense(),
            grams: BTreeMap::new(),
            queue: Vec::new(),
            running: None,
            stuck: false,
            troubles: 0,
        }
    }

    /// Forgets what was not begun, and says the rest.
    pub(crate) fn hello(&mut self, speed: u64, hardware: &str) -> Hello {
        let running = self.running.map(|(order, _)| order);
        self.queue.retain(|c| Some(c.order()) == running);
        self.show_in_hand();
        Hello {
            instance: self.instance,
            speed,
            hardware: hardware.to_owned(),
            exponents: self.exponents.clone(),
            status: self.status.clone(),
        }
    }

    /// Takes a command in. Each is idempotent.
    pub(crate) fn take(&mut self, command: Command) -> CommandEffect {
        let order = command.order();
        if !matches!(order, Order::Pilot) {
            self.status.pilot = None;
        }
        if self.status.in_hand.contains(&order) {
            return CommandEffect::Answered;
        }
        let (group_epoch, closed) = match &self.status.group {
            Some(g) => (g.epoch, g.stage.is_closed()),
            None => (Epoch(0), false),
        };
        match &command {
            Command::Abort { epoch } => return self.abort(*epoch),
            Command::Discard { tally } => {
                self.start_tally(*tally, None, &Exponents::new());
                return CommandEffect::Answered;
            }
            Command::Calibrate { tally, shard, opening } => {
                self.start_tally(*tally, Some(opening.package), &opening.exponents);
                if *tally < self.status.sums.tally
                    || self.status.sums.spoiled
                    || self.status.sums.held.contains(shard)
                {
                    return CommandEffect::Answered;
                }
                self.status.sums.package = Some(opening.package);
                self.exponents.clone_from(&opening.exponents);
            }
            Command::Restore { tally, saved, opening } => {
                self.start_tally(*tally, Some(opening.package), &opening.exponents);
                let sums = &mut self.status.sums;
                if *tally < sums.tally || sums.spoiled || sums.held.contains(&saved.first()) {
                    return CommandEffect::Answered;
                }
                sums.package = Some(opening.package);
                self.exponents.clone_from(&opening.exponents);
            }
            Command::Form { tally, holds, group } => {
                if group.epoch <= group_epoch {
                    return CommandEffect::Answered;
                }
                self.start_tally(*tally, Some(group.package), &Exponents::new());
                self.drop_group_orders(group.epoch);
                let fits = *tally == self.status.sums.tally && **holds == self.status.sums.held;
                let stage =
                    if fits { GroupStage::Forming } else { GroupStage::Failed(NOT_THE_SUMS.to_owned()) };
                self.status.group =
                    Some(GroupStatus { epoch: group.epoch, stage, received: BTreeSet::new() });
                if !fits {
                    return CommandEffect::Answered;
                }
                self.queue.push(command);
                self.show_in_hand();
                let epoch = self.status.group.as_ref().map_or(Epoch(0), |g| g.epoch);
                return CommandEffect::Enter(epoch);
            }
            Command::Reduce { epoch } | Command::Solve { epoch, .. } if *epoch < group_epoch => {
                return CommandEffect::Answered;
            }
            Command::Reduce { epoch } | Command::Solve { epoch, .. } if *epoch == group_epoch && closed => {
                return CommandEffect::Answered;
            }
            Command::Reduce { epoch } => {
                let reduced = |g: &GroupStatus| g.epoch == *epoch && g.stage == GroupStage::Reduced;
                if self.status.group.as_ref().is_some_and(reduced) {
                    return CommandEffect::Answered;
                }
            }
            Command::Solve { part, .. } if self.status.solved.contains_key(&part.id) => {
                return CommandEffect::Answered;
            }
            Command::Apply { packages } if *packages <= self.status.applied => {
                return CommandEffect::Answered;
            }
            Command::Pilot { .. } if self.status.pilot.is_some() || self.status.applied > 0 => {
                return CommandEffect::Answered;
            }
            Command::Export if self.status.exported => return CommandEffect::Answered,
            Command::Encode { .. } if self.status.encoding == Encoding::Done => {
                return CommandEffect::Answered;
            }
            _ => {}
        }
        self.queue.push(command);
        self.show_in_hand();
        CommandEffect::Queued
    }

    /// The next command that can be followed now; what can never be is dropped.
    pub(crate) fn next(&mut self) -> Option<Command> {
        let (applied, tally) = (self.status.applied, self.status.sums.tally);
        let spoiled = self.status.sums.spoiled;
        self.queue.retain(|c| match c {
            Command::Apply { packages } => *packages > applied,
            Command::Calibrate { tally: of, opening, .. } | Command::Restore { tally: of, opening, .. } => {
                *of >= tally && opening.package.0 >= applied && !spoiled
            }
            _ => true,
        });
        self.show_in_hand();
        let group = self.status.group.as_ref();
        let ready = |c: &&Command| match c {
            Command::Calibrate { opening, .. } | Command::Restore { opening, .. } => {
                opening.package.0 == applied
            }
            Command::Reduce { epoch } => {
                group.is_some_and(|g| g.epoch == *epoch && g.stage == GroupStage::Formed)
            }
            Command::Solve { epoch, part } => group.is_some_and(|g| {
                g.epoch == *epoch && part.sites.iter().all(|site| g.received.contains(site))
            }),
            Command::Form { .. } => false,
            _ => true,
        };
        self.queue.iter().find(ready).cloned()
    }

    /// An order is done or has failed.
    pub(crate) fn finish(&mut self, order: Order) {
        self.queue.retain(|c| c.order() != order);
        self.status.progress += 1;
        self.show_in_hand();
    }

    pub(crate) fn mark_failed(&mut self, order: Order, fault: Fault) {
        self.troubles += 1;
        self.status.trouble = Some(Trouble { serial: self.troubles, order, fault });
        self.finish(order);
    }

    /// The group fails; Grams that arrived stay.
    pub(crate) fn fail_group(&mut self, epoch: Epoch, why: &str) {
        self.queue.retain(
            |c| !matches!(c.order(), Order::Form { epoch: e } | Order::Reduce { epoch: e } if e == epoch),
        );
        if self.running.is_some_and(|(order, _)| order == (Order::Reduce { epoch })) {
            self.running = None;
        }
        if let Some(group) =
            self.status.group.as_mut().filter(|g| g.epoch == epoch && g.stage != GroupStage::Reduced)
        {
            group.stage = GroupStage::Failed(why.to_owned());
        }
        self.show_in_hand();
    }

    pub(crate) fn abort(&mut self, epoch: Epoch) -> CommandEffect {
        if self
            .status
            .group
            .as_ref()
            .is_some_and(|g| g.epoch > epoch || (g.epoch == epoch && g.stage == GroupStage::Aborted))
        {
            return CommandEffect::Answered;
        }
        self.drop_group_orders(Epoch(epoch.0 + 1));
        self.status.group =
            Some(GroupStatus { epoch, stage: GroupStage::Aborted, received: BTreeSet::new() });
        CommandEffect::Leave(epoch)
    }

    /// Drops what earlier groups than `before` were asked for.
    fn drop_group_orders(&mut self, before: Epoch) {
        let old = |order: Order| match order {
            Order::Form { epoch } | Order::Reduce { epoch } | Order::Solve { epoch, .. } => epoch < before,
            _ => false,
        };
        self.queue.retain(|c| !old(c.order()));
        self.running = self.running.filter(|(order, _)| !old(*order));
        self.show_in_hand();
    }

    /// Starts a newer tally from zero.
    fn start_tally(&mut self, tally: Tally, package: Option<PackageId>, exponents: &Exponents) {
        if tally <= self.status.sums.tally {
            return;
        }
        self.status.sums = Sums { tally, package, ..Sums::default() };
        self.counts.clear();
        self.exponents.clone_from(exponents);
        let old = |order: Order| match order {
            Order::Calibrate { tally: of, .. } | Order::Restore { tally: of, .. } => of < tally,
            _ => false,
        };
        self.queue.retain(|c| !old(c.order()));
        self.running = self.running.filter(|(order, _)| !old(*order));
        self.show_in_hand();
    }

    fn show_in_hand(&mut self) {
        self.status.in_hand = self.queue.iter().map(Command::order).collect();
    }
}

impl SimulatedProcess {
    pub(crate) fn new(speed: u64, pace: u64, hardware: &'static str) -> Self {
        let (paused_until, cut_until, stands_by_until) = (0, 0, 0);
        Self { life: None, lives: 0, paused_until, cut_until, stands_by_until, speed, hardware, pace }
    }

    /// A shard's time, as the worker reports it.
    pub(crate) fn pace(&self) -> Duration {
        Duration::from_millis(self.pace)
    }
}

/// Why a worker refuses a group: a sound coordinator gets it only for groups that it has given up.
pub(crate) const NOT_THE_SUMS: &str = "not the sums asked for";

//! What a worker was asked to do and how far it is. Commands come in, the next one to follow goes out, and the [`Status`] shows all of
//! it. There is no clock, thread or device here.

mod group;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::message::{
    Command, Encoding, Exponents, Fault, Group, GroupStage, Hello, Opening, Order, PartId, SavedSums, Solved,
    Status, Sums, Tally, Trouble,
};
use obsdiff_proto::{Epoch, PackageId, ShardId, WorkerId};

use group::group_epoch;

/// A worker that leaves ends its shard where shards take it no longer: Kubernetes gives it five minutes for that and for saving.
const LONGEST_END: Duration = Duration::from_secs(4 * 60);

/// A worker's orders and how far it is with them.
#[derive(Debug)]
pub(super) struct Orders {
    machine: Machine,
    /// The id that the coordinator gave the worker in the open session.
    worker: Option<WorkerId>,
    pub(super) status: Status,
    /// The exponents of the sums.
    exponents: Exponents,
    /// Orders taken and not finished, in order of arrival.
    queue: Vec<Command>,
    /// The order that the device follows; none once that order is obsolete.
    running: Option<Order>,
    /// The running order has begun to add to the sums.
    adding: bool,
    /// The group of `status.group`, while there is one.
    group: Option<Arc<Group>>,
    /// The group whose reductions run, at the same time as the device's order.
    reducing: Option<Epoch>,
    troubles: u64,
}

/// A worker's process and the machine that it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Drawn at random when the process started.
    pub instance: u128,
    /// Measured speed in 10^6 floating-point operations per second: of bf16 products on its GPU, or else of f32 ones on its processor.
    pub speed: u64,
    /// The kind of its hardware: machines of one kind compute the same bits.
    pub hardware: String,
}

/// What the caller has to do after a command was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, except to look at the queue.
    None,
    /// Close groups up to an epoch.
    Leave(Epoch),
    /// Close earlier groups and join this one as this rank.
    Join(Arc<Group>, usize),
}

impl Orders {
    pub(super) fn new(machine: Machine) -> Self {
        Self {
            machine,
            worker: None,
            status: Status { preparing: true, ..Status::default() },
            exponents: Exponents::new(),
            queue: Vec::new(),
            running: None,
            adding: false,
            group: None,
            reducing: None,
            troubles: 0,
        }
    }

    /// Begins a session: drops the orders that are not started, and returns what the worker holds.
    pub(super) fn hello(&mut self) -> Hello {
        self.worker = None;
        let begun = [self.running, self.reducing.map(|epoch| Order::Reduce { epoch })];
        self.queue.retain(|c| begun.contains(&Some(c.order())));
        self.show_in_hand();
        Hello {
            instance: self.machine.instance,
            speed: self.machine.speed,
            hardware: self.machine.hardware.clone(),
            exponents: self.exponents.clone(),
            status: self.status.clone(),
        }
    }

    /// The worker takes orders from now on. It has found the conditioning of every prompt.
    pub(super) fn ready(&mut self) {
        self.status.preparing = false;
        self.status.encoding = Encoding::Done;
    }

    /// The worker can be asked to encode from now on.
    pub(super) fn can_encode(&mut self) {
        self.status.encoding = self.status.encoding.max(Encoding::Ready);
    }

    /// Begins to encode if the worker was asked to. Returns whether everything is in the store already; none where it was not asked.
    pub(super) fn begin_encoding(&mut self) -> Option<bool> {
        let is_stored = self.queue.iter().find_map(|command| match command {
            Command::Encode { is_stored } => Some(*is_stored),
            _ => None,
        })?;
        self.running = Some(Order::Encode);
        self.status.progress += 1;
        Some(is_stored)
    }

    /// The conditioning of every prompt is in the store.
    pub(super) fn encoded(&mut self) {
        self.status.encoding = Encoding::Done;
        self.finish(Order::Encode);
    }

    /// Sets the worker's id in this session.
    pub(super) fn set_worker_id(&mut self, worker: WorkerId) {
        self.worker = Some(worker);
    }

    /// The worker wants to leave. With `saves` it saves its sums before, unless they are saved, a group that works has them, or its shard takes
    /// too long: a shard that is added in part spoils them.
    pub(super) fn drain(&mut self, saves: bool) {
        let Status { sums, applied, group, .. } = &self.status;
        let open = |stage: &GroupStage| !stage.is_closed();
        let reduced = self.group.as_ref().is_some_and(|group| group.package.0 >= *applied)
            && group.as_ref().is_some_and(|group| open(&group.stage));
        let adds = matches!(self.running, Some(Order::Calibrate { .. } | Order::Restore { .. }));
        let ends_soon = !matches!(self.running, Some(Order::Calibrate { .. }))
            || self.status.pace.is_some_and(|pace| pace <= LONGEST_END);
        let stored = sums.saved.as_ref().is_some_and(|saved| saved.shards == sums.held);
        let unsaved = adds || !(sums.held.is_empty() || stored);
        self.status.saving = saves && unsaved && ends_soon && !reduced && !sums.spoiled;
        self.status.draining = true;
    }

    /// Whether the device is to save the sums before all else.
    pub(super) fn saves_now(&self) -> bool {
        self.status.saving && self.reducing.is_none()
    }

    /// The sums are saved before the worker leaves, or cannot be.
    pub(super) fn end_saving(&mut self) {
        self.status.saving = false;
        self.status.progress += 1;
    }

    /// Takes a command. Taking the same one again changes nothing.
    pub(super) fn take(&mut self, command: Command) -> Effect {
        let order = command.order();
        if order != Order::Pilot {
            self.status.pilot = None;
        }
        if self.status.in_hand.contains(&order) {
            return Effect::None;
        }
        match &command {
            Command::Abort { epoch } => return self.abort(*epoch),
            Command::Discard { tally } => {
                self.start_tally(*tally, None, &Exponents::new());
                return Effect::None;
            }
            Command::Form { tally, holds, group } => return self.form(*tally, holds, group.clone()),
            Command::Calibrate { tally, shard, opening } if !self.can_add(*tally, *shard, opening) => {
                return Effect::None;
            }
            Command::Restore { tally, saved, opening } if !self.can_add(*tally, saved.first(), opening) => {
                return Effect::None;
            }
            Command::Reduce { epoch } if self.is_over(*epoch) || self.is_reduced(*epoch) => {
                return Effect::None;
            }
            // Grams that arrived stay after their group has failed.
            Command::Solve { epoch, part } if self.is_over(*epoch) && !self.has_arrived(*epoch, part) => {
                return Effect::None;
            }
            Command::Solve { part, .. } if self.status.solved.contains_key(&part.id) => return Effect::None,
            Command::Apply { packages } if *packages <= self.status.applied => return Effect::None,
            Command::Pilot { .. } if self.status.pilot.is_some() || self.status.applied > 0 => {
                return Effect::None;
            }
            Command::Export if self.status.exported => return Effect::None,
            Command::Encode { .. } if self.status.encoding == Encoding::Done => return Effect::None,
            _ => {}
        }
        self.queue.push(command);
        self.show_in_hand();
        Effect::None
    }

    /// Whether the sums still lack this shard. Starts their tally where it is newer.
    fn can_add(&mut self, tally: Tally, shard: ShardId, opening: &Opening) -> bool {
        self.start_tally(tally, Some(opening.package), &opening.exponents);
        let sums = &mut self.status.sums;
        if tally < sums.tally || sums.spoiled || sums.held.contains(&shard) {
            return false;
        }
        // A tally may begin without a package: what is added first then sets the package.
        if sums.held.is_empty() {
            sums.package = Some(opening.package);
            self.exponents.clone_from(&opening.exponents);
        }
        true
    }

    /// The next order that can be followed now; it then counts as running. A reduction goes first, because other workers wait for it.
    pub(super) fn next(&mut self) -> Option<Command> {
        self.discard_unreachable();
        let reduces = |c: &&Command| matches!(c, Command::Reduce { .. });
        let mut ready = self.queue.iter().filter(|c| self.is_ready(c));
        let next = ready.clone().find(reduces).or_else(|| ready.next()).cloned()?;
        (self.running, self.adding) = (Some(next.order()), false);
        self.status.progress += 1;
        Some(next)
    }

    fn is_ready(&self, command: &Command) -> bool {
        let group = self.status.group.as_ref();
        match command {
            // While the engine's sums are being read, only solving is allowed.
            _ if self.reducing.is_some() && !matches!(command, Command::Solve { .. }) => false,
            Command::Calibrate { opening, .. } | Command::Restore { opening, .. } => {
                opening.package.0 == self.status.applied && !self.status.saving
            }
            Command::Reduce { epoch } => {
                group.is_some_and(|g| g.epoch == *epoch && g.stage == GroupStage::Formed)
            }
            Command::Solve { epoch, part } => self.has_arrived(*epoch, part),
            Command::Form { .. } => false,
            _ => true,
        }
    }

    /// Drops the orders that can never be followed any more.
    fn discard_unreachable(&mut self) {
        let (applied, tally, spoiled) = {
            let Status { applied, sums, .. } = &self.status;
            (*applied, sums.tally, sums.spoiled)
        };
        let ended = self.group.as_ref().filter(|g| g.package.0 < applied).map(|g| g.epoch);
        self.queue.retain(|c| match c {
            Command::Apply { packages } => *packages > applied,
            Command::Calibrate { tally: of, opening, .. } | Command::Restore { tally: of, opening, .. } => {
                *of >= tally && opening.package.0 >= applied && !spoiled
            }
            Command::Form { .. } | Command::Reduce { .. } | Command::Solve { .. } => {
                ended.is_none_or(|ended| group_epoch(c.order()).is_none_or(|epoch| epoch > ended))
            }
            _ => true,
        });
        self.show_in_hand();
    }

    /// Whether an order is the device's current one, and not obsolete.
    pub(super) fn is_running(&self, order: Order) -> bool {
        self.running == Some(order)
    }

    /// The process's number, unlike that of any other.
    pub(super) const fn instance(&self) -> u128 {
        self.machine.instance
    }

    /// Ends an order that is done or has failed.
    fn finish(&mut self, order: Order) {
        self.queue.retain(|c| c.order() != order);
        self.adding &= !self.is_running(order);
        self.running = self.running.filter(|running| *running != order);
        self.status.progress += 1;
        self.show_in_hand();
    }

    /// A shard's observations, or saved sums, come into the sums from now on, which are of no use if that fails.
    pub(super) fn begin_adding(&mut self) {
        self.adding = true;
    }

    /// Ends an order that failed, and reports why.
    pub(super) fn mark_failed(&mut self, order: Order, fault: Fault) {
        let adds = matches!(order, Order::Calibrate { .. } | Order::Restore { .. });
        if adds && self.is_running(order) && self.adding {
            self.status.sums.spoiled = true;
        }
        self.troubles += 1;
        self.status.trouble = Some(Trouble { serial: self.troubles, order, fault });
        self.finish(order);
    }

    pub(super) fn piloted(&mut self, exponents: Exponents) {
        self.status.pilot = Some(Arc::new(exponents));
        self.finish(Order::Pilot);
    }

    /// All of a shard is added to the sums, which took this long.
    pub(super) fn calibrated(&mut self, tally: Tally, shard: ShardId, took: Duration) {
        if self.is_running(Order::Calibrate { tally, shard }) {
            self.status.sums.held.insert(shard);
        }
        self.status.pace = Some(took);
        self.finish(Order::Calibrate { tally, shard });
    }

    /// All of some saved sums is added.
    pub(super) fn restored(&mut self, tally: Tally, saved: &Arc<SavedSums>) {
        let order = Order::Restore { tally, first: saved.first() };
        if self.is_running(order) {
            let sums = &mut self.status.sums;
            if sums.held.is_empty() {
                sums.saved = Some(Arc::clone(saved));
            }
            sums.held.extend(&saved.shards);
        }
        self.finish(order);
    }

    /// The sums, as far as they are of these shards, are in the store.
    pub(super) fn saved(&mut self, tally: Tally, saved: SavedSums) {
        let sums = &mut self.status.sums;
        if sums.tally == tally && saved.shards.is_subset(&sums.held) {
            sums.saved = Some(Arc::new(saved));
        }
        self.status.progress += 1;
    }

    pub(super) fn solved(&mut self, epoch: Epoch, part: PartId, solved: Solved) {
        let order = Order::Solve { epoch, part };
        if self.is_running(order) {
            self.status.solved.insert(part, solved);
        }
        self.finish(order);
    }

    /// Begins to load other weights, for which the sums of a group that is still open are of no use. Returns the group to leave, if there is
    /// one.
    pub(super) fn begin_apply(&mut self) -> Option<Epoch> {
        let open = |stage: &GroupStage| matches!(stage, GroupStage::Forming | GroupStage::Formed);
        let epoch = self.status.group.as_ref().filter(|g| open(&g.stage)).map(|g| g.epoch)?;
        self.abort(epoch);
        Some(epoch)
    }

    /// Records that this many packages are applied. `kept`: the sums serve the next package as well.
    pub(super) fn applied(&mut self, packages: u32, kept: bool) {
        self.status.applied = packages;
        self.status.solved.clear();
        let sums = &mut self.status.sums;
        if kept {
            sums.package = sums.package.map(|_| PackageId(packages));
        } else {
            (sums.spoiled, sums.saved) = (true, None);
            sums.held.clear();
        }
        self.finish(Order::Apply { packages });
    }

    pub(super) fn exported(&mut self) {
        self.status.exported = true;
        self.finish(Order::Export);
    }

    /// Counts a step of work, which shows that the worker is not stuck.
    pub(super) fn advance(&mut self) {
        self.status.progress += 1;
    }

    /// Starts a tally from zero, if it is newer than the present one.
    fn start_tally(&mut self, tally: Tally, package: Option<PackageId>, exponents: &Exponents) {
        if tally <= self.status.sums.tally {
            return;
        }
        self.status.sums = Sums { tally, package, held: BTreeSet::new(), spoiled: false, saved: None };
        self.exponents.clone_from(exponents);
        let old = |order: Order| matches!(order, Order::Calibrate { tally: of, .. } | Order::Restore { tally: of, .. } if of < tally);
        self.queue.retain(|c| !old(c.order()));
        self.running = self.running.filter(|order| !old(*order));
        self.show_in_hand();
    }

    fn show_in_hand(&mut self) {
        self.status.in_hand = self.queue.iter().map(Command::order).collect();
    }
}

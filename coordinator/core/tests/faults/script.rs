//! A core and workers that follow a script, one line of a test at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{
    Action, Command, Core, Dismissal, Encoding, Event, Group, GroupStage, GroupStatus, Hello, Input, Job,
    Options, Order, Outcome, Receipt, Solved, Status, Sums,
};
use obsdiff_proto::{
    Inventory, Linear, LinearId, LinearTarget, Package, PackageId, Plan, Shard, ShardId, Site, SiteId,
    StreamId, Target, WorkerId,
};

/// A core, its clock, and what its workers say of themselves.
pub(crate) struct Script {
    pub(crate) core: Core,
    pub(crate) now: Duration,
    pub(crate) workers: BTreeMap<u64, Status>,
    /// Actions since the last look.
    pub(crate) actions: Vec<Action>,
    inventory: Arc<Inventory>,
    plan: Arc<Plan>,
    /// The last group that anybody was asked to join.
    group: Option<Arc<Group>>,
}

/// The kind of hardware of workers, where it does not matter.
pub(crate) const HARDWARE: &str = "a processor";

/// Two packages of one site each, four shards.
pub(crate) fn job() -> Job {
    let site = |i: u32| Site {
        name: format!("l{i}"),
        width: 4,
        stream: StreamId(0),
        joined: Vec::new(),
        linears: vec![LinearId(i)],
    };
    let linear = |i: u32| Linear { name: format!("l{i}"), rows: 4, bias: true, site: SiteId(i) };
    let target = |i: u32| LinearTarget { linear: LinearId(i), target: Target::NToM { n: 2, m: 4 } };
    let package = |i: u32| Package {
        id: PackageId(i),
        units: 0..0,
        sites: vec![SiteId(i)],
        linears: vec![target(i)],
        survey: false,
    };
    let shard = |i: u32| Shard { id: ShardId(i), prompts: 4 * i..4 * i + 4 };
    Job {
        inventory: Arc::new(Inventory {
            parameters: 32,
            sites: (0..2).map(site).collect(),
            linears: (0..2).map(linear).collect(),
            ..Inventory::default()
        }),
        plan: Arc::new(Plan {
            packages: (0..2).map(package).collect(),
            shards: (0..4).map(shard).collect(),
            budget: None,
        }),
        committed: 0,
        exponents: Some([(SiteId(0), 12), (SiteId(1), 12)].into()),
        hardware: None,
        saved: Vec::new(),
        life: 0,
        options: Options { most_leases: 2, ..Options::default() },
    }
}

impl Script {
    pub(crate) fn new(job: Job) -> Self {
        let (inventory, plan) = (job.inventory.clone(), job.plan.clone());
        let core = Core::new(job, Duration::ZERO).unwrap();
        Self {
            core,
            now: Duration::ZERO,
            workers: BTreeMap::new(),
            actions: Vec::new(),
            inventory,
            plan,
            group: None,
        }
    }

    /// One step, with every invariant checked after it.
    pub(crate) fn step(&mut self, input: Input) {
        let actions = self.core.step(self.now, input);
        self.core.check(&actions).unwrap();
        self.actions.extend(actions);
    }

    pub(crate) fn join(&mut self, worker: u64, status: Status) {
        self.join_on(HARDWARE, worker, status);
    }

    /// A worker on this kind of hardware joins.
    pub(crate) fn join_on(&mut self, hardware: &str, worker: u64, status: Status) {
        let exponents = self.core.view().package.map(|p| [(SiteId(p.0), 12)].into()).unwrap_or_default();
        self.workers.insert(worker, status.clone());
        let (instance, hardware) = (u128::from(worker), hardware.to_owned());
        let hello = Hello { instance, speed: 1000, hardware, exponents, status };
        self.step(Input::Joined { worker: WorkerId(worker), hello: Box::new(hello) });
    }

    /// A worker that has just started.
    pub(crate) fn start(&mut self, worker: u64) {
        self.join(worker, Status::default());
    }

    pub(crate) fn report(&mut self, worker: u64) {
        let status = Box::new(self.workers[&worker].clone());
        self.step(Input::Reported { worker: WorkerId(worker), status });
    }

    pub(crate) fn leave(&mut self, worker: u64) {
        self.step(Input::Left { worker: WorkerId(worker), why: "connection lost".to_owned() });
    }

    /// Lets time pass with everybody silent but those named.
    pub(crate) fn pass(&mut self, seconds: u64, speaking: &[u64]) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            speaking.iter().for_each(|w| self.report(*w));
            self.step(Input::Tick);
        }
    }

    /// The actions since the last look.
    pub(crate) fn look(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Commands to a worker since the last look, which stay to be looked at.
    pub(crate) fn commands(&self, to: u64) -> Vec<Command> {
        let of = |action: &Action| match action {
            Action::Send { worker, command } if worker.0 == to => Some(command.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(of).collect()
    }

    pub(crate) fn orders(&self, to: u64) -> Vec<Order> {
        self.commands(to).iter().map(Command::order).collect()
    }

    pub(crate) fn dismissal(&self, of: u64) -> Option<Dismissal> {
        self.actions.iter().find_map(|action| match action {
            Action::Dismiss { worker, why } if worker.0 == of => Some(why.clone()),
            _ => None,
        })
    }

    /// How many groups formed since the last look.
    pub(crate) fn groups(&self) -> usize {
        self.events().iter().filter(|event| matches!(event, Event::Grouped { .. })).count()
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.core.outcome().cloned()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let of = |action: &Action| if let Action::Emit(event) = action { Some(event.clone()) } else { None };
        self.actions.iter().filter_map(of).collect()
    }

    /// A worker does what it was sent and has not done yet, all but the orders that `but` names, and reports.
    pub(crate) fn obey(&mut self, worker: u64, but: impl Fn(&Order) -> bool) {
        for command in self.commands(worker) {
            if !but(&command.order()) {
                self.follow(worker, &command);
            }
        }
        self.actions.retain(|a| !matches!(a, Action::Send { worker: to, .. } if to.0 == worker));
        self.report(worker);
    }

    fn follow(&mut self, worker: u64, command: &Command) {
        let shards = self.core.view().shards;
        let Some(status) = self.workers.get_mut(&worker) else { return };
        let grouped = |epoch, stage, received| Some(GroupStatus { epoch, stage, received });
        match command {
            Command::Calibrate { tally, shard, opening } => {
                if status.sums.tally != *tally {
                    status.sums = Sums { tally: *tally, ..Sums::default() };
                }
                status.sums.package = Some(opening.package);
                status.sums.held.insert(*shard);
            }
            Command::Restore { tally, saved, opening } => {
                if status.sums.tally != *tally {
                    status.sums = Sums { tally: *tally, ..Sums::default() };
                }
                status.sums.package = Some(opening.package);
                status.sums.held.extend(&saved.shards);
            }
            Command::Discard { tally } => status.sums = Sums { tally: *tally, ..Sums::default() },
            Command::Form { group, .. } => {
                status.group = grouped(group.epoch, GroupStage::Formed, [].into());
                self.group = Some(group.clone());
            }
            Command::Abort { epoch } => status.group = grouped(*epoch, GroupStage::Aborted, [].into()),
            Command::Reduce { epoch } => {
                let reductions = self.group.iter().flat_map(|group| &group.reductions);
                let received = reductions.filter(|r| r.roots.contains(&WorkerId(worker))).map(|r| r.site);
                status.group = grouped(*epoch, GroupStage::Reduced, received.collect());
            }
            Command::Solve { part, .. } => {
                let exponent = if shards > 0 { 12 } else { 0 };
                let sites = part.slices.iter().map(|slice| self.inventory.linear(slice.linear).site);
                let exponents = sites.map(|site| (site, exponent)).collect();
                status.solved.insert(part.id, Solved { exponents, receipt: Receipt("stored".into()) });
            }
            Command::Apply { packages } => {
                let kept = *packages == status.applied + 1 && self.plan.keeps_sums(PackageId(*packages));
                status.applied = *packages;
                status.solved.clear();
                if kept {
                    status.sums.package = status.sums.package.map(|_| PackageId(*packages));
                } else {
                    status.sums.held.clear();
                }
            }
            Command::Pilot { .. } => {
                status.pilot = Some(Arc::new([(SiteId(0), 12), (SiteId(1), 12)].into()));
            }
            Command::Export => status.exported = true,
            Command::Encode { .. } => status.encoding = Encoding::Done,
        }
    }

    /// Everybody obeys until nothing more is asked; manifests are stored.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100 {
            let mut quiet = true;
            for worker in self.workers.keys().copied().collect::<Vec<_>>() {
                if !self.commands(worker).is_empty() {
                    quiet = false;
                    self.obey(worker, |_| false);
                }
            }
            quiet &= !self.store();
            if quiet {
                return;
            }
        }
        panic!("no end of orders");
    }

    /// Stores a manifest that waits for it; says whether one did.
    pub(crate) fn store(&mut self) -> bool {
        let Some(at) = self.actions.iter().position(|a| matches!(a, Action::Commit(_))) else { return false };
        if let Action::Commit(manifest) = self.actions.remove(at) {
            self.step(Input::Committed { package: manifest.package });
        }
        true
    }

    /// Shards leased to or held by a worker.
    pub(crate) fn kept(&self, worker: u64) -> usize {
        let workers = self.core.view().workers;
        workers.iter().find(|w| w.worker.0 == worker).map_or(0, |w| w.leased + w.held)
    }
}

//! One run: hosts, a network, faults at their times, and what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use obsdiff_core::Outcome;
use obsdiff_tests::Prng;
use turmoil::Sim;

use crate::faults::{InjectedFault, name};
use crate::hosts::{COORDINATOR, LINGER, Stage, WATCHER, Worker, coordinate, watch};
use crate::job::{Shape, Weights};
use crate::pruning::Pruning;
use crate::puppet;

/// A step of the simulated network.
const TICK: Duration = Duration::from_millis(10);
/// Simulated time by which a run has ended, whatever happened.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long messages take at most, where nothing slows them down.
const LATENCY: Duration = Duration::from_millis(40);
/// How often a message is lost on a link that loses some.
const LOSS: f64 = 0.05;

/// What came of a run.
pub(crate) struct Ended {
    /// None where the run took too long.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) weights: Vec<Weights>,
    pub(crate) written: Option<Vec<u8>>,
    /// Simulated time.
    pub(crate) took: Duration,
    pub(crate) trace: Vec<String>,
    /// Faults that struck.
    pub(crate) faults: Vec<&'static str>,
}

/// What is run under a seed.
pub(crate) struct Plot {
    seed: u64,
    pub(crate) shape: Shape,
    /// The job that is truly pruned, in place of one of that shape.
    pruning: Option<Arc<Pruning>>,
    /// When each worker starts.
    workers: Vec<Duration>,
    faults: Vec<(u64, InjectedFault)>,
}

impl Plot {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Prng::new(seed);
        let shape = Shape::draw(&mut rng);
        let late = |rng: &mut Prng| if rng.once_in(4) { rng.within(100..12_000) } else { rng.within(0..100) };
        let workers: Vec<_> = (0..rng.within(2..5)).map(|_| Duration::from_millis(late(&mut rng))).collect();
        let faults = InjectedFault::draw(&mut rng, workers.len());
        let shape = if rng.once_in(3) { shape.with_budget() } else { shape };
        Self { seed, shape, pruning: None, workers, faults }
    }

    /// The same job, with one worker and no fault.
    pub(crate) fn undisturbed(shape: Shape) -> Self {
        Self { seed: 0, shape, pruning: None, workers: vec![Duration::ZERO], faults: Vec::new() }
    }

    /// The same hosts and faults on a job that is truly pruned.
    pub(crate) fn pruning(self, job: &Arc<Pruning>) -> Self {
        Self { pruning: Some(job.clone()), ..self }
    }
}

/// A run as it goes.
struct World<'a> {
    sim: Sim<'a>,
    stage: Stage,
    workers: Vec<Worker>,
    /// Faults that have not struck.
    faults: VecDeque<(Duration, InjectedFault)>,
    /// Faults that are not over.
    open: BTreeMap<(Duration, usize), InjectedFault>,
    struck: Vec<&'static str>,
}

/// Runs a plot to its end.
pub(crate) fn run(plot: &Plot) -> Ended {
    let mut world = World::new(plot);
    let mut end = LIMIT;
    while world.sim.elapsed() < end {
        world.play();
        if end == LIMIT && world.stage.outcome.lock().unwrap().is_some() {
            // For those that are notified.
            end = world.sim.elapsed() + LINGER;
        }
    }
    let outcome = world.stage.outcome.lock().unwrap().clone();
    Ended {
        outcome,
        weights: world.stage.store.committed(),
        written: world.stage.written.lock().unwrap().clone(),
        took: world.sim.elapsed(),
        trace: world.stage.trace.lines(),
        faults: world.struck,
    }
}

impl World<'_> {
    fn new(plot: &Plot) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(plot.seed)
            .epoch(UNIX_EPOCH)
            .simulation_duration(2 * LIMIT)
            .tick_duration(TICK)
            .tcp_capacity(1024)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY)
            .build();
        let stage = Stage::new(plot.seed, plot.shape, plot.pruning.clone());
        let coordinator = stage.clone();
        sim.host(COORDINATOR, move || coordinate(coordinator.clone()));
        let watcher = stage.clone();
        sim.host(WATCHER, move || watch(watcher.clone()));
        let plan = Arc::new(plot.shape.plan());
        let worker = |(number, late): (u64, &Duration)| Worker {
            number,
            stage: stage.clone(),
            plan: plan.clone(),
            late: *late,
            wires: Default::default(),
            lives: Default::default(),
            worker_state: Default::default(),
        };
        let workers: Vec<_> = (1..).zip(&plot.workers).map(worker).collect();
        for worker in &workers {
            let host = worker.clone();
            sim.host(worker.name(), move || host.clone().work());
        }
        let mut faults: Vec<_> =
            plot.faults.iter().map(|(at, fault)| (Duration::from_millis(*at), fault.clone())).collect();
        faults.sort_by_key(|(at, _)| *at);
        Self { sim, stage, workers, faults: faults.into(), open: BTreeMap::new(), struck: Vec::new() }
    }

    /// A step of the network and of all hosts.
    fn play(&mut self) {
        let now = self.sim.elapsed();
        while let Some((_, fault)) = self.faults.pop_front_if(|(at, _)| *at <= now) {
            self.stage.trace.at(now, "fault", format_args!("{fault:?}"));
            self.struck.push(fault.kind());
            self.strike(&fault);
            self.open.insert((now + fault.length(), self.struck.len()), fault);
        }
        while let Some(entry) = self.open.first_entry().filter(|entry| entry.key().0 <= now) {
            let fault = entry.remove();
            self.stage.trace.at(now, "fault", format_args!("ends: {fault:?}"));
            self.heal(&fault);
        }
        let stepped = self.sim.step();
        assert_eq!(puppet::take_panics(), 0, "a worker's thread panicked");
        stepped.unwrap();
    }

    fn strike(&mut self, fault: &InjectedFault) {
        match fault {
            InjectedFault::Crash { host, .. } => self.calmly(host, |sim| sim.crash(host.as_str())),
            InjectedFault::Partition { a, b, .. } => self.sim.partition(a.as_str(), b.as_str()),
            InjectedFault::OneWay { from, to, .. } => self.sim.partition_oneway(from.as_str(), to.as_str()),
            InjectedFault::Isolate { host, .. } => {
                self.others(host).iter().for_each(|other| self.sim.partition(host.as_str(), other.as_str()));
            }
            InjectedFault::Hold { a, b, .. } => self.sim.hold(a.as_str(), b.as_str()),
            InjectedFault::Slow { a, b, .. } | InjectedFault::Loss { a, b, .. } => {
                self.tune(a, b, Some(fault))
            }
            InjectedFault::Disconnect { worker } => self.workers[*worker].wires.cut(),
            InjectedFault::Drain { worker } => {
                let worker_state = self.workers[*worker].worker_state.lock().unwrap().clone();
                worker_state.iter().for_each(|worker_state| worker_state.drain());
            }
            InjectedFault::StoreDown { .. } => self.stage.store.fail(true),
        }
    }

    fn heal(&mut self, fault: &InjectedFault) {
        match fault {
            InjectedFault::Crash { host, .. } => self.calmly(host, |sim| sim.bounce(host.as_str())),
            InjectedFault::Isolate { host, .. } => {
                self.others(host).iter().for_each(|other| self.repair(host, other))
            }
            InjectedFault::Partition { a, b, .. }
            | InjectedFault::OneWay { from: a, to: b, .. }
            | InjectedFault::Hold { a, b, .. } => {
                self.repair(a, b);
            }
            InjectedFault::Slow { a, b, .. } | InjectedFault::Loss { a, b, .. } => self.tune(a, b, None),
            InjectedFault::Disconnect { .. } | InjectedFault::Drain { .. } => {}
            InjectedFault::StoreDown { .. } => self.stage.store.fail(false),
        }
    }

    /// Makes a link as slow and lossy as its open faults say, and a new one.
    fn tune(&mut self, a: &str, b: &str, new: Option<&InjectedFault>) {
        self.sim.set_link_latency(a, b, Duration::from_millis(1));
        self.sim.set_link_max_message_latency(a, b, LATENCY);
        self.sim.set_link_fail_rate(a, b, 0.0);
        for fault in self.open.values().chain(new) {
            match fault {
                InjectedFault::Slow { a: c, b: d, latency, .. } if is_link((a, b), (c, d)) => {
                    self.sim.set_link_latency(a, b, Duration::from_millis(*latency));
                }
                InjectedFault::Loss { a: c, b: d, .. } if is_link((a, b), (c, d)) => {
                    self.sim.set_link_fail_rate(a, b, LOSS);
                }
                _ => {}
            }
        }
    }

    /// Ends a host's process. The runtime drops its tasks, and they their connections, in an order that the seed does not decide:
    /// chance must have no say in what is sent by that.
    fn calmly(&mut self, host: &str, end: impl FnOnce(&mut Sim<'_>)) {
        let others = self.others(host);
        for other in &others {
            self.sim.set_link_latency(host, other.as_str(), LATENCY / 2);
            self.sim.set_link_fail_rate(host, other.as_str(), 0.0);
        }
        end(&mut self.sim);
        others.iter().for_each(|other| self.tune(host, other, None));
    }

    /// What is held comes, and everything gets through again, whatever else was wrong with the link.
    fn repair(&self, a: &str, b: &str) {
        self.sim.release(a, b);
        self.sim.repair(a, b);
    }

    fn others(&self, host: &str) -> Vec<String> {
        let workers = (0..self.workers.len()).map(name);
        workers.chain([COORDINATOR.to_owned(), WATCHER.to_owned()]).filter(|other| other != host).collect()
    }
}

/// Whether two links are the same.
fn is_link((a, b): (&str, &str), (c, d): (&str, &str)) -> bool {
    (a, b) == (c, d) || (a, b) == (d, c)
}

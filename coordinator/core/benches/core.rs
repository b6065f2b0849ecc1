//! What a large job costs its coordinator: 1,000 workers, 10,000 prompts, 40 packages.
//!
//! Plays the whole job, every worker answering each order and beating every two seconds, and prints the CPU time of a step and the
//! memory that the core and its messages take at most; then measures a beat and a finished shard by themselves.

#![allow(clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use obsdiff_core::{
    Action, Command, Core, Encoding, GroupStage, GroupStatus, Hello, Input, Job, Options, Outcome, Receipt,
    Solved, Status, Sums,
};
use obsdiff_proto::{
    Inventory, Linear, LinearId, LinearTarget, Package, PackageId, Plan, Shard, ShardId, Site, SiteId,
    StreamId, Target, WorkerId,
};

/// Counts the bytes that are allocated and not freed.
struct CountedAllocator;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came; only numbers are kept beside it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for CountedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(taken, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountedAllocator = CountedAllocator;

const WORKERS: u64 = 1000;
const SHARDS: u32 = 2500;
const PACKAGES: u32 = 40;
/// Sites of a package; FLUX has about 24 in each of 40 packages.
const SITES: u32 = 24;

fn job() -> Job {
    let sites = PACKAGES * SITES;
    let site = |i: u32| Site {
        name: format!("blocks.{i}"),
        width: 3072,
        stream: StreamId(0),
        joined: Vec::new(),
        linears: vec![LinearId(i)],
    };
    let linear = |i: u32| Linear { name: format!("blocks.{i}"), rows: 3072, bias: true, site: SiteId(i) };
    let target = |i: u32| LinearTarget { linear: LinearId(i), target: Target::NToM { n: 2, m: 4 } };
    let package = |p: u32| Package {
        id: PackageId(p),
        units: 0..0,
        sites: (p * SITES..(p + 1) * SITES).map(SiteId).collect(),
        linears: (p * SITES..(p + 1) * SITES).map(target).collect(),
        survey: false,
    };
    let shard = |i: u32| Shard { id: ShardId(i), prompts: 4 * i..4 * i + 4 };
    Job {
        inventory: Arc::new(Inventory {
            sites: (0..sites).map(site).collect(),
            linears: (0..sites).map(linear).collect(),
            ..Inventory::default()
        }),
        plan: Arc::new(Plan {
            packages: (0..PACKAGES).map(package).collect(),
            shards: (0..SHARDS).map(shard).collect(),
            budget: None,
        }),
        committed: 0,
        exponents: Some((0..sites).map(|s| (SiteId(s), 12)).collect()),
        hardware: None,
        saved: Vec::new(),
        life: 0,
        options: Options::default(),
    }
}

/// A core with its workers, and how long its steps took.
struct TimedCore {
    core: Core,
    now: Duration,
    workers: Vec<Status>,
    todo: VecDeque<(WorkerId, Command)>,
    beats: u64,
    steps: usize,
    /// Nanoseconds of each step, the least of all plays so far: another play takes the same steps, and what the machine did besides
    /// falls away.
    nanos: Vec<u32>,
    outcome: Option<Outcome>,
}

impl TimedCore {
    /// Every worker has joined.
    fn new(nanos: Vec<u32>) -> Self {
        let mut play = Self {
            core: Core::new(job(), Duration::ZERO).expect("the job makes sense"),
            now: Duration::ZERO,
            workers: vec![Status::default(); WORKERS as usize],
            todo: VecDeque::new(),
            beats: 0,
            steps: 0,
            nanos,
            outcome: None,
        };
        for i in 0..WORKERS {
            let hello = Hello {
                instance: i.into(),
                speed: 1000 + i,
                hardware: "a processor".to_owned(),
                exponents: Default::default(),
                status: Status::default(),
            };
            play.step(Input::Joined { worker: WorkerId(i), hello: Box::new(hello) });
        }
        play
    }

    fn step(&mut self, input: Input) {
        let start = Instant::now();
        let actions = self.core.step(self.now, input);
        let took = start.elapsed();
        let nanos = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        match self.nanos.get_mut(self.steps) {
            Some(least) => *least = nanos.min(*least),
            None => self.nanos.push(nanos),
        }
        self.steps += 1;
        for action in actions {
            match action {
                Action::Send { worker, command } => {
                    self.workers[worker.0 as usize].in_hand.insert(command.order());
                    self.todo.push_back((worker, command));
                }
                Action::Commit(manifest) => self.step(Input::Committed { package: manifest.package }),
                Action::Finish(outcome) => self.outcome = Some(outcome),
                _ => {}
            }
        }
    }

    fn report(&mut self, worker: WorkerId) {
        let status = Box::new(self.workers[worker.0 as usize].clone());
        self.step(Input::Reported { worker, status });
    }

    /// Follows the next order and reports; beats of all workers and a tick come in between, as many as time brings.
    fn follow_one(&mut self) -> bool {
        let Some((worker, command)) = self.todo.pop_front() else { return false };
        let status = &mut self.workers[worker.0 as usize];
        status.in_hand.remove(&command.order());
        let group = |epoch, stage, received| Some(GroupStatus { epoch, stage, received });
        match &command {
            Command::Calibrate { tally, shard, opening } => {
                if status.sums.tally != *tally {
                    status.sums = Sums { tally: *tally, package: Some(opening.package), ..Sums::default() };
                }
                status.sums.held.insert(*shard);
                status.pace = Some(Duration::from_secs(4));
            }
            Command::Restore { saved, .. } => status.sums.held.extend(&saved.shards),
            Command::Form { group: g, .. } => {
                status.group = group(g.epoch, GroupStage::Formed, Default::default())
            }
            Command::Reduce { epoch } => {
                let package = self.core.view().package.expect("a package is open").0;
                let sites = (package * SITES..(package + 1) * SITES).map(SiteId).collect();
                status.group = group(*epoch, GroupStage::Reduced, sites);
            }
            Command::Solve { part, .. } => {
                let receipt =
                    Receipt("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into());
                status.solved.insert(part.id, Solved { exponents: [(part.id.site, 12)].into(), receipt });
            }
            Command::Apply { packages } => {
                status.applied = *packages;
                status.solved.clear();
                status.sums.held.clear();
            }
            Command::Export => status.exported = true,
            Command::Encode { .. } => status.encoding = Encoding::Done,
            Command::Abort { .. } | Command::Discard { .. } | Command::Pilot { .. } => {}
        }
        self.report(worker);
        // A thousand workers that need 4 s a shard finish 250 of them a second, and beat 500 times: two beats an order.
        self.now += Duration::from_millis(4);
        for _ in 0..2 {
            self.beats += 1;
            self.report(WorkerId(self.beats % WORKERS));
        }
        if self.steps.is_multiple_of(375) {
            self.step(Input::Tick);
        }
        self.outcome.is_none()
    }
}

/// Plays the job three times, and prints its steps' times and the most memory.
fn whole_job() {
    let mut nanos = Vec::with_capacity(1_000_000);
    let mut memory = 0;
    for _ in 0..3 {
        let before = TAKEN.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let mut play = TimedCore::new(nanos);
        while play.follow_one() {}
        assert_eq!(play.outcome, Some(Outcome::Done));
        memory = PEAK.load(Ordering::Relaxed) - before;
        nanos = play.nanos;
    }
    nanos.sort_unstable();
    let mean = nanos.iter().map(|n| f64::from(*n)).sum::<f64>() / nanos.len() as f64 / 1e6;
    let at = |share: f64| f64::from(nanos[((nanos.len() - 1) as f64 * share) as usize]) / 1e6;
    let mib = memory as f64 / f64::from(1 << 20);
    println!(
        "{WORKERS} workers, {} prompts, {PACKAGES} packages: {} events, {mib:.1} MiB",
        SHARDS * 4,
        nanos.len()
    );
    println!(
        "ms an event: mean {mean:.4}, median {:.4}, 99.9% {:.4}, most {:.4}",
        at(0.5),
        at(0.999),
        at(1.0)
    );
    println!("of the budget of 1 ms an event: {mean:.4}; of 200 MiB: {:.4}", mib / 200.0);
}

fn events(c: &mut Criterion) {
    whole_job();
    let mut play = TimedCore::new(Vec::new());
    for _ in 0..1000 {
        play.follow_one();
    }
    let core = &play.core;
    let beat = Input::Reported { worker: WorkerId(500), status: Box::new(play.workers[500].clone()) };
    c.bench_function("beat of one of 1000 workers", |b| {
        b.iter_batched_ref(
            || (core.clone(), beat.clone()),
            |(core, beat)| core.step(play.now, beat.clone()),
            BatchSize::LargeInput,
        );
    });
    let (worker, shard) = play
        .todo
        .iter()
        .find_map(|(w, c)| if let Command::Calibrate { shard, .. } = c { Some((*w, *shard)) } else { None })
        .expect("somebody has a lease");
    let mut status = play.workers[worker.0 as usize].clone();
    status.sums.held.insert(shard);
    let done = Input::Reported { worker, status: Box::new(status) };
    c.bench_function("shard done by one of 1000 workers", |b| {
        b.iter_batched_ref(
            || (core.clone(), done.clone()),
            |(core, done)| core.step(play.now, done.clone()),
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, events);
criterion_main!(benches);

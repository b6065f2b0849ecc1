use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use obsdiff_coordinator::{CoreDriver, Records};
use obsdiff_core::{Exponents, Failure, Job, Options, Outcome};
use obsdiff_proto::message::Manifest;
use obsdiff_proto::{
    Inventory, Linear, LinearId, LinearTarget, Package, PackageId, Plan, Shard, ShardId, Site, SiteId,
    StreamId, Target,
};
use obsdiff_worker::collective::Local;
use obsdiff_worker::device::{
    CallHook, EngineCall, FakeEngine, GroupTimeouts, Machine, MemoryPartStore, PartStoreError, WorkError,
    WorkerState, follow,
};

use super::*;
use crate::clock;
use crate::runtime::runtime;

/// Records that end with the process, beside weights in memory.
struct MemoryRecords(MemoryPartStore);

#[tonic::async_trait]
impl Records for MemoryRecords {
    async fn commit(&self, manifest: &Manifest) -> Result<(), String> {
        self.0.commit(manifest.package, manifest.parts.clone());
        Ok(())
    }

    async fn save(&self, _: &Exponents) -> Result<(), String> {
        Ok(())
    }

    async fn successor(&self) -> Result<Option<u32>, String> {
        Ok(None)
    }

    async fn save_hardware(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Packages of two sites of two linears each, gathered over so many shards.
fn job(packages: u32, shards: u32) -> Job {
    let site = |i: u32| Site {
        name: format!("l{}", 2 * i),
        width: 4,
        stream: StreamId(0),
        joined: Vec::new(),
        linears: vec![LinearId(2 * i), LinearId(2 * i + 1)],
    };
    let linear = |i: u32| Linear { name: format!("l{i}"), rows: 8, bias: true, site: SiteId(i / 2) };
    let target = |i: u32| LinearTarget { linear: LinearId(i), target: Target::NToM { n: 2, m: 4 } };
    let package = |i: u32| Package {
        id: PackageId(i),
        units: 0..0,
        sites: if shards > 0 { vec![SiteId(2 * i), SiteId(2 * i + 1)] } else { Vec::new() },
        linears: (4 * i..4 * i + 4).map(target).collect(),
        survey: false,
    };
    let shard = |i: u32| Shard { id: ShardId(i), prompts: 4 * i..4 * i + 4 };
    Job {
        inventory: Arc::new(Inventory {
            sites: (0..2 * packages).map(site).collect(),
            linears: (0..4 * packages).map(linear).collect(),
            ..Inventory::default()
        }),
        plan: Arc::new(Plan {
            packages: (0..packages).map(package).collect(),
            shards: (0..shards).map(shard).collect(),
            budget: None,
        }),
        committed: 0,
        exponents: None,
        hardware: None,
        saved: Vec::new(),
        life: 0,
        options: Options { backoff: std::time::Duration::from_millis(1), ..Options::default() },
    }
}

fn machine(instance: u128) -> Machine {
    Machine { instance, speed: 1000, hardware: "a processor".to_owned() }
}

/// Runs a job with a worker for each hook; says how it ended, and what was written.
fn run(job: Job, hooks: Vec<CallHook>) -> (Option<Outcome>, Option<Vec<u8>>) {
    let plan = job.plan.clone();
    let part_store = MemoryPartStore::default();
    let records = Box::new(MemoryRecords(part_store.clone()));
    let (mut driver, handle) = CoreDriver::new(job, records, clock::monotonic(), Box::new(())).unwrap();
    let transport = Arc::new(Local::default());
    let result = Arc::new(Mutex::new(None));
    let mut threads = Vec::new();
    for (instance, hook) in (1..).zip(hooks) {
        let worker_state = WorkerState::new(machine(instance), transport.clone(), GroupTimeouts::default());
        let mut engine = FakeEngine::new(plan.clone(), Arc::new(part_store.clone()), result.clone(), hook);
        let its = worker_state.clone();
        threads.push(thread::spawn(move || follow(&its, &mut engine)));
        let handle = handle.clone();
        threads.push(thread::spawn(move || drop(attend(&worker_state, &handle))));
    }
    let outcome = runtime().unwrap().block_on(driver.run());
    // Whoever asks to join too late hears nothing more.
    drop(driver);
    // A test may have killed one.
    threads.into_iter().for_each(|thread| drop(thread.join()));
    let written = result.lock().unwrap().take();
    (outcome, written)
}

fn open() -> CallHook {
    Arc::new(|_| Ok(()))
}

/// A hook that fails at the first call that `at` picks.
fn fails_once(at: fn(EngineCall) -> bool, error: fn() -> WorkError) -> CallHook {
    let failed = AtomicBool::new(false);
    Arc::new(
        move |call| if at(call) && !failed.swap(true, Ordering::Relaxed) { Err(error()) } else { Ok(()) },
    )
}

fn store_fails() -> WorkError {
    PartStoreError::Failed("the store is away".to_owned()).into()
}

#[test]
fn any_number_of_workers_write_the_same() {
    let (outcome, alone) = run(job(3, 7), vec![open()]);
    assert_eq!(outcome, Some(Outcome::Done));
    for workers in [2, 4, 9] {
        let (outcome, written) = run(job(3, 7), (0..workers).map(|_| open()).collect());
        assert_eq!(outcome, Some(Outcome::Done), "{workers} workers");
        assert!(written == alone && written.is_some(), "{workers} workers");
    }
}

#[test]
fn a_job_without_shards_is_solved_without_grams() {
    let (outcome, alone) = run(job(2, 0), vec![open()]);
    assert_eq!(outcome, Some(Outcome::Done));
    assert_eq!(run(job(2, 0), vec![open(), open(), open()]), (outcome, alone));
}

#[test]
fn parts_of_a_site_are_solved_apart_and_give_the_same_with_any_number_of_workers() {
    let split = || {
        let mut job = job(2, 3);
        // A part has 4 rows of the 16 of a site.
        job.options.split_above = Some(4 * 4 * (4 + 4));
        job
    };
    let (outcome, alone) = run(split(), vec![open()]);
    assert_eq!(outcome, Some(Outcome::Done));
    assert!(alone != run(job(2, 3), vec![open()]).1);
    assert_eq!(run(split(), vec![open(), open(), open()]), (outcome, alone));
}

#[test]
fn what_fails_once_is_tried_again_and_changes_nothing() {
    let (_, expected) = run(job(2, 5), vec![open(), open()]);
    let calls: [fn(EngineCall) -> bool; 5] = [
        |m| matches!(m, EngineCall::Shard(_)),
        |m| matches!(m, EngineCall::Reduce(_)),
        |m| matches!(m, EngineCall::Solve(_)),
        |m| matches!(m, EngineCall::Apply(_)),
        |m| m == EngineCall::Export,
    ];
    for call in calls {
        let hooks = vec![fails_once(call, store_fails), fails_once(call, store_fails)];
        let (outcome, written) = run(job(2, 5), hooks);
        assert_eq!(outcome, Some(Outcome::Done));
        assert!(written == expected);
    }
}

#[test]
fn an_overflow_lowers_the_exponent_and_runs_the_package_again() {
    let overflow: fn() -> WorkError = || WorkError::Overflow { site: SiteId(0), exponent: 20 };
    let once = |at| fails_once(at, overflow);
    let (outcome, in_a_shard) = run(job(1, 4), vec![once(|m| m == EngineCall::Shard(ShardId(2)))]);
    assert_eq!(outcome, Some(Outcome::Done));
    let (outcome, in_a_sum) = run(job(1, 4), vec![once(|m| m == EngineCall::Reduce(SiteId(0)))]);
    assert_eq!(outcome, Some(Outcome::Done));
    assert_eq!(in_a_shard, in_a_sum);
    assert!(in_a_shard != run(job(1, 4), vec![open()]).1);
}

#[test]
fn what_goes_wrong_every_time_ends_the_job_with_its_reason() {
    let fatal: fn() -> WorkError = || PartStoreError::Damaged("site l0 is singular".to_owned()).into();
    let (outcome, written) = run(job(1, 2), vec![fails_once(|m| matches!(m, EngineCall::Solve(_)), fatal)]);
    let Some(Outcome::Failed(Failure::Fatal { error, .. })) = outcome else { panic!("{outcome:?}") };
    assert_eq!((error.as_str(), written), ("site l0 is singular", None));
}

#[test]
fn a_worker_that_dies_loses_its_shards_and_no_more() {
    let (_, expected) = run(job(2, 6), vec![open()]);
    // It panics at its second shard: the thread is gone, and its end of every group with it.
    let shards = AtomicU32::new(0);
    let dies: CallHook = Arc::new(move |call| {
        let shard = matches!(call, EngineCall::Shard(_));
        assert!(!shard || shards.fetch_add(1, Ordering::Relaxed) == 0, "killed by the test");
        Ok(())
    });
    let (outcome, written) = run(job(2, 6), vec![dies, open()]);
    assert_eq!(outcome, Some(Outcome::Done));
    assert!(written == expected);
}

//! The coordinator's service and the workers' sessions, as users run them, over a simulated network under a seed: partitions, delays,
//! losses, crashes and restarts of either side. Time is simulated, and the engine counts instead of computing.
//!
//! A run is named by its seed: `SEED=17 cargo test --release -p obsdiff --test turmoil one_seed -- --nocapture` shows it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod hosts;
mod job;
mod mesh;
mod pruning;
mod puppet;
mod trace;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use job::Shape;
use obsdiff_core::Outcome;
use pruning::Pruning;
use serde_json::json;
use world::{Ended, Plot, run};

/// Runs of the test below; they start at seed 0, or at FROM.
const SEEDS: u64 = 1000;

/// Seeds that once failed, whatever FROM is. 722: a worker whose group failed after its Gram had arrived, and which then could not store
/// its part, was asked for it in vain.
const FOUND: [u64; 1] = [722];

/// Undisturbed runs by shape.
#[derive(Default)]
struct Expected(Mutex<BTreeMap<Shape, Ended>>);

impl Expected {
    /// Runs a seed, and compares what came of it with the undisturbed run.
    fn check(&self, seed: u64) -> Ended {
        let plot = Plot::draw(seed);
        let ended = run(&plot);
        assert_eq!(ended.outcome, Some(Outcome::Done));
        let mut expected = self.0.lock().unwrap();
        let expected = expected.entry(plot.shape).or_insert_with(|| run(&Plot::undisturbed(plot.shape)));
        assert!(ended.weights == expected.weights, "other weights are committed");
        assert!(ended.written.is_some() && ended.written == expected.written, "other weights are exported");
        ended
    }
}

/// The simulation itself: without this, a seed says nothing.
fn one_seed_gives_one_trace(seed: u64) {
    let [first, second] = [0, 1].map(|_| run(&Plot::draw(seed)).trace);
    assert!(first.len() > 50);
    let differ = first.iter().zip(&second).find(|(first, second)| first != second);
    assert_eq!(differ, None, "seed {seed} gives two traces");
    assert_eq!(first.len(), second.len(), "seed {seed} gives two traces");
}

#[test]
fn hundreds_of_seeds_end_as_if_nothing_had_happened() {
    (0..40).for_each(one_seed_gives_one_trace);
    let from: u64 = std::env::var("FROM").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let seeds: Vec<u64> = FOUND.into_iter().chain(from..from + SEEDS).collect();
    let (expected, next) = (Expected::default(), AtomicUsize::new(0));
    let (runs, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            match catch_unwind(AssertUnwindSafe(|| expected.check(seed))) {
                Ok(ended) => runs.lock().unwrap().push((ended.took, ended.faults)),
                Err(_) => {
                    eprintln!("seed {seed} failed");
                    failed.lock().unwrap().push(seed);
                }
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let (runs, failed) = (runs.into_inner().unwrap(), failed.into_inner().unwrap());
    let mut faults = BTreeMap::new();
    runs.iter().flat_map(|(_, faults)| faults).for_each(|fault| *faults.entry(fault).or_insert(0) += 1);
    let longest = runs.iter().map(|(took, _)| *took).max().unwrap_or_default();
    let all: Duration = runs.iter().map(|(took, _)| *took).sum();
    println!(
        "{} seeds, {} s of simulated time, the longest run {} s",
        runs.len(),
        all.as_secs(),
        longest.as_secs()
    );
    println!("{faults:?}");
    assert!(failed.is_empty(), "seeds {failed:?} failed; run one alone: SEED={}", failed[0]);
    // What never happens is not tested.
    assert!(faults.len() == 11, "{faults:?}");
}

/// Runs of each job below.
const PRUNED: u64 = 6;

/// Prunes a small model under seeds that have faults; compares what was solved and written with an undisturbed run.
fn pruned_as_if_nothing_had_happened(job: &Arc<Pruning>) {
    let shape = Plot::draw(0).shape;
    let expected = run(&Plot::undisturbed(shape).pruning(job));
    assert_eq!(expected.outcome, Some(Outcome::Done));
    assert!(expected.written.is_some());
    let mut faults = 0;
    for seed in 0..PRUNED {
        let ended = run(&Plot::draw(seed).pruning(job));
        assert_eq!(ended.outcome, Some(Outcome::Done), "seed {seed}");
        assert!(ended.weights == expected.weights, "seed {seed}: other weights are committed");
        assert!(ended.written == expected.written, "seed {seed}: something else is written");
        faults += ended.faults.len();
    }
    assert!(faults > 0, "nothing went wrong");
}

#[test]
fn the_engine_proper_prunes_weights_as_if_nothing_had_happened() {
    let sparsity =
        json!({ "pattern": "unstructured", "ratio": 0.5, "method": "obs", "allocation": "uniform" });
    pruned_as_if_nothing_had_happened(&Pruning::new(sparsity, 2));
}

#[test]
fn the_engine_proper_divides_a_budget_as_if_nothing_had_happened() {
    pruned_as_if_nothing_had_happened(&Pruning::new(json!({ "pattern": "structured", "budget": 0.3 }), 1));
}

#[test]
fn the_engine_proper_finds_ratios_as_if_nothing_had_happened() {
    let sparsity =
        json!({ "pattern": "unstructured", "ratio": 0.5, "method": "admm", "allocation": "global" });
    pruned_as_if_nothing_had_happened(&Pruning::new(sparsity, 2));
}

#[test]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let ended = run(&Plot::draw(seed));
    ended.trace.iter().filter(|line| !line.ends_with("reads")).for_each(|line| println!("{line}"));
    println!("seed {seed}: {:?} after {} s", ended.outcome, ended.took.as_secs());
    Expected::default().check(seed);
}

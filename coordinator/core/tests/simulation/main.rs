//! The core under a seeded scheduler that drops, delays, repeats, reorders, kills and restarts.
//!
//! A run is named by its seed: `SEED=17 cargo test --release -p obsdiff-core --test simulation one_seed -- --nocapture` shows it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod collective;
mod event;
mod faults;
mod hosts;
mod saving;
mod task;
mod work;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use obsdiff_core::{Failure, Outcome};
use world::SimulatedWorld;

/// Virtual time by which a run has ended, whatever happened.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Runs of the test below; they start at seed 0, or at FROM.
const SEEDS: u64 = 10_000;

fn run(seed: u64, keep_log: bool) -> SimulatedWorld {
    let mut world = SimulatedWorld::new(seed, keep_log);
    world.run(LIMIT);
    world
}

/// The simulator itself: without this, a seed says nothing.
fn one_seed_gives_one_log(seed: u64) -> String {
    let log = |seed| run(seed, true).log.unwrap();
    let (first, second) = (log(seed), log(seed));
    assert!(first.len() > 1000);
    assert!(first == second, "seed {seed} gives two logs");
    first
}

#[test]
fn one_seed_run_twice_gives_the_same_log() {
    let logs: Vec<_> = (0..40).map(one_seed_gives_one_log).collect();
    assert!(logs.windows(2).all(|pair| pair[0] != pair[1]));
}

/// How a run ended: a word for the statistics.
fn ending(world: &SimulatedWorld) -> &'static str {
    match &world.outcome {
        Some(Outcome::Done) => "done",
        Some(Outcome::Failed(Failure::Fatal { .. })) => "failed: fatal",
        Some(Outcome::Failed(Failure::Store { .. })) => "failed: manifest not stored",
        Some(Outcome::Failed(Failure::TooOften { .. })) => "failed: too often",
        Some(Outcome::Failed(_)) => "failed: other",
        _ => "not ended",
    }
}

#[test]
fn ten_thousand_seeds_end_well() {
    one_seed_gives_one_log(0);
    let from: u64 = std::env::var("FROM").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (mut endings, mut events) = (BTreeMap::new(), BTreeMap::new());
    let (mut steps, mut longest) = (0, 0);
    for seed in from..from + SEEDS {
        let world = catch_unwind(AssertUnwindSafe(|| {
            let world = run(seed, false);
            let outcome = world.outcome.clone().unwrap();
            assert!(world.justified(&outcome), "ended without reason: {outcome}");
            world
        }));
        let Ok(world) = world else { panic!("seed {seed} failed; run it alone: SEED={seed}") };
        *endings.entry(ending(&world)).or_insert(0) += 1;
        for (event, count) in world.events {
            *events.entry(event).or_insert(0) += count;
        }
        steps += world.steps;
        longest = longest.max(world.now);
    }
    println!("{SEEDS} seeds, {steps} steps, the longest run took {longest} ms of virtual time");
    println!("{endings:?}\n{events:?}");
    assert!(endings["done"] > SEEDS * 9 / 10);
    // What never happens is not tested.
    assert!(events.len() == 19 && events.values().all(|count| *count > SEEDS / 100), "{events:?}");
}

#[test]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut world = SimulatedWorld::new(seed, true);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run(LIMIT)));
    println!("{}", world.log.as_deref().unwrap_or(""));
    println!("seed {seed}: {:?} at {} ms", world.outcome, world.now);
    assert!(ended.is_ok() && world.outcome.is_some());
}

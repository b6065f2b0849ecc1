//! What workers say to the core, changed on the way: whatever can be read leaves every invariant as it is, and honest workers finish the
//! job once the liars are gone.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../proto/tests/wire/mutate.rs"]
mod mutate;
#[allow(dead_code)]
#[path = "../../coordinator/core/tests/faults/script.rs"]
mod script;

use std::collections::BTreeSet;
use std::time::Duration;

use mutate::changed;
use obsdiff_core::{Hello, Input, Outcome, Status};
use obsdiff_proto::WorkerId;
use obsdiff_proto::session::WorkerEvent;
use obsdiff_proto::wire::v1;
use obsdiff_tests::Prng;
use prost::Message;
use script::{HARDWARE, Script, job};

const RUNS: u64 = 300;
const TURNS: usize = 120;

/// Sessions of liars have ids in the places of honest ones that never come.
const HONEST: u64 = 1000;

fn bytes(event: &WorkerEvent) -> Vec<u8> {
    v1::WorkerEvent::from(event).encode_to_vec()
}

/// Everything that honest workers could say now, and a greeting of a new one.
fn said(script: &Script) -> Vec<Vec<u8>> {
    let hello = |(worker, status): (&u64, &Status)| {
        let exponents = [(obsdiff_proto::SiteId(0), 12)].into();
        let status = status.clone();
        bytes(&WorkerEvent::Hello(Box::new(Hello {
            instance: u128::from(*worker),
            speed: 1000,
            hardware: HARDWARE.to_owned(),
            exponents,
            status,
        })))
    };
    let status = |status: &Status| bytes(&WorkerEvent::Status(Box::new(status.clone())));
    let fresh = (HONEST, Status::default());
    let workers = || script.workers.iter();
    workers()
        .map(hello)
        .chain(workers().map(|(_, s)| status(s)))
        .chain([hello((&fresh.0, &fresh.1))])
        .collect()
}

/// One job among liars; says how many lies were read, and how the job ended.
fn run(seed: u64) -> (usize, Option<Outcome>) {
    let mut prng = Prng::new(seed);
    let mut script = Script::new(job());
    let mut liars = BTreeSet::new();
    let mut newcomer = 0;
    let mut honest = HONEST;
    let mut read = 0;
    for _ in 0..TURNS {
        script.now += Duration::from_millis(prng.below(400) as u64);
        let workers: Vec<_> = script.workers.keys().copied().collect();
        match prng.below(10) {
            0 if workers.len() < 3 && newcomer < HONEST => {
                script.start(honest);
                honest += 1;
            }
            1..=3 if !workers.is_empty() => script.obey(workers[prng.below(workers.len())], |_| false),
            4 => {
                script.store();
                script.step(Input::Tick);
            }
            _ => {
                let said = said(&script);
                let lie = changed(&mut prng, &said);
                let Ok(message) = v1::WorkerEvent::decode(lie.as_slice()) else { continue };
                let Ok(event) = WorkerEvent::try_from(message) else { continue };
                read += 1;
                match event {
                    WorkerEvent::Hello(mut hello) => {
                        // The first worker decides on the job's kind of hardware: honest ones would stand by for a kind that only a
                        // liar has. Later ones may say what they like.
                        if script.core.other_hardware("no such processor").is_none() {
                            hello.hardware = HARDWARE.to_owned();
                        }
                        // Ids only grow: the session of a liar that joins late takes the next one.
                        let worker = if honest == HONEST {
                            newcomer += 1;
                            newcomer
                        } else {
                            honest += 1;
                            honest - 1
                        };
                        liars.insert(worker);
                        script.step(Input::Joined { worker: WorkerId(worker), hello });
                    }
                    WorkerEvent::Status(status) => {
                        let liars: Vec<_> = liars.iter().copied().collect();
                        let Some(worker) = liars.get(prng.below(liars.len().max(1))) else { continue };
                        script.step(Input::Reported { worker: WorkerId(*worker), status });
                    }
                }
            }
        }
    }
    for liar in liars {
        script.leave(liar);
    }
    // Those whose instance a liar took were replaced by it, and come back.
    let back = honest;
    script.workers.clear();
    script.start(back);
    for _ in 0..200 {
        script.pass(1, &[back]);
        script.settle();
    }
    (read, script.core.outcome().cloned())
}

#[test]
fn changed_messages_break_no_invariant_and_no_job() {
    let mut read = 0;
    let mut done = 0;
    for seed in 0..RUNS {
        let (lies, outcome) = run(seed);
        read += lies;
        match outcome {
            Some(Outcome::Done) => done += 1,
            // A liar may say that it failed for good, or often; the job then ends in words.
            Some(Outcome::Failed(failure)) => assert!(!failure.to_string().is_empty()),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    println!("{read} lies were read in {RUNS} jobs, {done} of which were done");
    assert!(read > 20 * RUNS as usize && done > RUNS / 2, "{read} {done}");
}

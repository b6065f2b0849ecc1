//! Workers that leave for a while, and what is kept for them.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_core::{Failure, Input, Job, Order, Outcome, Status};
use obsdiff_proto::PackageId;

use crate::script::{Script, job};
use crate::{brings, none, shards};

/// How long a shard takes each worker.
const PACE: Duration = Duration::from_secs(10);

/// Two workers hold two shards each.
fn calibrated(job: Job) -> Script {
    let mut script = Script::new(job);
    let paced = || Status { pace: Some(PACE), ..Status::default() };
    script.join(1, paced());
    script.join(2, paced());
    for worker in [1, 2] {
        script.obey(worker, |order| matches!(order, Order::Form { .. }));
    }
    script.look();
    assert_eq!([1, 2].map(|worker| script.kept(worker)), [2, 2]);
    script
}

/// A worker comes back in another session, with the sums that it has.
fn returns(script: &mut Script, worker: u64, session: u64) {
    let status = script.workers.remove(&worker).unwrap();
    script.join(session, status);
}

#[test]
fn a_worker_that_returns_in_time_finds_its_shards() {
    let mut script = calibrated(job());
    script.leave(1);
    // The other one is done, and would take them all.
    script.pass(19, &[2]);
    assert_eq!(shards(&script.orders(2)), BTreeSet::new());
    returns(&mut script, 1, 3);
    assert_eq!([2, 3].map(|worker| script.kept(worker)), [2, 2]);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn nobody_waits_longer_than_it_takes_to_run_the_shards_again() {
    let mut script = calibrated(job());
    script.leave(1);
    script.workers.remove(&1);
    script.pass(19, &[2]);
    assert_eq!(shards(&script.orders(2)), BTreeSet::new());
    script.pass(1, &[2]);
    assert_eq!(shards(&script.orders(2)).len(), 2);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn nothing_is_kept_for_a_worker_that_does_not_return() {
    let mut script = calibrated(job());
    script.workers.get_mut(&1).unwrap().draining = true;
    // Nobody needs it: no group has formed.
    script.look();
    script.report(1);
    script.leave(1);
    script.workers.remove(&1);
    assert_eq!(shards(&script.orders(2)).len(), 2);
}

#[test]
fn after_a_restart_a_worker_with_much_to_lose_is_waited_for() {
    let mut script = Script::new(Job { life: 1, ..job() });
    script.join(1, Status { pace: Some(PACE), ..brings(&[0, 1]) });
    // Others may hold as much, which it would take twenty seconds to gather again.
    script.pass(19, &[1]);
    assert_eq!(shards(&script.orders(1)), BTreeSet::new());
    script.join(2, Status { pace: Some(PACE), ..brings(&[2]) });
    assert_eq!([1, 2].map(|worker| script.kept(worker)), [2, 1]);
    script.pass(1, &[1, 2]);
    assert_eq!(shards(&script.orders(1)).len() + shards(&script.orders(2)).len(), 1);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn nobody_is_missed_that_could_not_be_heard() {
    let mut script = calibrated(job());
    let pause = Duration::from_secs(60);
    script.now += pause;
    script.step(Input::Resumed { pause });
    script.step(Input::Tick);
    assert_eq!([1, 2].map(|worker| script.dismissal(worker)), [None, None]);
    assert_eq!([1, 2].map(|worker| script.kept(worker)), [2, 2]);
    // From then on they are missed as ever.
    script.pass(8, &[2]);
    assert!(script.dismissal(1).is_some() && script.dismissal(2).is_none());
}

/// How often a manifest is tried that no store takes, by workers of this pace.
fn tries(pace: Duration) -> (u32, Duration) {
    let mut script = Script::new(job());
    script.join(1, Status { pace: Some(pace), ..Status::default() });
    for _ in 0..4 {
        script.obey(1, none);
    }
    let (begun, mut tries) = (script.now, 0);
    loop {
        if let Some(Outcome::Failed(failure)) = script.outcome() {
            assert!(matches!(failure, Failure::Store { .. }), "{failure}");
            return (tries, script.now - begun);
        }
        if script.look().iter().any(|action| matches!(action, obsdiff_core::Action::Commit(_))) {
            tries += 1;
            let (package, error) = (PackageId(0), "away".to_owned());
            script.step(Input::CommitFailed { package, error });
        } else {
            script.pass(1, &[1]);
        }
        assert!(tries < 1000, "no end of tries");
    }
}

#[test]
fn a_store_that_is_away_is_waited_for_as_long_as_what_would_be_lost_took() {
    let (of_small, soon) = tries(Duration::from_millis(10));
    assert_eq!(of_small, 8);
    assert!(soon < Duration::from_secs(120), "{soon:?}");
    // Four shards of two minutes.
    let (of_large, late) = tries(Duration::from_secs(120));
    assert!(of_large > 8 && late >= Duration::from_secs(480) && late < Duration::from_secs(600), "{late:?}");
    // There is an end to it.
    let (_, latest) = tries(Duration::from_secs(100_000));
    assert!(latest >= Duration::from_secs(1800) && latest < Duration::from_secs(1900), "{latest:?}");
}

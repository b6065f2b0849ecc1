//! Workers that prepare: they are there, but nothing is asked of them until they are ready.

use std::time::Duration;

use obsdiff_core::{Action, Command, Dismissal, Event, Job, Options, Outcome, Phase, Status};
use obsdiff_proto::WorkerId;

use crate::none;
use crate::script::{Script, job};
use crate::shards;

fn preparing() -> Status {
    Status { preparing: true, ..Status::default() }
}

/// The worker says so many seconds long that it got on with its preparation.
fn prepare(script: &mut Script, worker: u64, seconds: u64) {
    for _ in 0..seconds {
        script.workers.get_mut(&worker).unwrap().progress += 1;
        script.pass(1, &[worker]);
    }
}

fn get_ready(script: &mut Script, worker: u64) {
    script.workers.get_mut(&worker).unwrap().preparing = false;
    script.report(worker);
}

#[test]
fn a_worker_that_prepares_gets_no_order_and_joins_no_group() {
    let mut script = Script::new(Job { exponents: None, ..job() });
    script.join(1, preparing());
    assert!(matches!(script.events()[..], [Event::Preparing { worker: WorkerId(1) }]));
    assert_eq!(script.core.phase(), Phase::Pilot);
    script.start(2);
    for _ in 0..100 {
        script.obey(2, none);
        script.store();
        let members = script.core.group().map(|group| group.members.clone());
        assert!(members.is_none_or(|members| members == [WorkerId(2)]));
        assert_eq!((script.orders(1), script.kept(1)), (Vec::new(), 0));
        script.report(1);
    }
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn it_gets_the_committed_weights_and_shards_once_it_is_ready() {
    let mut script = Script::new(Job { committed: 1, ..job() });
    script.join(1, preparing());
    assert_eq!(script.orders(1), []);
    assert_eq!(script.core.phase(), Phase::Calibrate, "nobody applies weights yet");
    script.pass(30, &[1]);
    assert_eq!(script.orders(1), []);
    get_ready(&mut script, 1);
    assert!(script.events().contains(&Event::Ready { worker: WorkerId(1) }));
    assert!(matches!(script.commands(1)[..], [Command::Apply { packages: 1 }]));
    script.obey(1, none);
    assert_eq!(shards(&script.orders(1)).len(), 2);
    // What it said before it was ready arrives late.
    let held = script.kept(1);
    let late = Status { preparing: true, ..script.workers[&1].clone() };
    script.workers.insert(1, late);
    script.report(1);
    assert_eq!(script.kept(1), held);
    assert!(!script.core.view().workers[0].preparing);
}

#[test]
fn nobody_waits_for_a_worker_that_prepares() {
    let mut script = Script::new(job());
    script.join(1, preparing());
    script.start(2);
    // As if it were alone: all that it may have at a time.
    assert_eq!(script.kept(2), job().options.most_leases as usize);
}

#[test]
fn a_job_whose_workers_prepare_is_not_without_workers() {
    let options = Options { no_workers: Duration::from_secs(20), ..job().options };
    let mut script = Script::new(Job { options, ..job() });
    script.join(1, preparing());
    prepare(&mut script, 1, 60);
    assert_eq!((script.outcome(), script.dismissal(1)), (None, None));
    get_ready(&mut script, 1);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_slow_preparation_is_not_a_stalled_one() {
    let options = Options { stall: Duration::from_secs(30), ..job().options };
    let mut script = Script::new(Job { options, ..job() });
    script.join(1, preparing());
    prepare(&mut script, 1, 90);
    assert_eq!(script.dismissal(1), None);
    // It speaks, but hangs.
    script.pass(29, &[1]);
    assert_eq!(script.dismissal(1), None);
    script.pass(1, &[1]);
    assert_eq!(script.dismissal(1), Some(Dismissal::Stalled { seconds: 30 }));
}

#[test]
fn what_a_worker_that_prepares_claims_to_hold_does_not_count() {
    let mut script = Script::new(job());
    script.join(1, Status { preparing: true, ..crate::brings(&[0, 1]) });
    assert_eq!(script.core.view().held, 0);
    script.pass(3, &[1]);
    let sent = script.actions.iter().any(|action| matches!(action, Action::Send { .. }));
    assert!(!sent && script.core.view().held == 0);
}

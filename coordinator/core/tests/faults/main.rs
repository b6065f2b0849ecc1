//! Every row of the design's table of faults, and what must hold after each.

#![allow(clippy::unwrap_used, clippy::panic)]

mod encoding;
mod ends;
mod hardware;
mod missed;
mod preparing;
mod returning;
mod saved;
mod script;
mod structures;

use std::collections::BTreeSet;

use obsdiff_core::{
    Command, Dismissal, Event, Fault, GroupStage, Hello, Input, Order, Outcome, Phase, Status, Sums, Tally,
    Trouble,
};
use obsdiff_proto::{Epoch, PackageId, ShardId, SiteId, WorkerId};
use script::{HARDWARE, Script, job};

/// Nothing is left undone.
fn none(_: &Order) -> bool {
    false
}

fn shards(orders: &[Order]) -> BTreeSet<ShardId> {
    orders
        .iter()
        .filter_map(|o| if let Order::Calibrate { shard, .. } = o { Some(*shard) } else { None })
        .collect()
}

/// Sums of the first package, as a worker of an earlier life brings them.
fn brings(held: &[u32]) -> Status {
    let held = held.iter().map(|s| ShardId(*s)).collect();
    let sums = Sums { tally: Tally(3), package: Some(PackageId(0)), held, ..Sums::default() };
    Status { sums, ..Status::default() }
}

#[test]
fn a_quiet_run_goes_through_every_phase_to_the_end() {
    let mut script = Script::new(obsdiff_core::Job { exponents: None, ..job() });
    script.start(1);
    script.start(2);
    assert_eq!(script.core.phase(), Phase::Pilot);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
    let committed = script.events().into_iter().filter(|e| matches!(e, Event::Committed { .. })).count();
    assert_eq!(committed, 2);
    assert_eq!(script.dismissal(1), Some(Dismissal::Over(Outcome::Done)));
}

/// A method that needs no calibration has packages without sites, and no shards.
#[test]
fn a_plan_without_shards_is_solved_without_calibration() {
    let mut job = obsdiff_core::Job { exponents: None, ..job() };
    let plan = std::sync::Arc::make_mut(&mut job.plan);
    plan.shards.clear();
    plan.packages.iter_mut().for_each(|package| package.sites.clear());
    let mut script = Script::new(job);
    script.start(1);
    script.start(2);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
    assert_eq!(script.groups(), 2);
}

/// Two workers hold two shards each, and their group has formed and reduces.
fn reducing() -> (Script, Epoch) {
    let mut script = Script::new(job());
    script.start(1);
    script.start(2);
    for _ in 0..2 {
        for worker in [1, 2] {
            script.obey(worker, none);
        }
    }
    let epoch = script.core.view().epoch.unwrap();
    assert!(
        script.orders(1).contains(&Order::Reduce { epoch })
            && script.orders(2).contains(&Order::Reduce { epoch })
    );
    script.look();
    (script, epoch)
}

#[test]
fn when_a_worker_dies_in_a_reduction_the_survivors_abort_and_run_its_shards() {
    let (mut script, epoch) = reducing();
    script.leave(1);
    script.workers.remove(&1);
    let orders = script.orders(2);
    assert!(orders.contains(&Order::Abort { epoch }), "{orders:?}");
    assert_eq!(shards(&orders).len(), 2);
    script.obey(2, none);
    let next = script.core.view().epoch.unwrap();
    assert!(next > epoch);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn when_an_owner_dies_solving_its_shards_are_run_again_and_what_was_solved_stays() {
    // Both go through the reduction; the owner dies before it has solved.
    let (mut script, epoch) = reducing();
    for worker in [1, 2] {
        script.step(Input::Tick);
        let status = script.workers.get_mut(&worker).unwrap();
        let group = status.group.as_mut().unwrap();
        group.stage = GroupStage::Reduced;
        group.received.insert(SiteId(0));
        script.report(worker);
    }
    assert_eq!(script.core.phase(), Phase::Solve);
    script.leave(1);
    script.workers.remove(&1);
    assert!(!script.orders(2).contains(&Order::Abort { epoch }), "nobody waits for the dead one's sums");
    assert_eq!(shards(&script.orders(2)).len(), 2);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_late_joiner_gets_the_committed_weights_then_shards() {
    let mut script = Script::new(obsdiff_core::Job { committed: 1, ..job() });
    script.start(1);
    assert_eq!(script.orders(1), [Order::Apply { packages: 1 }]);
    script.obey(1, none);
    assert_eq!(shards(&script.orders(1)).len(), 2);
}

#[test]
fn after_a_restart_of_the_coordinator_what_workers_hold_is_kept() {
    let mut script = Script::new(obsdiff_core::Job { life: 1, ..job() });
    script.join(1, brings(&[0, 1]));
    // Nothing is leased before the others had time to come back.
    assert_eq!(script.orders(1), []);
    script.join(2, brings(&[3]));
    script.pass(4, &[1, 2]);
    let leased: Vec<_> = [1, 2].into_iter().flat_map(|w| shards(&script.orders(w))).collect();
    assert_eq!(leased, [ShardId(2)]);
}

#[test]
fn a_returning_worker_whose_shards_others_keep_starts_anew() {
    let mut script = Script::new(job());
    script.start(1);
    assert_eq!(shards(&script.orders(1)), [ShardId(0), ShardId(1)].into());
    script.join(2, brings(&[1, 2]));
    assert_eq!(script.kept(1), 2);
    let orders = script.orders(2);
    assert!(orders.contains(&Order::Discard { tally: Tally(4) }), "{orders:?}");
    assert_eq!(shards(&orders), [ShardId(2), ShardId(3)].into());
}

#[test]
fn sums_of_other_weights_or_exponents_do_not_count() {
    let claim = |status: Status, exponent: i32| {
        let mut script = Script::new(job());
        let exponents = [(SiteId(0), exponent)].into();
        let hello = Hello { instance: 1, speed: 1, hardware: HARDWARE.to_owned(), exponents, status };
        script.step(Input::Joined { worker: WorkerId(1), hello: Box::new(hello) });
        script.core.view().held
    };
    assert_eq!(claim(brings(&[0, 1]), 12), 2);
    assert_eq!(claim(brings(&[0, 1]), 11), 0);
    assert_eq!(claim(brings(&[0, 9]), 12), 0);
    let spoiled = Sums { spoiled: true, ..brings(&[0]).sums };
    assert_eq!(claim(Status { sums: spoiled, ..Status::default() }, 12), 0);
    let other = Sums { package: Some(PackageId(1)), ..brings(&[0]).sums };
    assert_eq!(claim(Status { sums: other, ..Status::default() }, 12), 0);
}

#[test]
fn a_process_that_opens_a_second_session_replaces_its_first_and_keeps_its_shards() {
    let mut script = Script::new(job());
    script.start(1);
    script.obey(1, none);
    let status = script.workers[&1].clone();
    let exponents = [(SiteId(0), 12)].into();
    let hello = Hello { instance: 1, speed: 1000, hardware: HARDWARE.to_owned(), exponents, status };
    script.step(Input::Joined { worker: WorkerId(2), hello: Box::new(hello) });
    assert_eq!(script.dismissal(1), Some(Dismissal::Replaced(WorkerId(2))));
    assert_eq!(script.core.view().held, 2);
}

#[test]
fn a_draining_worker_leaves_at_once_or_after_the_reduction_that_needs_it() {
    let mut script = Script::new(job());
    script.start(1);
    script.start(2);
    script.workers.get_mut(&1).unwrap().draining = true;
    script.report(1);
    assert_eq!(script.dismissal(1), Some(Dismissal::Drained));

    let (mut script, _) = reducing();
    script.workers.get_mut(&2).unwrap().draining = true;
    script.report(2);
    assert_eq!(script.dismissal(2), None);
    script.pass(job().options.grace.as_secs(), &[1, 2]);
    assert_eq!(script.dismissal(2), Some(Dismissal::Drained));
}

#[test]
fn an_overflow_lowers_the_exponent_once_and_every_shard_is_run_again() {
    let mut script = Script::new(job());
    script.start(1);
    script.start(2);
    script.obey(1, none);
    script.obey(2, none);
    for worker in [1, 2] {
        // Both notice it.
        let order = Order::Calibrate { tally: Tally(1), shard: ShardId(0) };
        let fault = Fault::Overflow { site: SiteId(0), exponent: 12 };
        let status = script.workers.get_mut(&worker).unwrap();
        status.trouble = Some(Trouble { serial: 1, order, fault });
        status.sums.spoiled = true;
        script.report(worker);
    }
    let lowered: Vec<_> =
        script.events().into_iter().filter(|e| matches!(e, Event::Lowered { .. })).collect();
    assert_eq!(lowered, [Event::Lowered { package: PackageId(0), site: SiteId(0), exponent: 8 }]);
    assert_eq!(script.core.view().held, 0);
    let Some(Command::Calibrate { opening, tally, .. }) = script.commands(1).pop() else {
        panic!("no shard")
    };
    assert_eq!((opening.exponents[&SiteId(0)], tally), (8, Tally(2)));
}

#[test]
fn a_shard_that_was_never_leased_makes_the_sums_worthless() {
    let mut script = Script::new(job());
    script.start(1);
    script.start(2);
    script.obey(1, none);
    assert_eq!(script.core.view().held, 2);
    script.workers.get_mut(&1).unwrap().sums.held.insert(ShardId(3));
    script.report(1);
    let Some(Event::Discarded { worker, lost, .. }) = script.events().pop() else { panic!("it counts") };
    assert_eq!((worker, lost), (WorkerId(1), vec![ShardId(0), ShardId(1)]));
    assert_eq!(script.core.view().held, 0);
}

#[test]
fn repeated_and_late_reports_change_nothing() {
    let mut script = Script::new(job());
    script.start(1);
    let early = script.workers[&1].clone();
    script.obey(1, |order| *order == Order::Calibrate { tally: Tally(1), shard: ShardId(1) });
    let held = script.core.view().held;
    assert_eq!(held, 1);
    script.look();
    script.report(1);
    script.step(Input::Reported { worker: WorkerId(1), status: Box::new(early) });
    assert_eq!(script.core.view().held, held);
    assert_eq!(script.actions, []);
}

#[test]
fn an_order_that_does_not_show_in_hand_is_sent_again() {
    let mut script = Script::new(job());
    script.start(1);
    let sent = script.orders(1);
    script.look();
    script.pass(4, &[1]);
    assert_eq!(script.orders(1), []);
    script.workers.get_mut(&1).unwrap().in_hand = [sent[0]].into();
    script.pass(2, &[1]);
    assert_eq!(script.orders(1), sent[1..]);
}

#[test]
fn workers_that_cannot_reach_each_other_end_the_job_after_some_tries() {
    let (mut script, _) = reducing();
    for _ in 0..200 {
        let Some(epoch) = script.core.view().epoch else {
            script.pass(1, &[1, 2]);
            continue;
        };
        let group = script.workers.get_mut(&1).unwrap().group.as_mut().unwrap();
        (group.epoch, group.stage) = (epoch, GroupStage::Failed("no route to host".to_owned()));
        script.report(1);
        if script.outcome().is_some() {
            break;
        }
    }
    let Some(Outcome::Failed(failure)) = script.outcome() else { panic!("goes on for ever") };
    assert_eq!(failure.to_string(), "6 groups in a row failed: worker 1: no route to host");
}

#[test]
fn a_worker_that_fails_every_shard_is_sent_away_before_the_job_fails() {
    let mut script = Script::new(job());
    script.start(1);
    for serial in 1..10 {
        let Some(order) = script.orders(1).pop() else { break };
        script.look();
        let fault = Fault::Transient("out of memory".to_owned());
        script.workers.get_mut(&1).unwrap().trouble = Some(Trouble { serial, order, fault });
        script.report(1);
        if script.dismissal(1).is_some() {
            break;
        }
        script.pass(6, &[1]);
    }
    assert!(matches!(script.dismissal(1), Some(Dismissal::Useless(_))));
    assert_eq!(script.outcome(), None);
}

#[test]
fn a_fatal_fault_ends_the_job_with_its_words() {
    let mut script = Script::new(job());
    script.start(1);
    let order = script.orders(1)[0];
    let fault = Fault::Fatal("site l0 holds a value that is not finite".to_owned());
    script.workers.get_mut(&1).unwrap().trouble = Some(Trouble { serial: 1, order, fault });
    script.report(1);
    let Some(Outcome::Failed(failure)) = script.outcome() else { panic!("goes on") };
    assert_eq!(failure.to_string(), "shard 0 at worker 1: site l0 holds a value that is not finite");
    // A worker that comes now is dismissed: the job is over.
    script.look();
    script.start(2);
    assert!(matches!(script.dismissal(2), Some(Dismissal::Over(_))));
}

#[test]
fn a_worker_ahead_of_the_store_is_refused() {
    let mut script = Script::new(job());
    script.join(1, Status { applied: 1, ..Status::default() });
    let Some(Dismissal::Refused(why)) = script.dismissal(1) else { panic!("accepted") };
    assert!(why.contains("applied 1 package, but 0 are committed"), "{why}");
}

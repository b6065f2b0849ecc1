//! How a job ends: with its store failing, without workers, without shards, or before it began.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{Action, Dismissal, Failure, Fault, Input, InvalidJob, Order, Outcome, Tally, Trouble};
use obsdiff_proto::{PackageId, ShardId, SiteId};

use crate::none;
use crate::script::{Script, job};

/// The one worker does all it is asked, until a manifest goes to the store.
fn until_commit(script: &mut Script) {
    for _ in 0..100 {
        if script.actions.iter().any(|a| matches!(a, Action::Commit(_))) {
            return;
        }
        script.obey(1, none);
    }
    panic!("nothing is committed");
}

#[test]
fn a_failing_store_is_tried_again_more_and_more_slowly_then_the_job_stops() {
    let mut script = Script::new(job());
    script.start(1);
    until_commit(&mut script);
    let mut waits = Vec::new();
    let mut since = script.now;
    for _ in 0..200 {
        if script.actions.iter().any(|a| matches!(a, Action::Commit(_))) {
            waits.push((script.now - since).as_secs());
            since = script.now;
            script.look();
            script.step(Input::CommitFailed { package: PackageId(0), error: "no space left".to_owned() });
        }
        script.pass(1, &[1]);
    }
    assert_eq!(waits, [0, 1, 1, 2, 4, 8, 16, 30]);
    let failure = Failure::Store { package: PackageId(0), tries: 8, error: "no space left".to_owned() };
    assert_eq!(
        failure.to_string(),
        "the manifest of package 1 could not be stored in 8 tries: no space left"
    );
    assert_eq!(script.outcome(), Some(Outcome::Failed(failure)));
}

#[test]
fn a_store_that_comes_back_lets_the_job_go_on() {
    let mut script = Script::new(job());
    script.start(1);
    until_commit(&mut script);
    script.look();
    script.step(Input::CommitFailed { package: PackageId(0), error: "timed out".to_owned() });
    script.pass(1, &[1]);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

/// The one worker fails to store the parts of a package, one after the other and each in so many seconds, but those that `stores`
/// names by how many were tried before. Says for how long it did so.
fn fail_to_store_parts(script: &mut Script, seconds: u64, stores: impl Fn(u64) -> bool) -> Duration {
    let solves = |order: &Order| matches!(order, Order::Solve { .. });
    while !script.orders(1).iter().any(solves) {
        script.obey(1, solves);
    }
    let begun = script.now;
    let mut queue = VecDeque::new();
    for serial in 1..100 {
        for order in script.orders(1) {
            if solves(&order) && !queue.contains(&order) {
                queue.push_back(order);
            }
        }
        script.workers.get_mut(&1).unwrap().in_hand = queue.iter().copied().collect::<BTreeSet<_>>();
        script.pass(seconds, &[1]);
        let Some(order) = queue.pop_front() else { continue };
        if stores(serial) {
            script.obey(1, |other| *other != order);
            continue;
        }
        script.actions.retain(|a| !matches!(a, Action::Send { command, .. } if command.order() == order));
        let fault = Fault::Transient("no space left".to_owned());
        script.workers.get_mut(&1).unwrap().trouble = Some(Trouble { serial, order, fault });
        script.report(1);
        if script.outcome().is_some() {
            break;
        }
    }
    script.now - begun
}

/// A job of one package of two parts.
fn two_parts() -> obsdiff_core::Job {
    let mut job = job();
    let packages = &mut Arc::make_mut(&mut job.plan).packages;
    let second = packages.remove(1);
    packages[0].sites.extend(second.sites);
    packages[0].linears.extend(second.linears);
    job
}

#[test]
fn a_store_that_takes_no_part_is_given_up_after_a_minute_however_many_wait() {
    for seconds in [1, 5, 10, 20] {
        let mut script = Script::new(two_parts());
        script.start(1);
        let failing = fail_to_store_parts(&mut script, seconds, |_| false);
        let patience = two_parts().options.store_patience;
        assert!((patience..patience + Duration::from_secs(45)).contains(&failing), "{failing:?}");
        let Some(Outcome::Failed(failure)) = script.outcome() else { panic!("goes on") };
        assert!(
            failure.to_string().ends_with(" times, the last time at worker 1: no space left"),
            "{failure}"
        );
    }
}

#[test]
fn a_store_that_takes_a_part_now_and_then_is_not_given_up() {
    let mut script = Script::new(two_parts());
    script.start(1);
    let failing = fail_to_store_parts(&mut script, 10, |tried| tried == 5 || tried == 9);
    assert!(failing > two_parts().options.store_patience + Duration::from_secs(20));
    script.workers.get_mut(&1).unwrap().in_hand.clear();
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_job_without_workers_ends_and_a_cancelled_one_too() {
    let mut script = Script::new(job());
    script.start(1);
    script.leave(1);
    script.now += job().options.no_workers;
    script.step(Input::Tick);
    let Some(Outcome::Failed(failure)) = script.outcome() else { panic!("waits for ever") };
    assert_eq!(failure.to_string(), "no worker for 3600 s; the last one left: connection lost");

    let mut script = Script::new(job());
    script.start(1);
    script.step(Input::Cancel);
    assert_eq!(script.dismissal(1), Some(Dismissal::Over(Outcome::Cancelled)));
    assert_eq!(script.actions.last(), Some(&Action::Finish(Outcome::Cancelled)));
}

#[test]
fn a_job_whose_pipeline_an_earlier_life_wrote_is_done_once_all_is_committed() {
    let mut script = Script::new(job());
    script.step(Input::Exported);
    assert_eq!(script.outcome(), None);
    let mut script = Script::new(obsdiff_core::Job { committed: 2, life: 1, ..job() });
    script.step(Input::Exported);
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_job_without_shards_goes_straight_to_solving() {
    let mut job = job();
    std::sync::Arc::make_mut(&mut job.plan).shards.clear();
    let mut script = Script::new(obsdiff_core::Job { exponents: None, ..job });
    script.start(1);
    // Nothing was gathered, so no exponent is named.
    for _ in 0..10 {
        script.now += Duration::from_secs(1);
        script.settle();
        let solved = script.workers.get_mut(&1).unwrap().solved.values_mut();
        solved.for_each(|s| s.exponents.clear());
        script.report(1);
    }
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn jobs_that_make_no_sense_are_refused() {
    let refused = |job: obsdiff_core::Job| obsdiff_core::Core::new(job, Duration::ZERO).unwrap_err();
    let with = |change: fn(&mut obsdiff_proto::Plan)| {
        let mut job = job();
        change(std::sync::Arc::make_mut(&mut job.plan));
        job
    };
    assert_eq!(refused(with(|plan| plan.packages.clear())), InvalidJob::NoPackages);
    let misnumbered = InvalidJob::Misnumbered { what: "shard", found: 1, place: 0 };
    assert_eq!(refused(with(|plan| plan.shards.rotate_left(1))), misnumbered);
    let problem = |change| refused(with(change)).to_string();
    assert_eq!(problem(|plan| plan.packages[1].linears.clear()), "package 2: has nothing to prune");
    let twice = problem(|plan| {
        plan.packages[1] = obsdiff_proto::Package { id: PackageId(1), ..plan.packages[0].clone() }
    });
    assert_eq!(twice, "package 2: site 0 stands in two places");
    let strange = problem(|plan| plan.packages[0].linears[0].linear.0 = 7);
    assert_eq!(strange, "package 1: linear 7 is not in the inventory");
    let ahead = refused(obsdiff_core::Job { committed: 3, ..job() });
    assert_eq!(ahead, InvalidJob::TooManyCommitted { committed: 3, planned: 2 });
    let unknown = refused(obsdiff_core::Job { committed: 1, exponents: None, ..job() });
    assert_eq!(unknown, InvalidJob::NoExponents { committed: 1 });
    let partly = refused(obsdiff_core::Job { exponents: Some([(SiteId(0), 3)].into()), ..job() });
    assert_eq!(partly, InvalidJob::ExponentMissing { site: 1 });
}

#[test]
fn an_overflow_of_sums_without_exponents_ends_the_job() {
    let mut script = Script::new(obsdiff_core::Job { exponents: Some([].into()), ..job() });
    script.start(1);
    let order = Order::Calibrate { tally: Tally(1), shard: ShardId(0) };
    let mut report = |serial, site| {
        let fault = Fault::Overflow { site: SiteId(site), exponent: 0 };
        script.workers.get_mut(&1).unwrap().trouble = Some(Trouble { serial, order, fault });
        script.report(1);
        script.outcome()
    };
    // The first package is open.
    assert_eq!(report(1, 1), None);
    let failure = Failure::Overflow { site: SiteId(0), exponent: 0 };
    assert_eq!(report(2, 0), Some(Outcome::Failed(failure)));
}

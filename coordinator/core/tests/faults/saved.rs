//! Sums that workers have saved, and what is not run again because of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{
    Dismissal, Event, Fault, Job, Order, Outcome, Receipt, SavedSums, Status, StoredSums, Tally, Trouble,
};
use obsdiff_proto::{PackageId, ShardId, SiteId};

use crate::script::{Script, job};
use crate::{none, shards};

/// How long a shard takes each worker.
const PACE: Duration = Duration::from_secs(10);

fn saved(name: &str, shards: &[u32]) -> Arc<SavedSums> {
    let shards = shards.iter().map(|shard| ShardId(*shard)).collect();
    Arc::new(SavedSums { shards, receipt: Receipt(name.into()) })
}

/// What an earlier life has left of the first package.
fn stored(name: &str, shards: &[u32]) -> StoredSums {
    let exponents = [(SiteId(0), 12)].into();
    StoredSums { package: PackageId(0), exponents, saved: saved(name, shards) }
}

/// The first shards of the saved sums that these orders name.
fn restored(orders: &[Order]) -> BTreeSet<u32> {
    let first = |order: &Order| if let Order::Restore { first, .. } = order { Some(first.0) } else { None };
    orders.iter().filter_map(first).collect()
}

/// Two workers hold two shards each, and one of them has saved one of its own.
fn calibrated() -> (Script, ShardId) {
    let mut script = Script::new(job());
    let paced = || Status { pace: Some(PACE), ..Status::default() };
    script.join(1, paced());
    script.join(2, paced());
    for worker in [1, 2] {
        script.obey(worker, |order| matches!(order, Order::Form { .. }));
    }
    let sums = &mut script.workers.get_mut(&1).unwrap().sums;
    let shard = *sums.held.first().unwrap();
    sums.saved = Some(saved("one", &[shard.0]));
    script.report(1);
    script.look();
    (script, shard)
}

#[test]
fn what_a_lost_worker_had_saved_is_restored_and_only_the_rest_is_run_again() {
    let (mut script, shard) = calibrated();
    script.leave(1);
    script.workers.remove(&1);
    let left = script.events();
    assert!(matches!(&left[0], Event::Left { lost, saved: 1, .. } if lost.len() == 1), "{left:?}");
    // It may return with all of them.
    script.pass(19, &[2]);
    let orders = script.orders(2);
    assert_eq!((restored(&orders), shards(&orders)), (BTreeSet::new(), BTreeSet::new()));
    script.pass(1, &[2]);
    let orders = script.orders(2);
    assert_eq!((restored(&orders), shards(&orders).len()), ([shard.0].into(), 1));
    assert!(!shards(&orders).contains(&shard));
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_worker_that_drains_leaves_its_saved_sums_to_the_others_at_once() {
    let (mut script, shard) = calibrated();
    script.workers.get_mut(&1).unwrap().draining = true;
    script.report(1);
    script.leave(1);
    script.workers.remove(&1);
    assert_eq!(restored(&script.orders(2)), [shard.0].into());
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_worker_that_saves_its_sums_before_it_leaves_is_waited_for() {
    let (mut script, _) = calibrated();
    let status = script.workers.get_mut(&1).unwrap();
    (status.draining, status.saving) = (true, true);
    for _ in 0..60 {
        script.workers.get_mut(&1).unwrap().progress += 1;
        script.pass(1, &[1, 2]);
    }
    assert_eq!(script.dismissal(1), None);
    let status = script.workers.get_mut(&1).unwrap();
    let all = status.sums.held.iter().map(|shard| shard.0).collect::<Vec<_>>();
    (status.saving, status.sums.saved) = (false, Some(saved("all", &all)));
    script.report(1);
    assert_eq!(script.dismissal(1), Some(Dismissal::Drained));
    script.workers.remove(&1);
    let orders = script.orders(2);
    assert_eq!((restored(&orders), shards(&orders)), ([all[0]].into(), BTreeSet::new()));
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_worker_whose_sums_were_spoiled_goes_on_from_those_that_it_saved() {
    let (mut script, shard) = calibrated();
    script.workers.get_mut(&1).unwrap().sums.spoiled = true;
    script.report(1);
    let orders = [script.orders(1), script.orders(2)].concat();
    assert_eq!((restored(&orders), shards(&orders).len()), ([shard.0].into(), 1));
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn after_a_restart_each_worker_restores_sums_of_its_own_and_the_rest_is_run() {
    let sums = vec![stored("one", &[0]), stored("other", &[2, 3]), stored("earlier", &[3])];
    let mut script = Script::new(Job { life: 1, saved: sums, ..job() });
    script.start(1);
    script.start(2);
    script.pass(10, &[1, 2]);
    let orders = [1, 2].map(|worker| script.orders(worker));
    // Those of more shards go first, and no shard is in two.
    assert_eq!(orders.clone().map(|orders| restored(&orders)), [[2].into(), [0].into()]);
    assert_eq!(shards(&orders.concat()), BTreeSet::from([ShardId(1)]));
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn sums_of_another_package_or_other_exponents_or_unknown_shards_are_no_use() {
    let other_package = StoredSums { package: PackageId(1), ..stored("one", &[0]) };
    let other_exponents = StoredSums { exponents: [(SiteId(0), 8)].into(), ..stored("two", &[1]) };
    let sums = vec![other_package, other_exponents, stored("three", &[3, 4])];
    let mut script = Script::new(Job { life: 1, saved: sums, ..job() });
    script.start(1);
    script.pass(10, &[1]);
    assert_eq!(restored(&script.orders(1)), BTreeSet::new());
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn shards_of_sums_that_cannot_be_restored_are_run_again() {
    let mut script = Script::new(Job { life: 1, saved: vec![stored("one", &[0, 2])], ..job() });
    script.start(1);
    script.pass(10, &[1]);
    let order = Order::Restore { tally: Tally(1), first: ShardId(0) };
    assert!(script.orders(1).contains(&order));
    script.obey(1, |asked| *asked == order);
    let fault = Fault::Transient("is missing".to_owned());
    script.workers.get_mut(&1).unwrap().trouble = Some(Trouble { serial: 1, order, fault });
    script.report(1);
    let lost = script.events().into_iter().find_map(|event| match event {
        Event::Unrestored { error, lost, .. } => Some((error, lost)),
        _ => None,
    });
    assert_eq!(lost, Some(("is missing".to_owned(), vec![ShardId(0), ShardId(2)])));
    assert_eq!(restored(&script.orders(1)), BTreeSet::new());
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_worker_that_is_restoring_when_its_connection_breaks_goes_on_with_it() {
    let mut script = Script::new(Job { life: 1, saved: vec![stored("one", &[0, 2])], ..job() });
    script.start(1);
    script.pass(10, &[1]);
    let order = Order::Restore { tally: Tally(1), first: ShardId(0) };
    assert!(script.orders(1).contains(&order));
    let mut status = script.workers.remove(&1).unwrap();
    script.leave(1);
    script.look();
    (status.sums.tally, status.sums.package) = (Tally(1), Some(PackageId(0)));
    status.in_hand = [order].into();
    script.join(2, status);
    // It ends, and the worker says so.
    let status = script.workers.get_mut(&2).unwrap();
    status.in_hand.clear();
    status.sums.held = [ShardId(0), ShardId(2)].into();
    script.report(2);
    assert_eq!(script.core.view().held, 2);
    assert!(!script.events().iter().any(|event| matches!(event, Event::Discarded { .. })));
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn what_is_saved_is_forgotten_with_its_package() {
    let forgets = |script: &Script| {
        script.actions.iter().filter(|action| matches!(action, obsdiff_core::Action::ForgetSums)).count()
    };
    let mut script = Script::new(Job { life: 1, saved: vec![stored("one", &[0, 1, 2, 3])], ..job() });
    script.start(1);
    script.pass(10, &[1]);
    assert_eq!(restored(&script.orders(1)), [0].into());
    while script.core.view().committed == 0 {
        script.obey(1, none);
        script.store();
    }
    assert_eq!(forgets(&script), 1);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

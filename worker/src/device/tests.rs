mod saved;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use obsdiff_proto::message::{
    Command, Fault, Group, GroupStage, Opening, Order, Part, PartId, Receipt, Reduction, Slice, Status, Tally,
};
use obsdiff_proto::{
    Epoch, LinearId, LinearTarget, Package, PackageId, Plan, Shard, ShardId, SiteId, Target, WorkerId,
};

use super::*;
use workers::{CallControl, Workers};

/// One package of two sites and so many shards.
fn plan(shards: u32) -> Arc<Plan> {
    let target = |l| LinearTarget { linear: LinearId(l), target: Target::NToM { n: 2, m: 4 } };
    let package = Package {
        id: PackageId(0),
        units: 0..1,
        sites: vec![SiteId(0), SiteId(1)],
        linears: vec![target(0), target(1)],
        survey: false,
    };
    let shards = (0..shards).map(|i| Shard { id: ShardId(i), prompts: i..i + 1 }).collect();
    Arc::new(Plan { packages: vec![package], shards, budget: None })
}

fn part(site: u32) -> Arc<Part> {
    let slices = vec![Slice { linear: LinearId(site), rows: 0..4 }];
    let id = PartId { package: PackageId(0), site: SiteId(site), index: 0 };
    Arc::new(Part { id, sites: vec![SiteId(site)], slices, cost: 1 })
}

fn calibrate(tally: u64, shard: u32) -> Command {
    let exponents = [(SiteId(0), 12), (SiteId(1), 13)].into();
    let opening = Arc::new(Opening { package: PackageId(0), exponents });
    Command::Calibrate { tally: Tally(tally), shard: ShardId(shard), opening }
}

/// Workers 1 and 2, each the root of one site.
fn group(epoch: u64) -> Arc<Group> {
    let root = |site| Reduction { site: SiteId(site), roots: vec![WorkerId(u64::from(site) + 1)] };
    Arc::new(Group {
        epoch: Epoch(epoch),
        package: PackageId(0),
        members: vec![WorkerId(1), WorkerId(2)],
        reductions: vec![root(0), root(1)],
        owners: (0..2).map(|site| (part(site).id, WorkerId(u64::from(site) + 1))).collect(),
    })
}

fn form(epoch: u64, tally: u64, holds: &[u32]) -> Command {
    let holds: BTreeSet<_> = holds.iter().map(|s| ShardId(*s)).collect();
    Command::Form { tally: Tally(tally), holds: Arc::new(holds), group: group(epoch) }
}

fn machine(instance: u128) -> Machine {
    Machine { instance, speed: 1, hardware: "a processor".to_owned() }
}

fn stage(status: &Status) -> Option<&GroupStage> {
    status.group.as_ref().map(|group| &group.stage)
}

#[test]
fn two_workers_go_through_a_package() {
    let workers = Workers::open(&plan(3), 2);
    for (worker, shard) in [(1, 0), (1, 2), (2, 1)] {
        workers.take(worker, calibrate(1, shard));
    }
    let held = workers.idle(1).sums.held;
    assert_eq!(held, [ShardId(0), ShardId(2)].into());
    assert!(workers.idle(2).pace.is_some());
    workers.take(1, form(1, 1, &[0, 2]));
    workers.take(2, form(1, 1, &[1]));
    for worker in [1, 2] {
        workers.wait(worker, |status| stage(status) == Some(&GroupStage::Formed));
        workers.take(worker, Command::Reduce { epoch: Epoch(1) });
        workers.take(worker, Command::Solve { epoch: Epoch(1), part: part(worker as u32 - 1) });
    }
    let mut parts = std::collections::BTreeMap::new();
    for worker in [1usize, 2] {
        let status = workers.idle(worker);
        let site = SiteId(worker as u32 - 1);
        assert_eq!(stage(&status), Some(&GroupStage::Reduced));
        assert_eq!(status.group.as_ref().unwrap().received, [site].into());
        let solved = &status.solved[&part(site.0).id];
        assert_eq!(solved.exponents, [(site, 11 + worker as i32)].into());
        parts.insert(part(site.0).id, solved.receipt.clone());
        assert_eq!(status.trouble, None);
    }
    workers.part_store.commit(PackageId(0), parts);
    workers.take(1, Command::Apply { packages: 1 });
    let status = workers.idle(1);
    assert_eq!((status.applied, status.solved.len(), status.sums.held.len()), (1, 0, 0));
    workers.take(1, Command::Export);
    assert!(workers.idle(1).exported);
}

#[test]
fn a_command_that_comes_again_is_not_followed_again() {
    let workers = Workers::open(&plan(2), 1);
    workers.take(1, calibrate(1, 0));
    let before = workers.idle(1);
    for command in [calibrate(1, 0), calibrate(0, 1), Command::Apply { packages: 0 }] {
        workers.take(1, command);
        let after = workers.idle(1);
        assert_eq!((after.progress, &after.sums), (before.progress, &before.sums));
    }
    workers.take(1, Command::Abort { epoch: Epoch(7) });
    assert_eq!(stage(&workers.idle(1)), Some(&GroupStage::Aborted));
    // Orders of a group that is closed mean nothing.
    workers.take(1, Command::Reduce { epoch: Epoch(7) });
    workers.take(1, Command::Solve { epoch: Epoch(6), part: part(0) });
    assert_eq!(workers.idle(1).trouble, None);
}

#[test]
fn a_newer_tally_stops_a_shard_and_starts_from_zero() {
    let (control, hook) = CallControl::new();
    let workers = Workers::new(&plan(2), vec![hook]);
    workers.take(1, calibrate(1, 0));
    workers.take(1, calibrate(1, 1));
    assert_eq!(control.reached(), EngineCall::Shard(ShardId(0)));
    workers.take(1, Command::Discard { tally: Tally(2) });
    assert!(workers.idle(1).sums.held.is_empty());
    workers.take(1, calibrate(2, 1));
    // The old shard ends, and with it nothing; the new one counts.
    control.open.send(Ok(())).unwrap();
    assert_eq!(control.reached(), EngineCall::Shard(ShardId(1)));
    control.open.send(Ok(())).unwrap();
    let status = workers.idle(1);
    assert_eq!((status.sums.tally, status.sums.held), (Tally(2), [ShardId(1)].into()));
    assert_eq!(status.trouble, None);
}

#[test]
fn the_objects_of_a_package_come_in_the_order_of_its_parts_until_one_is_missing() {
    let store = MemoryPartStore::default();
    let id = |index| PartId { package: PackageId(0), site: SiteId(0), index };
    let manifest = (0..9).map(|index| (id(index), store.put(id(index), vec![index as u8]).unwrap()));
    let mut manifest: BTreeMap<_, _> = manifest.collect();
    let read = |manifest: &BTreeMap<_, _>| -> Result<Vec<u8>, _> {
        part_store::objects(&store, manifest).map(|read| read.map(|(_, bytes)| bytes[0])).collect()
    };
    assert_eq!(read(&manifest).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    manifest.insert(id(6), Receipt("part of another".into()));
    assert!(read(&manifest).unwrap_err().to_string().contains("part of another is missing"));
}

/// A worker that holds shard 0, and fails to read what shard 1 needs in this way, so many times.
fn fails_to_read(times: u32, error: fn() -> WorkError) -> (Workers, Arc<AtomicU32>) {
    let tried = Arc::new(AtomicU32::new(0));
    let counted = tried.clone();
    let hook: CallHook = Arc::new(move |call| match call {
        EngineCall::Read(ShardId(1)) if counted.fetch_add(1, Ordering::SeqCst) < times => Err(error()),
        _ => Ok(()),
    });
    let workers = Workers::new(&plan(2), vec![hook]);
    workers.take(1, calibrate(1, 0));
    workers.idle(1);
    workers.take(1, calibrate(1, 1));
    (workers, tried)
}

#[test]
fn a_store_that_is_away_is_waited_for_and_the_sums_stay() {
    let (workers, tried) = fails_to_read(2, || PartStoreError::Failed("away".to_owned()).into());
    // Whatever changes, it tries again.
    for tries in 1..=2 {
        workers.wait(1, |_| tried.load(Ordering::SeqCst) >= tries);
        workers.worker_states[0].drain();
    }
    let status = workers.idle(1);
    assert_eq!(status.sums.held, [ShardId(0), ShardId(1)].into());
    assert!(!status.sums.spoiled && status.trouble.is_none());
}

#[test]
fn a_shard_whose_prompts_cannot_be_read_leaves_the_sums_as_they_are() {
    let (workers, _) = fails_to_read(1, || PartStoreError::Damaged("not whole".to_owned()).into());
    let status = workers.idle(1);
    assert_eq!(status.sums.held, [ShardId(0)].into());
    assert!(!status.sums.spoiled);
    assert_eq!(status.trouble.unwrap().fault, Fault::Fatal("not whole".to_owned()));
}

#[test]
fn a_shard_that_fails_spoils_the_sums_and_is_told() {
    let (control, hook) = CallControl::new();
    let workers = Workers::new(&plan(2), vec![hook]);
    workers.take(1, calibrate(1, 0));
    workers.take(1, calibrate(1, 1));
    control.reached();
    let overflow = WorkError::Overflow { site: SiteId(1), exponent: 13 };
    control.open.send(Err(overflow)).unwrap();
    // The other shard of spoiled sums is dropped.
    let status = workers.idle(1);
    assert!(status.sums.spoiled && status.sums.held.is_empty());
    let trouble = status.trouble.unwrap();
    assert_eq!(trouble.order, Order::Calibrate { tally: Tally(1), shard: ShardId(0) });
    assert_eq!(trouble.fault, Fault::Overflow { site: SiteId(1), exponent: 13 });
}

#[test]
fn a_new_session_forgets_what_was_not_begun_and_tells_what_was() {
    let (control, hook) = CallControl::new();
    let workers = Workers::new(&plan(2), vec![hook]);
    workers.take(1, calibrate(1, 0));
    workers.take(1, calibrate(1, 1));
    control.reached();
    let hello = workers.worker_states[0].hello();
    let begun = Order::Calibrate { tally: Tally(1), shard: ShardId(0) };
    assert_eq!(hello.status.in_hand, [begun].into());
    assert_eq!(hello.exponents[&SiteId(1)], 13);
    control.open.send(Ok(())).unwrap();
    assert_eq!(workers.idle(1).sums.held, [ShardId(0)].into());
}

#[test]
fn an_abort_frees_a_worker_that_waits_in_a_reduction_and_the_sums_stay() {
    let (control, workers) = Workers::with_a_shard_each();
    let groups = |epoch| {
        workers.take(1, form(epoch, 1, &[0]));
        workers.take(2, form(epoch, 1, &[1]));
        for worker in [1, 2] {
            workers.wait(worker, |status| {
                status
                    .group
                    .as_ref()
                    .is_some_and(|g| g.epoch == Epoch(epoch) && g.stage == GroupStage::Formed)
            });
            workers.take(worker, Command::Reduce { epoch: Epoch(epoch) });
        }
    };
    groups(1);
    // The second worker never gets to its reduction: the first one is blocked.
    assert_eq!(control.reached(), EngineCall::Reduce(SiteId(0)));
    workers.take(1, Command::Abort { epoch: Epoch(1) });
    assert_eq!(stage(&workers.idle(1)), Some(&GroupStage::Aborted));
    // The second one finds its peer gone.
    control.open.send(Ok(())).unwrap();
    let failed = workers.wait(2, |status| matches!(stage(status), Some(GroupStage::Failed(_))));
    assert!(failed.in_hand.is_empty());
    groups(2);
    for site in 0..2 {
        assert_eq!(control.reached(), EngineCall::Reduce(SiteId(site)));
        control.open.send(Ok(())).unwrap();
    }
    let status = workers.idle(1);
    assert_eq!(stage(&status), Some(&GroupStage::Reduced));
    assert_eq!(status.sums.held, [ShardId(0)].into());
}

#[test]
fn a_site_is_solved_while_the_gram_of_another_is_on_its_way() {
    let (control, closed) = CallControl::new();
    let open: CallHook = Arc::new(|_| Ok(()));
    let hook: CallHook = Arc::new(move |call| match call {
        EngineCall::Reduce(SiteId(1)) => closed(call),
        _ => Ok(()),
    });
    let workers = Workers::new(&plan(2), vec![hook, open]);
    for worker in [1, 2] {
        workers.take(worker, calibrate(1, worker as u32 - 1));
        workers.idle(worker);
        workers.take(worker, form(1, 1, &[worker as u32 - 1]));
    }
    for worker in [1, 2] {
        workers.wait(worker, |status| stage(status) == Some(&GroupStage::Formed));
        workers.take(worker, Command::Reduce { epoch: Epoch(1) });
    }
    assert_eq!(control.reached(), EngineCall::Reduce(SiteId(1)));
    workers.take(1, Command::Solve { epoch: Epoch(1), part: part(0) });
    // What would add to the sums has to wait for them.
    workers.take(1, calibrate(1, 1));
    let status = workers.wait(1, |status| status.solved.contains_key(&part(0).id));
    assert_eq!(stage(&status), Some(&GroupStage::Formed));
    assert_eq!(status.sums.held, [ShardId(0)].into());
    control.open.send(Ok(())).unwrap();
    let status = workers.idle(1);
    assert_eq!(stage(&status), Some(&GroupStage::Reduced));
    assert_eq!(status.sums.held, [ShardId(0), ShardId(1)].into());
}

#[test]
fn a_group_of_other_sums_or_of_other_workers_is_refused() {
    let workers = Workers::open(&plan(2), 1);
    workers.take(1, calibrate(1, 0));
    workers.idle(1);
    workers.take(1, form(1, 1, &[0, 1]));
    assert!(matches!(stage(&workers.idle(1)), Some(GroupStage::Failed(_))));
    workers.worker_states[0].set_worker_id(WorkerId(9));
    workers.take(1, form(2, 1, &[0]));
    let status = workers.idle(1);
    assert!(
        matches!(stage(&status), Some(GroupStage::Failed(why)) if why.contains("no member")),
        "{status:?}"
    );
}

#[test]
fn a_part_that_cannot_be_stored_is_told_and_solved_again() {
    let (control, hook) = CallControl::new();
    let open: CallHook = Arc::new(|_| Ok(()));
    let workers = Workers::new(&plan(0), vec![hook, open]);
    let mut magnitude = Group::clone(&group(1));
    magnitude.reductions.clear();
    for worker in [1, 2] {
        let group = Arc::new(magnitude.clone());
        workers.take(worker, Command::Form { tally: Tally(1), holds: Arc::default(), group });
    }
    for worker in [1, 2] {
        workers.wait(worker, |status| stage(status) == Some(&GroupStage::Formed));
        workers.take(worker, Command::Reduce { epoch: Epoch(1) });
    }
    // A plan without shards needs no Gram: its parts are solved once the group is through.
    let solve = || Command::Solve { epoch: Epoch(1), part: part(0) };
    workers.take(1, solve());
    assert_eq!(control.reached(), EngineCall::Solve(part(0).id));
    control.open.send(Err(PartStoreError::Failed("no room".to_owned()).into())).unwrap();
    let status = workers.idle(1);
    assert_eq!(status.trouble.unwrap().fault, Fault::Transient("no room".to_owned()));
    workers.take(1, solve());
    control.reached();
    control.open.send(Ok(())).unwrap();
    assert_eq!(workers.idle(1).solved.len(), 1);
}

#[test]
fn a_gram_that_arrived_before_its_group_failed_is_solved_whenever_that_is_asked_for() {
    let (control, workers) = Workers::with_a_shard_each();
    workers.take(1, form(1, 1, &[0]));
    workers.take(2, form(1, 1, &[1]));
    for worker in [1, 2] {
        workers.wait(worker, |status| stage(status) == Some(&GroupStage::Formed));
        workers.take(worker, Command::Reduce { epoch: Epoch(1) });
    }
    // The first worker has its Gram when the second one leaves.
    assert_eq!(control.reached(), EngineCall::Reduce(SiteId(0)));
    control.open.send(Ok(())).unwrap();
    assert_eq!(control.reached(), EngineCall::Reduce(SiteId(1)));
    workers.take(2, Command::Abort { epoch: Epoch(1) });
    control.open.send(Ok(())).unwrap();
    let failed = workers.wait(1, |status| matches!(stage(status), Some(GroupStage::Failed(_))));
    assert_eq!(failed.group.unwrap().received, [SiteId(0)].into());
    workers.take(1, Command::Solve { epoch: Epoch(1), part: part(0) });
    assert_eq!(workers.idle(1).solved.keys().collect::<Vec<_>>(), [&part(0).id]);
    // What has not arrived never will.
    workers.take(1, Command::Solve { epoch: Epoch(1), part: part(1) });
    assert!(workers.idle(1).solved.len() == 1);
}

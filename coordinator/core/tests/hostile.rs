//! Whatever a worker says, in whatever order: the core never panics, and its invariants hold.

#[allow(dead_code, clippy::unwrap_used, clippy::panic)]
#[path = "faults/script.rs"]
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{
    Encoding, Exponents, Fault, GroupStage, GroupStatus, Hello, Input, Job, Order, PartId, Receipt,
    SavedSums, Solved, Status, Sums, Tally, Trouble,
};
use obsdiff_proto::{Epoch, Measures, PackageId, ShardId, SiteId, WorkerId};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use script::{Script, job};

/// Small numbers that often mean something, and now and then the largest one.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![30 => 0u64..5, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 2)]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![30 => 0u32..6, 1 => Just(u32::MAX)]
}

fn part() -> impl Strategy<Value = PartId> {
    let package = prop_oneof![2 => Just(0u32), 1 => small()].prop_map(PackageId);
    (package, small(), 0u32..2).prop_map(|(package, site, index)| PartId {
        package,
        site: SiteId(site),
        index,
    })
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        number().prop_map(|e| Order::Abort { epoch: Epoch(e) }),
        small().prop_map(|packages| Order::Apply { packages }),
        number().prop_map(|t| Order::Discard { tally: Tally(t) }),
        Just(Order::Pilot),
        (number(), small()).prop_map(|(t, s)| Order::Calibrate { tally: Tally(t), shard: ShardId(s) }),
        (number(), small()).prop_map(|(t, s)| Order::Restore { tally: Tally(t), first: ShardId(s) }),
        number().prop_map(|e| Order::Form { epoch: Epoch(e) }),
        number().prop_map(|e| Order::Reduce { epoch: Epoch(e) }),
        (number(), part()).prop_map(|(e, part)| Order::Solve { epoch: Epoch(e), part }),
        Just(Order::Export),
        Just(Order::Encode),
    ]
}

fn exponents() -> impl Strategy<Value = Exponents> {
    let any = btree_map(small().prop_map(SiteId), prop_oneof![5 => Just(12i32), 1 => any::<i32>()], 0..4);
    prop_oneof![Just([(SiteId(0), 12)].into()), Just([(SiteId(1), 12)].into()), any]
}

fn group() -> impl Strategy<Value = GroupStatus> {
    let stage = prop_oneof![
        1 => Just(GroupStage::Forming),
        3 => Just(GroupStage::Formed),
        3 => Just(GroupStage::Reduced),
        1 => Just(GroupStage::Failed("no".to_owned())),
        1 => Just(GroupStage::Aborted),
    ];
    (number(), stage, btree_set(small().prop_map(SiteId), 0..3))
        .prop_map(|(epoch, stage, received)| GroupStatus { epoch: Epoch(epoch), stage, received })
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (small(), prop_oneof![Just(12i32), any::<i32>()])
            .prop_map(|(site, exponent)| Fault::Overflow { site: SiteId(site), exponent }),
        Just(Fault::Transient("again".to_owned())),
    ]
}

fn sums() -> impl Strategy<Value = Sums> {
    let held: BTreeSet<_> = [].into();
    let held = prop_oneof![Just(held), btree_set(small().prop_map(ShardId), 0..4)];
    let package = prop_oneof![2 => Just(0u32), 1 => small()].prop_map(PackageId);
    let receipt = prop_oneof![Just(Receipt("x".into())), Just(Receipt("y".into()))];
    let saved = (btree_set(small().prop_map(ShardId), 0..4), receipt)
        .prop_map(|(shards, receipt)| Arc::new(SavedSums { shards, receipt }));
    let saved = option::weighted(0.4, saved);
    (number(), option::weighted(0.8, package), held, prop::bool::weighted(0.1), saved).prop_map(
        |(tally, package, held, spoiled, saved)| Sums { tally: Tally(tally), package, held, spoiled, saved },
    )
}

fn status() -> impl Strategy<Value = Status> {
    let solved = exponents().prop_map(|exponents| Solved { exponents, receipt: Receipt("x".into()) });
    let solved: BoxedStrategy<BTreeMap<PartId, Solved>> = btree_map(part(), solved, 0..3).boxed();
    let work =
        (sums(), option::of(group()), option::weighted(0.3, exponents()), solved, btree_set(order(), 0..4));
    let trouble =
        (number(), order(), fault()).prop_map(|(serial, order, fault)| Trouble { serial, order, fault });
    let rest =
        (number(), prop_oneof![9 => Just(0u32), 3 => 0u32..3, 1 => small()], option::weighted(0.2, trouble));
    let rare = prop::bool::weighted;
    let encoding = prop_oneof![Just(Encoding::Unready), Just(Encoding::Ready), Just(Encoding::Done)];
    let flags = (rare(0.1), rare(0.05), option::of(0u64..5000), rare(0.1), encoding);
    (work, rest, flags).prop_map(
        |((sums, group, pilot, solved, in_hand), (progress, applied, trouble), flags)| Status {
            progress,
            applied,
            sums,
            pace: flags.2.map(Duration::from_millis),
            group,
            pilot: pilot.map(Arc::new),
            solved,
            exported: flags.1,
            trouble,
            in_hand,
            draining: flags.0,
            saving: flags.0 && flags.1,
            preparing: flags.3,
            encoding: flags.4,
            measures: Measures::default(),
        },
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    (0u128..4, number(), exponents(), prop_oneof![Just(Status::default()), status()]).prop_map(
        |(instance, speed, exponents, status)| {
            let hardware = "a processor".to_owned();
            Hello { instance, speed, hardware, exponents, status }
        },
    )
}

fn input() -> impl Strategy<Value = Input> {
    let worker = || prop_oneof![0u64..60, 20u64..30].prop_map(WorkerId);
    // Mostly before the honest ones, whose ids grow from 20; now and then one of theirs, which they then cannot have.
    let newcomer = || prop_oneof![9 => 0u64..20, 1 => 20u64..24].prop_map(WorkerId);
    let package = || small().prop_map(PackageId);
    prop_oneof![
        3 => (newcomer(), hello()).prop_map(|(worker, hello)| Input::Joined { worker, hello: Box::new(hello) }),
        1 => worker().prop_map(|worker| Input::Left { worker, why: "left".to_owned() }),
        12 => (worker(), status()).prop_map(|(worker, status)| Input::Reported { worker, status: Box::new(status) }),
        1 => package().prop_map(|package| Input::Committed { package }),
        1 => package().prop_map(|package| Input::CommitFailed { package, error: "disk full".to_owned() }),
        3 => Just(Input::Tick),
    ]
}

/// What happens next: something hostile, or a step of an honest worker, which leads to the states worth attacking.
#[derive(Clone, Debug)]
enum NextInput {
    Hostile(Input),
    Starts,
    Obeys(u64),
    Stores,
}

fn turn() -> impl Strategy<Value = NextInput> {
    prop_oneof![
        4 => input().prop_map(NextInput::Hostile),
        1 => Just(NextInput::Starts),
        8 => any::<u64>().prop_map(NextInput::Obeys),
        1 => Just(NextInput::Stores),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_said_breaks_an_invariant(turns in vec((0u64..1500, turn()), 1..80), known in prop::bool::ANY) {
        let exponents = job().exponents.filter(|_| known);
        let mut script = Script::new(Job { exponents, ..job() });
        for (wait, turn) in turns {
            script.now += Duration::from_millis(wait);
            let workers: Vec<_> = script.workers.keys().copied().collect();
            // Every step checks the invariants.
            match turn {
                NextInput::Hostile(input) => script.step(input),
                NextInput::Starts => script.start(workers.last().map_or(20, |last| last + 1)),
                NextInput::Obeys(which) if !workers.is_empty() => {
                    script.obey(workers[which as usize % workers.len()], |_| false);
                }
                NextInput::Obeys(_) => {}
                NextInput::Stores => {
                    script.store();
                }
            }
        }
    }
}

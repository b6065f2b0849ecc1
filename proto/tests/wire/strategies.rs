//! Every word that can be said, drawn at random.

mod details;
mod job;
mod measures;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::message::{
    Command, Encoding, Exponents, Fault, Group, GroupStage, GroupStatus, Hello, Opening, Order, Part, PartId,
    Receipt, Reduction, SavedSums, Slice, Solved, Status, Sums, Tally, Trouble,
};
use obsdiff_proto::session::{Briefing, CoordinatorEvent, Dismissed, Reason, Welcome, WorkerEvent};
use obsdiff_proto::view::{Activity, Ending, JobReport, JobRequest, Phase, View, WatchMessage, WorkerView};
use obsdiff_proto::{
    Allocation, CalibrationSpec, Digest, Effort, Epoch, EvaluationSpec, HeadScore, HessianSpec, InputDigest,
    Inventory, JobSpec, Linear, LinearId, LinearTarget, Method, ModelSpec, OutputLayout, OutputSpec, Package,
    PackageId, PackagesSpec, Pattern, Plan, ProbeSpec, Shard, ShardId, Site, SiteId, SparsitySpec, Stream,
    StreamId, Target, Unit, WorkerId, WorkersSpec,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use measures::measures;

/// Small numbers that often meet each other, and any number.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..6, 1 => any::<u64>()]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..6, 1 => any::<u32>()]
}

fn words() -> impl Strategy<Value = String> {
    "\\PC{0,40}"
}

fn exponent() -> impl Strategy<Value = i32> {
    prop_oneof![Just(12), -1100i32..=1100]
}

fn exponents() -> impl Strategy<Value = Exponents> {
    btree_map(small().prop_map(SiteId), exponent(), 0..4)
}

fn tally() -> impl Strategy<Value = Tally> {
    number().prop_map(Tally)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    number().prop_map(Epoch)
}

fn shard() -> impl Strategy<Value = ShardId> {
    small().prop_map(ShardId)
}

fn shards() -> impl Strategy<Value = BTreeSet<ShardId>> {
    btree_set(shard(), 0..6)
}

fn worker() -> impl Strategy<Value = WorkerId> {
    number().prop_map(WorkerId)
}

fn part_id() -> impl Strategy<Value = PartId> {
    (small(), small(), small()).prop_map(|(package, site, index)| PartId {
        package: PackageId(package),
        site: SiteId(site),
        index,
    })
}

pub(crate) fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        epoch().prop_map(|epoch| Order::Abort { epoch }),
        small().prop_map(|packages| Order::Apply { packages }),
        tally().prop_map(|tally| Order::Discard { tally }),
        Just(Order::Pilot),
        (tally(), shard()).prop_map(|(tally, shard)| Order::Calibrate { tally, shard }),
        (tally(), shard()).prop_map(|(tally, first)| Order::Restore { tally, first }),
        epoch().prop_map(|epoch| Order::Form { epoch }),
        epoch().prop_map(|epoch| Order::Reduce { epoch }),
        (epoch(), part_id()).prop_map(|(epoch, part)| Order::Solve { epoch, part }),
        Just(Order::Export),
        Just(Order::Encode),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let rows = (0u32..u32::MAX, any::<u32>()).prop_map(|(start, n)| {
        let end = start.saturating_add(n).max(start + 1);
        start as usize..end as usize
    });
    let slice = (small(), rows).prop_map(|(linear, rows)| Slice { linear: LinearId(linear), rows });
    let sites = vec(small().prop_map(SiteId), 0..3);
    (part_id(), sites, vec(slice, 0..4), number()).prop_map(|(id, sites, slices, cost)| Part {
        id,
        sites,
        slices,
        cost,
    })
}

fn group() -> impl Strategy<Value = Group> {
    let reduction =
        (small(), vec(worker(), 0..3)).prop_map(|(site, roots)| Reduction { site: SiteId(site), roots });
    let owners = btree_map(part_id(), worker(), 0..4);
    (epoch(), small(), btree_set(worker(), 0..5), vec(reduction, 0..4), owners).prop_map(
        |(epoch, package, members, reductions, owners)| Group {
            epoch,
            package: PackageId(package),
            members: members.into_iter().collect(),
            reductions,
            owners,
        },
    )
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let opening = || {
        (small(), exponents())
            .prop_map(|(package, exponents)| Arc::new(Opening { package: PackageId(package), exponents }))
    };
    prop_oneof![
        epoch().prop_map(|epoch| Command::Abort { epoch }),
        small().prop_map(|packages| Command::Apply { packages }),
        tally().prop_map(|tally| Command::Discard { tally }),
        shard().prop_map(|shard| Command::Pilot { shard }),
        (tally(), shard(), opening()).prop_map(|(tally, shard, opening)| Command::Calibrate {
            tally,
            shard,
            opening
        }),
        (tally(), saved_sums(), opening()).prop_map(|(tally, saved, opening)| Command::Restore {
            tally,
            saved: Arc::new(saved),
            opening
        }),
        (tally(), shards(), group()).prop_map(|(tally, holds, group)| Command::Form {
            tally,
            holds: Arc::new(holds),
            group: Arc::new(group)
        }),
        epoch().prop_map(|epoch| Command::Reduce { epoch }),
        (epoch(), part()).prop_map(|(epoch, part)| Command::Solve { epoch, part: Arc::new(part) }),
        Just(Command::Export),
        any::<bool>().prop_map(|is_stored| Command::Encode { is_stored }),
    ]
}

fn saved_sums() -> impl Strategy<Value = SavedSums> {
    let receipt = words().prop_map(|words| Receipt(words.into()));
    (btree_set(shard(), 1..6), receipt).prop_map(|(shards, receipt)| SavedSums { shards, receipt })
}

fn group_status() -> impl Strategy<Value = GroupStatus> {
    let stage = prop_oneof![
        Just(GroupStage::Forming),
        Just(GroupStage::Formed),
        Just(GroupStage::Reduced),
        words().prop_map(GroupStage::Failed),
        Just(GroupStage::Aborted),
    ];
    (epoch(), stage, btree_set(small().prop_map(SiteId), 0..4))
        .prop_map(|(epoch, stage, received)| GroupStatus { epoch, stage, received })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        (small(), exponent()).prop_map(|(site, exponent)| Fault::Overflow { site: SiteId(site), exponent }),
        words().prop_map(Fault::Transient),
        words().prop_map(Fault::Environment),
        words().prop_map(Fault::Fatal),
    ];
    (number(), order(), fault).prop_map(|(serial, order, fault)| Trouble { serial, order, fault })
}

fn solved() -> impl Strategy<Value = Solved> {
    (exponents(), words()).prop_map(|(exponents, r)| Solved { exponents, receipt: Receipt(r.into()) })
}

pub(crate) fn status() -> impl Strategy<Value = Status> {
    let saved = option::of(saved_sums().prop_map(Arc::new));
    let sums = (tally(), option::of(small().prop_map(PackageId)), shards(), any::<bool>(), saved)
        .prop_map(|(tally, package, held, spoiled, saved)| Sums { tally, package, held, spoiled, saved });
    let pace = option::of(any::<u64>().prop_map(Duration::from_nanos));
    let work = (sums, pace, option::of(group_status()), option::of(exponents().prop_map(Arc::new)));
    let encoding = select(vec![Encoding::Unready, Encoding::Ready, Encoding::Done]);
    let done =
        (btree_map(part_id(), solved(), 0..4), option::of(trouble()), btree_set(order(), 0..5), encoding);
    (work, done, (number(), small(), any::<[bool; 4]>(), measures())).prop_map(
        |(
            (sums, pace, group, pilot),
            (solved, trouble, in_hand, encoding),
            (progress, applied, [exported, draining, preparing, saving], measures),
        )| {
            Status {
                progress,
                applied,
                sums,
                pace,
                group,
                pilot,
                solved,
                exported,
                trouble,
                in_hand,
                draining,
                saving,
                preparing,
                encoding,
                measures,
            }
        },
    )
}

pub(crate) fn hello() -> impl Strategy<Value = Hello> {
    (any::<u128>(), number(), words(), exponents(), status()).prop_map(
        |(instance, speed, hardware, exponents, status)| Hello {
            instance,
            speed,
            hardware,
            exponents,
            status,
        },
    )
}

pub(crate) fn worker_event() -> impl Strategy<Value = WorkerEvent> {
    prop_oneof![
        hello().prop_map(|hello| WorkerEvent::Hello(Box::new(hello))),
        status().prop_map(|status| WorkerEvent::Status(Box::new(status))),
    ]
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.5), 0.0f64..=1.0]
}

/// A model of units with a site each, a linear each; its plan prunes each unit in a package of its own.
fn model() -> impl Strategy<Value = (Inventory, Plan)> {
    vec((words(), 1usize..5000, 1usize..5000, share()), 1..5).prop_map(|units| {
        let mut inventory =
            Inventory { parameters: 7, streams: vec![Stream::new("text", 0, true)], ..Inventory::default() };
        let mut plan = Plan { packages: Vec::new(), shards: Vec::new(), budget: None };
        for (i, (name, width, rows, ratio)) in (0u32..).zip(units) {
            let at = i as usize;
            let (site, linear) = (SiteId(i), LinearId(i));
            inventory.units.push(Unit { block: i, name: "ffn-inputs".to_owned(), sites: vec![site] });
            inventory.sites.push(Site {
                name: name.clone(),
                width,
                stream: StreamId(0),
                joined: Vec::new(),
                linears: vec![linear],
            });
            inventory.linears.push(Linear { name, rows, bias: true, site });
            let target = LinearTarget { linear, target: Target::Unstructured { ratio } };
            let units: Range<usize> = at..at + 1;
            plan.packages.push(Package {
                id: PackageId(i),
                units,
                sites: vec![site],
                linears: vec![target],
                survey: false,
            });
            plan.shards.push(Shard { id: ShardId(i), prompts: i..i + 1 });
        }
        (inventory, plan)
    })
}

pub(crate) fn briefing() -> impl Strategy<Value = Briefing> {
    let input =
        words().prop_map(|path| InputDigest { sha256: Digest::of(path.as_bytes()).to_string(), path });
    (job::spec(), model(), vec(input, 0..3), words()).prop_map(|(spec, (inventory, plan), inputs, store)| {
        Briefing { spec, inventory, plan, inputs, store }
    })
}

pub(crate) fn dismissed() -> impl Strategy<Value = Dismissed> {
    (select(Reason::ALL.as_slice()), words()).prop_map(|(reason, words)| Dismissed { reason, words })
}

pub(crate) fn coordinator_event() -> impl Strategy<Value = CoordinatorEvent> {
    let welcome = (worker(), 1u32.., briefing()).prop_map(|(worker, millis, briefing)| {
        let heartbeat = Duration::from_millis(millis.into());
        CoordinatorEvent::Welcome(Box::new(Welcome { worker, heartbeat, briefing: Arc::new(briefing) }))
    });
    prop_oneof![
        1 => welcome,
        3 => command().prop_map(CoordinatorEvent::Command),
        1 => dismissed().prop_map(CoordinatorEvent::Dismissed),
        1 => option::of(details::progress()).prop_map(CoordinatorEvent::Heartbeat),
        1 => words().prop_map(CoordinatorEvent::StandBy),
    ]
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![Just(Ending::Done), Just(Ending::Cancelled), words().prop_map(Ending::Failed)]
}

fn worker_view() -> impl Strategy<Value = WorkerView> {
    use Activity::{
        Applies, Calibrates, Encodes, Exports, Leaves, Pilots, Prepares, Reduces, Restores, Solves, Waits,
    };
    let pace = option::of(any::<u64>().prop_map(Duration::from_nanos));
    let activity = select(vec![
        Leaves, Prepares, Encodes, Applies, Pilots, Calibrates, Restores, Reduces, Solves, Exports, Waits,
    ]);
    (worker(), small(), any::<[usize; 3]>(), pace, any::<[bool; 2]>(), activity).prop_map(
        |(worker, applied, [leased, held, solving], pace, [draining, preparing], activity)| WorkerView {
            worker,
            applied,
            leased,
            held,
            pace,
            draining,
            preparing,
            solving,
            activity,
        },
    )
}

fn phase() -> impl Strategy<Value = Phase> {
    use Phase::{Apply, Calibrate, Commit, Export, Over, Pilot, Reduce, Solve};
    select(vec![Pilot, Calibrate, Reduce, Solve, Commit, Apply, Export, Over])
}

fn view() -> impl Strategy<Value = View> {
    let counts = (any::<[usize; 2]>(), small(), any::<[usize; 4]>());
    let rest = (option::of(small()), option::of(epoch()), vec(worker_view(), 0..4), option::of(ending()));
    (phase(), counts, rest).prop_map(|(phase, counts, (package, epoch, workers, ending))| {
        let ([packages, surveys], committed, [shards, held, parts, solved]) = counts;
        View {
            phase,
            packages,
            surveys,
            committed,
            package: package.map(PackageId),
            shards,
            held,
            parts,
            solved,
            epoch,
            workers,
            ending,
        }
    })
}

fn time() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_millis)
}

pub(crate) fn report() -> impl Strategy<Value = JobReport> {
    let times = (time(), option::of(time()));
    let request = (words(), words(), words(), small(), small()).prop_map(
        |(pattern, sparsity, method, prompts, steps)| JobRequest {
            pattern,
            sparsity,
            method,
            prompts,
            steps,
        },
    );
    (words(), words(), words(), times, request, view(), details::details()).prop_map(
        |(release, model, output, (elapsed, left), request, view, details)| JobReport {
            release,
            model,
            output,
            elapsed,
            left,
            request,
            view,
            details,
        },
    )
}

pub(crate) fn news() -> impl Strategy<Value = WatchMessage> {
    prop_oneof![
        report().prop_map(|r| WatchMessage::Report(Box::new(r))),
        words().prop_map(WatchMessage::Event)
    ]
}

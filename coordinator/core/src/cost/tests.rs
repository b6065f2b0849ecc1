use std::collections::BTreeMap;

use obsdiff_proto::{
    Features, Linear, LinearId, LinearTarget, PackageId, PartKind, SiteId, Stream, StreamId, Structure,
    Target, Unit,
};

use super::*;
use crate::Options;
use crate::assignment::SolveCost;

/// One image site of width 4 read by two linears of 3 and 5 rows, one text site of width 2 read by one of 7.
fn small() -> (Plan, Inventory) {
    let site = |name: &str, width, stream, linears: &[u32]| Site {
        name: name.into(),
        width,
        stream: StreamId(stream),
        joined: Vec::new(),
        linears: linears.iter().map(|l| LinearId(*l)).collect(),
    };
    let linear = |rows, site| Linear { name: String::new(), rows, bias: true, site: SiteId(site) };
    let inventory = Inventory {
        streams: vec![Stream::new("image", 1, false), Stream::new("text", 0, true)],
        units: vec![Unit { block: 0, name: "inputs".to_owned(), sites: vec![SiteId(0), SiteId(1)] }],
        sites: vec![site("q", 4, 0, &[0, 1]), site("add_q", 2, 1, &[2])],
        linears: vec![linear(3, 0), linear(5, 0), linear(7, 1)],
        ..Inventory::default()
    };
    let target = |l| LinearTarget { linear: LinearId(l), target: Target::Unstructured { ratio: 0.5 } };
    let package = Package {
        id: PackageId(0),
        units: 0..1,
        sites: vec![SiteId(0), SiteId(1)],
        linears: (0..3).map(target).collect(),
        survey: false,
    };
    (Plan { packages: vec![package], shards: Vec::new(), budget: None }, inventory)
}

/// A forward call has two blocks, and takes a million operations.
fn workload() -> Workload {
    Workload {
        prompts: 10,
        steps: 5,
        together: 4,
        tokens: Tokens { image: 64, text: 20, branches: 2 },
        forward: ForwardFlops { start: 1e5, blocks: vec![4e5, 3e5], finish: 2e5 },
        survey: SurveyWork { trials: 8, passes: 3.0, trajectory: 4.0, calls: 1.0 },
    }
}

#[test]
fn a_survey_probes_and_the_package_after_it_does_not_calibrate() {
    let (plan, inventory) = small();
    let cost =
        |plan: &Plan| PlanCost::new(plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &workload());
    let bare = cost(&plan).packages[0];
    let plan = plan.with_surveys();
    let surveyed = cost(&plan);
    let [survey, package] = surveyed.packages[..] else { panic!("{surveyed:?}") };
    // The trajectory, and three linears of the first block, each probed at 3 points by all that comes after the start.
    let probing = 4e6 + 3.0 * 3.0 * 9e5;
    assert_eq!(survey.forward_flops, bare.forward_flops + probing);
    assert_eq!(survey.passes, bare.passes + (probing / 1e6).ceil() as u64);
    assert_eq!(survey.gram_flops, bare.gram_flops);
    assert!(survey.solve_flops > bare.solve_flops);
    let kept = PackageCost { passes: 0, forward_flops: 0.0, gram_flops: 0.0, gram_traffic: 0.0, ..bare };
    assert_eq!(package, kept);
    // In 16 bits each is probed twice.
    let survey = SurveyWork { calls: 2.0, ..workload().survey };
    let twice = Workload { survey, ..workload() };
    let twice = PlanCost::new(&plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &twice);
    assert_eq!(twice.packages[0].forward_flops, bare.forward_flops + 4e6 + 3.0 * 3.0 * 2.0 * 9e5);
}

#[test]
fn a_probe_makes_the_blocks_from_its_own_on_and_those_to_it_once() {
    let (_, mut inventory) = small();
    let unit =
        |block, site| Unit { block, name: "inputs".to_owned(), sites: [SiteId(site)].into_iter().collect() };
    inventory.units = vec![unit(0, 0), unit(1, 1)];
    let workload = workload();
    let probes = ProbeCost::new(&inventory, &workload);
    let flops = |linears: &[u32]| probes.flops(linears.iter().map(|linear| vec![LinearId(*linear)]));
    let (first, second, trajectory) = (4e5 + 3e5 + 2e5, 3e5 + 2e5, 4e6);
    assert_eq!(flops(&[]), 0.0);
    assert_eq!(flops(&[0, 1]), trajectory + 3.0 * 2.0 * first);
    assert_eq!(flops(&[2]), trajectory + 3.0 * (4e5 + second));
    assert_eq!(flops(&[0, 2, 2]), trajectory + 3.0 * (first + 4e5 + 2.0 * second));
    // On the way back all is made again from the start.
    assert_eq!(flops(&[2, 1, 2]), trajectory + 3.0 * (2.0 * (4e5 + second) + 1e5 + first));
    // A probe of several linears makes the blocks from the first of theirs on.
    assert_eq!(probes.flops([vec![LinearId(2), LinearId(0)]]), flops(&[0]));
}

#[test]
fn each_worker_takes_the_trajectory_to_its_own_probes() {
    let (plan, inventory) = small();
    let (plan, workload) = (plan.with_surveys(), workload());
    let rates = Rates { forward: 1e6, gram: 1e6, solve: BTreeMap::new() };
    let options = Options::default();
    let inputs = PredictionInputs {
        inventory: &inventory,
        accumulate: Accumulate::Exact,
        options: &options,
        workload: &workload,
        rates: &rates,
    };
    let solve = |workers| times(&plan, inputs, Cluster { workers, bandwidth: 1e9 })[0].solve;
    // The site of two linears is one part.
    assert_eq!((solve(1), solve(2)), (4.0 + 3.0 * 3.0 * 0.9, 4.0 + 2.0 * 3.0 * 0.9));
}

#[test]
fn a_survey_probes_each_structure_once() {
    let (mut plan, mut inventory) = small();
    for target in &mut plan.packages[0].linears {
        target.target = Target::Structured { ratio: None };
    }
    let structure = |outputs: &[u32]| Structure {
        name: String::new(),
        block: 0,
        kind: PartKind::Heads,
        count: 2,
        outputs: outputs.iter().map(|linear| Features::whole(LinearId(*linear), 2)).collect(),
        inputs: Vec::new(),
    };
    inventory.structures = vec![structure(&[0, 2]), structure(&[1])];
    let cost =
        |plan: &Plan| PlanCost::new(plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &workload());
    let bare = cost(&plan).packages[0];
    let survey = cost(&plan.with_surveys()).packages[0];
    assert_eq!(survey.forward_flops, bare.forward_flops + 4e6 + 2.0 * 3.0 * 9e5);
    assert_eq!(survey.solve_flops, bare.solve_flops);
}

#[test]
fn a_package_costs_what_its_formulas_say() {
    let (plan, inventory) = small();
    let cost = PlanCost::new(&plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &workload());
    let package = cost.packages[0];
    assert_eq!((package.linears, package.sites, package.passes), (3, 2, 100));
    assert_eq!(package.gram_bytes, 8 * (10 + 3));
    assert_eq!(package.forward_flops, 1e8);
    assert_eq!(package.gram_flops, (100 * 64 * 4 * 5 + 100 * 20 * 2 * 3) as f64);
    // Three forward calls for each of 5 steps.
    assert_eq!(package.gram_traffic, (15 * 2 * 8 * (10 + 3)) as f64);
    // A sweep, and two products with a triangle that measure what it changed.
    let rows = (8 * 16 + 7 * 4) as f64;
    assert_eq!(package.solve_flops, (64.0 + 8.0) / 3.0 + 3.0 * rows);
    assert_eq!((package.product_flops, package.solve_bytes), (2.0 * rows, 0.0));
    assert_eq!(package.weights, 8 * 4 + 7 * 2);
    let half = PlanCost::new(&plan, &inventory, Accumulate::F32, SolveCost::sweep(0), &workload());
    assert_eq!(half.largest_grams(), 4 * (10 + 3));
}

#[test]
fn refinement_adds_a_product_a_step_and_one_for_the_first_residual() {
    let (plan, inventory) = small();
    let solving = |refine| {
        PlanCost::new(&plan, &inventory, Accumulate::Exact, SolveCost::sweep(refine), &workload()).packages[0]
    };
    let product = (2 * (8 * 16 + 7 * 4)) as f64;
    assert_eq!(solving(1).solve_flops - solving(0).solve_flops, 2.0 * product);
    assert_eq!(solving(5).solve_flops - solving(1).solve_flops, 4.0 * product);
    assert_eq!(solving(5).product_flops - solving(1).product_flops, 4.0 * product);
    assert_eq!(solving(5).solve_bytes, (28 * 6 * (8 * 4 + 7 * 2)) as f64);
}

#[test]
fn each_part_of_a_site_factorises_its_gram() {
    let (plan, inventory) = small();
    let solving = SolveCost::sweep(0);
    let whole = PlanCost::new(&plan, &inventory, Accumulate::Exact, solving, &workload());
    let flops = |above| {
        whole.clone().in_parts(&plan, &inventory, above, solving, &workload()).packages[0].solve_flops
    };
    assert_eq!(flops(None), whole.packages[0].solve_flops);
    // The site of 4 features in two parts, a linear in each; that of 2 in one.
    assert_eq!((flops(Some(150)) - flops(None)).round(), (64.0f64 / 3.0).round());
}

#[test]
fn totals_add_up_but_grams_are_held_one_package_at_a_time() {
    let (mut plan, inventory) = small();
    let mut second = plan.packages[0].clone();
    second.sites.pop();
    second.linears.pop();
    plan.packages.push(second);
    let cost = PlanCost::new(&plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &workload());
    assert_eq!(cost.total().passes, 200);
    assert_eq!(cost.total().gram_bytes, 8 * (13 + 10));
    assert_eq!(cost.largest_grams(), 8 * 13);
    let needs = MemoryNeeds { model: 1000, text: 300, activations: 50, solver: 70, base: 7 };
    assert_eq!(needs.besides_grams(1), 1000 + 300 + 50 + 70 + 7);
    assert_eq!(needs.peak(&cost), 1000 + 300 + 8 * 13 + 50 + 70 + 7);
    for workers in 1..4 {
        assert_eq!(needs.room_for_grams(needs.peak_of(&cost, workers), workers), 8 * 13);
    }
}

#[test]
fn a_package_without_sites_runs_and_solves_nothing() {
    let (mut plan, inventory) = small();
    plan.packages[0].sites.clear();
    let package =
        PlanCost::new(&plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &workload()).packages[0];
    assert_eq!((package.passes, package.gram_bytes), (0, 0));
    assert!(package.solve_flops.is_sign_positive() && package.solve_flops == 0.0);
    assert_eq!(package.weights, 46);
}

/// A plan of three shards of 4, 4 and 2 prompts of a package.
fn sharded() -> (Plan, Inventory) {
    let (mut plan, inventory) = small();
    let shard = |(id, prompts)| obsdiff_proto::Shard { id: obsdiff_proto::ShardId(id), prompts };
    plan.shards = [(0, 0..4), (1, 4..8), (2, 8..10)].map(shard).to_vec();
    (plan, inventory)
}

/// Times of a package by so many workers, where all work goes at 1 a second.
fn times_of(workers: u32, split_above: Option<u64>) -> PackageTimes {
    let (plan, inventory) = sharded();
    let options = crate::Options { split_above, ..crate::Options::default() };
    let rates = Rates { forward: 1.0, gram: 1.0, solve: [(2, 1.0), (4, 2.0)].into() };
    let setting = PredictionInputs {
        inventory: &inventory,
        accumulate: Accumulate::Exact,
        options: &options,
        workload: &workload(),
        rates: &rates,
    };
    times(&plan, setting, Cluster { workers, bandwidth: 4.0 })[0]
}

#[test]
fn more_workers_share_shards_and_parts_and_send_their_grams_around() {
    let (plan, inventory) = sharded();
    let cost =
        PlanCost::new(&plan, &inventory, Accumulate::Exact, SolveCost::sweep(0), &workload()).packages[0];
    let one = times_of(1, None);
    assert!((one.calibrate - (cost.forward_flops + cost.gram_flops)).abs() < 1.0);
    // 4 x 4 x (4 + 8) at 2 a second, and 2 x 2 x (2 + 7).
    assert_eq!((one.reduce, one.solve), (0.0, 96.0 + 36.0));
    let two = times_of(2, None);
    assert!((two.calibrate / one.calibrate - 0.6).abs() < 1e-9, "one has 4 prompts, the other 4 and 2");
    assert_eq!((two.reduce, two.solve), (cost.gram_bytes as f64 / 4.0, 96.0));
    let many = times_of(256, None);
    assert!((many.calibrate / one.calibrate - 0.4).abs() < 1e-9, "a shard is run by one worker");
    assert!(many.reduce < 2.0 * two.reduce && many.solve == 96.0);
    // Two linears of 3 and 5 rows, in parts of their own.
    assert_eq!(times_of(256, Some(150)).solve, (16 * (4 + 5)) as f64 / 2.0);
}

#[test]
fn a_width_that_was_not_measured_is_solved_as_the_next_larger_one() {
    let solve = [(2, 3.0), (4, 5.0)].into();
    let rates = Rates { forward: 1.0, gram: 1.0, solve };
    assert_eq!([1, 2, 3, 4, 9].map(|width| rates.solving(width)), [3.0, 3.0, 5.0, 5.0, 5.0].map(Some));
}

use obsdiff_proto::{Linear, LinearId, LinearTarget, PackageId, SiteId, Target, Unit, UnitKind};

use super::*;

/// One image site of width 4 read by two linears of 3 and 5 rows, one text site of width 2 read by one of 7.
fn small() -> (Plan, Inventory) {
    let site = |name: &str, width, stream, linears: &[u32]| Site {
        name: name.into(),
        width,
        stream,
        linears: linears.iter().map(|l| LinearId(*l)).collect(),
    };
    let linear = |rows, site| Linear { name: String::new(), rows, site: SiteId(site) };
    let inventory = Inventory {
        parameters: 0,
        units: vec![Unit { block: 0, kind: UnitKind::AttentionInputs, sites: vec![SiteId(0), SiteId(1)] }],
        sites: vec![site("q", 4, Stream::Image, &[0, 1]), site("add_q", 2, Stream::Text, &[2])],
        linears: vec![linear(3, 0), linear(5, 0), linear(7, 1)],
    };
    let target = |l| LinearTarget { linear: LinearId(l), target: Target::Unstructured { ratio: 0.5 } };
    let package = Package {
        id: PackageId(0),
        units: 0..1,
        sites: vec![SiteId(0), SiteId(1)],
        linears: (0..3).map(target).collect(),
    };
    (Plan { packages: vec![package], shards: Vec::new() }, inventory)
}

const WORKLOAD: Workload = Workload {
    prompts: 10,
    steps: 5,
    branches: 2,
    tokens: Tokens { image: 64, text: 20 },
    forward_flops: 1e6,
};

#[test]
fn a_package_costs_what_its_formulas_say() {
    let (plan, inventory) = small();
    let cost = PlanCost::new(&plan, &inventory, Accumulate::Exact, &WORKLOAD);
    let package = cost.packages[0];
    assert_eq!((package.linears, package.sites, package.passes), (3, 2, 100));
    assert_eq!(package.gram_bytes, 8 * (10 + 3));
    assert_eq!(package.forward_flops, 1e8);
    assert_eq!(package.gram_flops, (100 * 64 * 4 * 5 + 100 * 20 * 2 * 3) as f64);
    assert_eq!(package.solve_flops, 2.0 / 3.0 * (64.0 + 8.0) + (8 * 16 + 7 * 4) as f64);
    assert_eq!(package.weights, 8 * 4 + 7 * 2);
    let half = PlanCost::new(&plan, &inventory, Accumulate::F32, &WORKLOAD);
    assert_eq!(half.largest_grams(), 4 * (10 + 3));
}

#[test]
fn totals_add_up_but_grams_are_held_one_package_at_a_time() {
    let (mut plan, inventory) = small();
    let mut second = plan.packages[0].clone();
    second.sites.pop();
    second.linears.pop();
    plan.packages.push(second);
    let cost = PlanCost::new(&plan, &inventory, Accumulate::Exact, &WORKLOAD);
    assert_eq!(cost.total().passes, 200);
    assert_eq!(cost.total().gram_bytes, 8 * (13 + 10));
    assert_eq!(cost.largest_grams(), 8 * 13);
    let needs = MemoryNeeds { model: 1000, text: 300, activations: 50, solver: 70, base: 7 };
    assert_eq!(needs.peak(&cost), 1000 + 300 + 8 * 13 + 70 + 7);
}

#[test]
fn a_package_without_sites_runs_and_solves_nothing() {
    let (mut plan, inventory) = small();
    plan.packages[0].sites.clear();
    let package = PlanCost::new(&plan, &inventory, Accumulate::Exact, &WORKLOAD).packages[0];
    assert_eq!((package.passes, package.gram_bytes), (0, 0));
    assert!(package.solve_flops.is_sign_positive() && package.solve_flops == 0.0);
    assert_eq!(package.weights, 46);
}

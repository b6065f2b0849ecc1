//! The arithmetic that the engine counts while it calibrates a shard and surveys a package is what the plan says of it, to the last
//! operation; and a survey is a small part of a calibration, which workers share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_core::assignment::{SolveCost, owners};
use obsdiff_core::{Part, PartId, PlanCost, Tokens, Workload, plan, split};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::{Inventory, JobSpec, Package, Plan, Shard, ShardId, WorkerId};
use serde_json::{Value, json};

const PROMPTS: [&str; 2] = ["a ring", "two birds on a wire"];
const STEPS: u32 = 2;
const TEXT_TOKENS: usize = 20;

/// A pruner of a test pipeline, and what the plan of its job is counted from.
struct Counted {
    spec: JobSpec,
    inventory: Inventory,
    tokens: Tokens,
    workload: Workload,
    pruner: Pruner,
}

impl Counted {
    /// Of a job with this `[sparsity]` and `[calibration]`, on pictures of this many latent rows and columns, by these prompts.
    fn new(
        asset: &str,
        [sparsity, calibration]: [&Value; 2],
        packages: u32,
        size: [u32; 2],
        prompts: &[&str],
    ) -> Self {
        let mut calibration = calibration.clone();
        (calibration["prompts"], calibration["guidance"]) = (json!("p.txt"), json!(3.0));
        let spec: JobSpec = serde_json::from_value(json!({
            "model": { "path": asset }, "sparsity": sparsity, "packages": { "count": packages },
            "calibration": calibration, "output": { "path": "out" }
        }))
        .unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(asset);
        let pipeline = PipelineFolder::open(&path).unwrap();
        let config = pipeline.transformer_config();
        let size = pipeline.latent_size(Some(size[0]), Some(size[1])).unwrap();
        let guidance = pipeline.guidance(spec.calibration.guidance, 1.0).unwrap();
        let encoders = pipeline.text_encoders(TEXT_TOKENS).unwrap();
        let tokens = Tokens {
            image: size.tokens as u64,
            text: encoders.tokens() as u64,
            branches: guidance.branches() as u64,
        };
        let workload = Workload::new(&spec, tokens, config.flops(1, size.tokens, encoders.tokens()));
        let weights = Arc::new(pipeline.transformer_weights().unwrap());
        let model = config.load(&weights, DType::F32).unwrap();
        let dtype = DType::F32;
        let encoded = Encoded::new(&encoders, prompts, dtype, &std::env::temp_dir(), &mut |_, _| {}).unwrap();
        let schedule = pipeline.schedule(spec.calibration.steps as usize, size.tokens).unwrap();
        let trajectories = Arc::new(Trajectories::new(schedule, guidance, 0, size, encoded));
        let pruner = Pruner::new(&spec, model, weights, trajectories);
        Self { spec, inventory: config.inventory(), tokens, workload, pruner }
    }

    fn plan(&self) -> Plan {
        plan(&self.spec, &self.inventory, self.tokens).unwrap()
    }

    fn cost(&self, plan: &Plan) -> PlanCost {
        let (solving, above) = (SolveCost::of(&self.spec.sparsity), Some(self.spec.packages.split_above));
        let cost =
            PlanCost::new(plan, &self.inventory, self.spec.hessian.accumulate, solving, &self.workload);
        cost.in_parts(plan, &self.inventory, above, solving, &self.workload)
    }

    fn parts(&self, package: &Package) -> Vec<Part> {
        let solving = SolveCost::of(&self.spec.sparsity);
        split::parts(&self.inventory, package, Some(self.spec.packages.split_above), solving)
    }

    /// Runs a shard for a package, with exponents found by a pilot.
    fn calibrate(&mut self, package: &Package, shard: &Shard) {
        let on_passed = &mut |_| Ok(());
        let exponents = self.pruner.pilot(shard, self.inventory.site_ids(), 1, on_passed).unwrap();
        self.pruner.open(package, &exponents).unwrap();
        self.pruner.calibrate(shard, on_passed).unwrap();
    }

    /// Operations of forward calls so far.
    fn operations(&self) -> f64 {
        self.pruner.model().operations() as f64
    }
}

/// Runs the only shard of a job with this `[sparsity]`, and compares.
fn holds(asset: &str, sparsity: &Value) {
    let calibration = json!({ "count": PROMPTS.len(), "steps": STEPS });
    let mut counted = Counted::new(asset, [sparsity, &calibration], 2, [32, 48], &PROMPTS);
    let plan = counted.plan();
    assert_eq!((plan.packages.len(), plan.shards.len()), (2, 1));
    let cost = counted.cost(&plan);
    let (shard, on_passed) = (&plan.shards[0], &mut |_| Ok(()));
    let exponents = counted.pruner.pilot(shard, counted.inventory.site_ids(), 1, on_passed).unwrap();
    for (package, cost) in plan.packages.iter().zip(&cost.packages) {
        let before = (counted.operations(), counted.pruner.gram_operations());
        counted.pruner.open(package, &exponents).unwrap();
        counted.pruner.calibrate(shard, on_passed).unwrap();
        let forward = counted.operations() - before.0;
        let grams = (counted.pruner.gram_operations() - before.1) as f64;
        assert!(forward > 0.0 && grams > 0.0);
        assert_eq!((forward, grams), (cost.forward_flops, cost.gram_flops), "{asset}, {sparsity}");
    }
}

#[test]
fn unstructured() {
    for asset in ["shapes-sd3", "shapes-flux"] {
        holds(asset, &json!({ "pattern": "unstructured", "ratio": 0.5 }));
    }
}

/// A Gram is one feature wider here.
#[test]
fn structured() {
    for asset in ["shapes-sd3", "shapes-flux"] {
        holds(asset, &json!({ "pattern": "structured", "method": "obs", "ratio": 0.25 }));
    }
}

#[test]
fn sites_that_rules_leave_out_are_not_counted() {
    for asset in ["shapes-sd3", "shapes-flux"] {
        let rules = json!([{ "match": "*.attn.*", "skip": true }]);
        holds(asset, &json!({ "pattern": "2:4", "rules": rules }));
    }
}

/// The default survey, beside a calibration by 100 prompts of 25 steps.
const CALIBRATION: (u32, u32) = (100, 25);

/// What the busier of two equal workers may take of a survey's arithmetic.
const MOST_OF_THE_BUSIER: f64 = 0.55;

/// What a survey may take of that calibration.
const MOST_OF_A_CALIBRATION: f64 = 0.4;

/// Surveys all linears of a pipeline and counts the operations of its forward calls.
fn probes(asset: &str) {
    let (prompts, steps) = CALIBRATION;
    let sparsity = json!({ "pattern": "unstructured", "ratio": 0.5 });
    let calibration = json!({ "count": prompts, "steps": steps });
    let mut counted = Counted::new(asset, [&sparsity, &calibration], 1, [32, 32], &PROMPTS[..1]);
    let plan = counted.plan().with_surveys();
    let [survey, package] = &plan.packages[..] else { panic!("one package and its survey are planned") };
    assert!(survey.survey && !package.survey);
    let (cost, parts) = (counted.cost(&plan), counted.parts(survey));
    let forward = counted.workload.forward.total();
    let passes = counted.workload.passes() as f64 * forward;
    let calibration = passes + cost.packages[0].gram_flops;

    counted.calibrate(survey, &Shard { id: ShardId(0), prompts: 0..1 });
    let grams = counted.pruner.placed_grams().unwrap();
    // The first part finds the dense model's trajectory to the last point.
    let last = counted.spec.probe.steps(steps).last().map_or(0.0, |last| f64::from(last + 1));
    let trajectory = last * counted.tokens.branches as f64 * forward;
    let mut operations: BTreeMap<PartId, f64> = BTreeMap::new();
    for part in &parts {
        let (begun, gram) = (counted.operations(), Some(&grams[&part.id.site]));
        let slices = counted.pruner.survey_slices(survey, &part.slices, gram, &mut || Ok(())).unwrap();
        assert!(slices.iter().all(|slice| slice.shift >= 0.0 && slice.changes.len() == 8));
        let taken = counted.operations() - begun;
        operations.insert(part.id, if operations.is_empty() { taken - trajectory } else { taken });
    }
    let probed = operations.values().sum::<f64>();
    // The plan counts the probes of one worker, in the order of the parts.
    assert_eq!(probed + trajectory, cost.packages[0].forward_flops - passes, "{asset}");
    let [forward, whole] =
        [0.0, cost.packages[0].solve_flops].map(|solved| (probed + trajectory + solved) / calibration);
    println!(
        "{asset}: probes take {forward:.3} of the arithmetic of a calibration of {prompts} prompts x {steps} steps, with all solving \
         {whole:.3}"
    );
    assert!(whole <= MOST_OF_A_CALIBRATION, "{asset}: {whole}");

    // Two equal workers own the parts by what solving them takes; each makes the trajectory for itself.
    let costs: Vec<_> = parts.iter().map(|part| (part.id, part.cost)).collect();
    let owned = &owners(&costs, &[(WorkerId(1), 1), (WorkerId(2), 1)]);
    let own = |worker: WorkerId| parts.iter().filter(move |part| owned[&part.id] == worker);
    let linears =
        [WorkerId(1), WorkerId(2)].map(|worker| own(worker).map(|part| part.slices.len()).sum::<usize>());
    let all_costs = parts.iter().map(|part| part.cost as f64).sum::<f64>();
    let work = [WorkerId(1), WorkerId(2)].map(|worker| {
        let probes = own(worker).map(|part| operations[&part.id]).sum::<f64>();
        let solving = own(worker).map(|part| part.cost as f64).sum::<f64>() / all_costs;
        probes + solving * cost.packages[0].solve_flops
    });
    let larger = work[0].max(work[1]) / (work[0] + work[1]);
    println!(
        "{asset}: two workers probe {linears:?} linears, the busier one with {larger:.3} of the arithmetic"
    );
    assert!(larger <= MOST_OF_THE_BUSIER, "{asset}: one worker takes {larger} of the arithmetic");
    let of_linears = linears[0].max(linears[1]) as f64 / (linears[0] + linears[1]) as f64;
    assert!(of_linears <= 0.6, "{asset}: {linears:?}");
}

#[test]
fn a_survey_is_a_small_part_of_a_calibration_and_two_workers_halve_it() {
    probes("shapes-sd3");
    probes("shapes-flux");
}

/// A budget that compares structures by the velocity probes each of them.
#[test]
fn a_survey_of_structures_takes_what_the_plan_says() {
    for asset in ["shapes-sd3", "shapes-flux"] {
        let sparsity = json!({ "pattern": "structured", "budget": 0.3, "budget_by": "velocity" });
        let calibration = json!({ "count": 1, "steps": 4 });
        let mut counted = Counted::new(asset, [&sparsity, &calibration], 1, [32, 32], &PROMPTS[..1]);
        let plan = counted.plan().with_surveys();
        let cost = counted.cost(&plan);
        let survey = &plan.packages[0];
        counted.calibrate(survey, &plan.shards[0]);
        let grams = counted.pruner.placed_grams().unwrap();
        let begun = counted.operations();
        let groups = counted.inventory.structure_groups(survey);
        assert!(groups.len() > 2 && counted.parts(survey).len() == groups.len());
        for group in &groups {
            counted.pruner.survey_structures(group, &grams, &mut || Ok(())).unwrap();
        }
        let calibrating = counted.workload.passes() as f64 * counted.workload.forward.total();
        let planned = cost.packages[0].forward_flops - calibrating;
        assert_eq!(counted.operations() - begun, planned, "{asset}");
    }
}

//! The arithmetic that the engine counts while it calibrates a shard is what the plan says of it, to the last operation; and what it
//! counts while it surveys linears is a small part of a calibration, which workers share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use obsdiff_core::assignment::{SolveCost, owners};
use obsdiff_core::{PartId, PlanCost, Tokens, Workload, plan, split};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::{JobSpec, Shard, ShardId, WorkerId};
use serde_json::{Value, json};

const PROMPTS: [&str; 2] = ["a ring", "two birds on a wire"];
const STEPS: u32 = 2;
const TEXT_TOKENS: usize = 20;

/// Runs the only shard of a job with this `[sparsity]`, and compares.
fn holds(asset: &str, sparsity: &Value) {
    let spec: JobSpec = serde_json::from_value(json!({
        "model": { "path": asset }, "sparsity": sparsity, "packages": { "count": 2 },
        "calibration": { "prompts": "p.txt", "count": PROMPTS.len(), "steps": STEPS, "guidance": 3.0 },
        "output": { "path": "out" }
    }))
    .unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(asset);
    let pipeline = PipelineFolder::open(&path).unwrap();
    let config = pipeline.transformer_config();
    let (inventory, size) = (config.inventory(), pipeline.latent_size(Some(32), Some(48)).unwrap());
    let guidance = pipeline.guidance(spec.calibration.guidance, 1.0).unwrap();
    let encoders = pipeline.text_encoders(TEXT_TOKENS).unwrap();
    let tokens = Tokens {
        image: size.tokens as u64,
        text: encoders.tokens() as u64,
        branches: guidance.branches() as u64,
    };
    let plan = plan(&spec, &inventory, tokens).unwrap();
    assert_eq!((plan.packages.len(), plan.shards.len()), (2, 1));
    let forward_flops = config.flops(1, size.tokens, encoders.tokens());
    let workload = Workload::new(&spec, tokens, forward_flops);
    let (accumulate, solving) = (spec.hessian.accumulate, SolveCost::of(&spec.sparsity));
    let cost = PlanCost::new(&plan, &inventory, accumulate, solving, &workload);

    let weights = Arc::new(pipeline.transformer_weights().unwrap());
    let model = config.load(&weights, DType::F32, &Device::Cpu).unwrap();
    let like = (DType::F32, &Device::Cpu);
    let encoded = Encoded::new(&encoders, &PROMPTS, like, &std::env::temp_dir(), &mut |_, _| {}).unwrap();
    let schedule = pipeline.schedule(STEPS as usize, size.tokens).unwrap();
    let trajectories = Arc::new(Trajectories::new(schedule, guidance, 0, size, encoded));
    let mut pruner = Pruner::new(&spec, model, weights, trajectories);
    let (shard, on_step) = (&plan.shards[0], &mut || Ok(()));
    let exponents = pruner.pilot(shard, inventory.site_ids(), 1, on_step).unwrap();
    for (package, cost) in plan.packages.iter().zip(&cost.packages) {
        let before = (pruner.model().operations(), pruner.gram_operations());
        pruner.open(package, &exponents).unwrap();
        pruner.calibrate(shard, on_step).unwrap();
        let forward = (pruner.model().operations() - before.0) as f64;
        let grams = (pruner.gram_operations() - before.1) as f64;
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
fn probes(asset: &str, size: u32) {
    let (prompts, steps) = CALIBRATION;
    let spec: JobSpec = serde_json::from_value(json!({
        "model": { "path": asset }, "sparsity": { "pattern": "unstructured", "ratio": 0.5 },
        "calibration": { "prompts": "p.txt", "count": prompts, "steps": steps, "guidance": 3.0 },
        "output": { "path": "out" }
    }))
    .unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(asset);
    let pipeline = PipelineFolder::open(&path).unwrap();
    let config = pipeline.transformer_config();
    let (inventory, size) = (config.inventory(), pipeline.latent_size(Some(size), Some(size)).unwrap());
    let guidance = pipeline.guidance(spec.calibration.guidance, 1.0).unwrap();
    let encoders = pipeline.text_encoders(TEXT_TOKENS).unwrap();
    let tokens = Tokens {
        image: size.tokens as u64,
        text: encoders.tokens() as u64,
        branches: guidance.branches() as u64,
    };
    let plan = plan(&spec, &inventory, tokens).unwrap().with_surveys();
    let [survey, package] = &plan.packages[..] else { panic!("one package and its survey are planned") };
    assert!(survey.survey && !package.survey);
    let workload = Workload::new(&spec, tokens, config.flops(1, size.tokens, encoders.tokens()));
    let solving = SolveCost::of(&spec.sparsity);
    let cost = PlanCost::new(&plan, &inventory, spec.hessian.accumulate, solving, &workload);
    let passes = workload.passes() as f64;
    let calibration = passes * workload.forward_flops + cost.packages[0].gram_flops;

    let weights = Arc::new(pipeline.transformer_weights().unwrap());
    let model = config.load(&weights, DType::F32, &Device::Cpu).unwrap();
    let like = (DType::F32, &Device::Cpu);
    let encoded =
        Encoded::new(&encoders, &PROMPTS[..1], like, &std::env::temp_dir(), &mut |_, _| {}).unwrap();
    let schedule = pipeline.schedule(steps as usize, size.tokens).unwrap();
    let trajectories = Arc::new(Trajectories::new(schedule, guidance, 0, size, encoded));
    let mut pruner = Pruner::new(&spec, model, weights, trajectories);
    let (one, on_step) = (Shard { id: ShardId(0), prompts: 0..1 }, &mut || Ok(()));
    let exponents = pruner.pilot(&one, inventory.site_ids(), 1, on_step).unwrap();
    pruner.open(survey, &exponents).unwrap();
    pruner.calibrate(&one, on_step).unwrap();
    let grams = pruner.placed_grams().unwrap();
    let parts = split::parts(&inventory, survey, Some(spec.packages.split_above), solving);
    // The first part finds the dense model's trajectory to the last point.
    let last = spec.probe.steps(steps).last().map_or(0.0, |last| f64::from(last + 1));
    let trajectory = last * tokens.branches as f64 * workload.forward_flops;
    let mut operations: BTreeMap<PartId, f64> = BTreeMap::new();
    for part in &parts {
        let begun = pruner.model().operations();
        let slices =
            pruner.survey_slices(survey, &part.slices, Some(&grams[&part.id.site]), on_step).unwrap();
        assert!(slices.iter().all(|slice| slice.shift >= 0.0 && slice.changes.len() == 8));
        let taken = (pruner.model().operations() - begun) as f64;
        operations.insert(part.id, if operations.is_empty() { taken - trajectory } else { taken });
    }
    let probed = operations.values().sum::<f64>();
    let [forward, whole] =
        [0.0, cost.packages[0].solve_flops].map(|solved| (probed + trajectory + solved) / calibration);
    println!(
        "{asset}: probes take {forward:.3} of the arithmetic of a calibration of {prompts} prompts x {steps} steps, with all solving \
         {whole:.3}"
    );
    assert!(whole <= MOST_OF_A_CALIBRATION, "{asset}: {whole}");
    // The plan counts a probe's blocks by their linears alone, and nothing of what comes after them.
    let planned = cost.packages[0].forward_flops - passes * workload.forward_flops;
    assert!((0.9..=1.1).contains(&(probed / planned)), "{asset}: {probed} operations, planned {planned}");

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
    probes("shapes-sd3", 32);
    probes("shapes-flux", 32);
}

//! The arithmetic that the engine counts while it calibrates a shard is what the plan says of it, to the last operation.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use obsdiff_core::assignment::SolveCost;
use obsdiff_core::{PlanCost, Tokens, Workload, plan};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::JobSpec;
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
    let encoders = pipeline.text_encoders(TEXT_TOKENS, &Device::Cpu).unwrap();
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

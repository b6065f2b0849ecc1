//! The engine proper saves and restores the Grams of a small transformer.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_engine::architecture::sd3::{Sd3Config, Sd3Transformer};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::pipeline::{Conditioning, LatentSize, PipelineFolder, noise};
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::message::Opening;
use obsdiff_proto::{JobSpec, LinearTarget, Package, Plan, Shard, Target, lock};
use obsdiff_store::JobStore;
use obsdiff_tests::shipped;
use serde_json::json;

use super::super::{Engine, JobPartStore, MemoryPartStore, PartStore, SumsStore, Watch};
use super::*;

const SHARDS: u32 = 5;
const TEXT: usize = 5;
const SIZE: LatentSize = LatentSize { channels: 4, height: 4, width: 4, tokens: 4 };

struct NoWatch;

impl Watch for NoWatch {
    fn steps(&self, _: u64) {}
    fn solved(&self, _: u64) {}
    fn expected(&self, _: f64) {}
}

fn spec(accumulate: &str) -> JobSpec {
    serde_json::from_value(json!({
        "model": { "path": "pipeline" },
        "sparsity": { "pattern": "2:4" },
        "hessian": { "accumulate": accumulate },
        "calibration": { "prompts": "prompts.txt", "count": SHARDS, "steps": 2, "guidance": 4.0, "shard_size": 1 },
        "output": { "path": "out", "grams": "grams", "gram_prompts": [2, 4] },
    }))
    .unwrap()
}

fn config(folder: &Path) -> Sd3Config {
    let keys = json!({
        "_class_name": "SD3Transformer2DModel", "attention_head_dim": 4, "caption_projection_dim": 16,
        "dual_attention_layers": [], "in_channels": 4, "joint_attention_dim": 12, "num_attention_heads": 4,
        "num_layers": 2, "out_channels": 4, "patch_size": 2, "pooled_projection_dim": 12, "pos_embed_max_size": 8,
        "qk_norm": "rms_norm", "sample_size": 8,
    });
    std::fs::write(folder.join("config.json"), keys.to_string()).unwrap();
    Sd3Config::read(folder).unwrap()
}

/// An engine on the dense model whose one package is all of it, on a device. It always has the same weights and trajectories.
fn engine_on(device: ComputeDevice, store: Arc<dyn PartStore>, spec: &JobSpec) -> PruningEngine<'static> {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let tensor = |(seed, (name, shape)): (u64, (String, Vec<usize>))| {
        (name, (noise(seed, &shape).unwrap() * 0.2).unwrap())
    };
    let tensors: HashMap<String, Tensor> = (3..).zip(config.shapes()).map(tensor).collect();
    let file = folder.path().join("weights.safetensors");
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let weights = Weights::open_file(&file).unwrap();
    let text = noise(1, &[TEXT, config.joint_attention_dim]).unwrap();
    let pooled = noise(2, &[config.pooled_projection_dim]).unwrap();
    let encoded = Encoded::repeated(Conditioning { text, pooled }, SHARDS).unwrap();
    let pipeline = PipelineFolder::open(&shipped("shapes-sd3")).unwrap();
    let schedule = pipeline.schedule(spec.calibration.steps as usize, SIZE.tokens).unwrap();
    let guidance = pipeline.transformer_config().guidance(spec.calibration.guidance);
    let trajectories = Trajectories::new(schedule, guidance, 0, SIZE, encoded);
    let inventory = config.inventory();
    let linears = inventory.linear_ids();
    let linears = linears.map(|linear| LinearTarget { linear, target: Target::NToM { n: 2, m: 4 } });
    let linears: Vec<_> = linears.collect();
    let sites: BTreeSet<_> = linears.iter().map(|target| inventory.linear(target.linear).site).collect();
    let sites = sites.into_iter().collect();
    let packages = vec![Package { id: PackageId(0), units: 0..1, sites, linears, survey: false }];
    let shards = (0..SHARDS).map(|i| Shard { id: ShardId(i), prompts: i..i + 1 }).collect();
    let model = Box::new(Sd3Transformer::load(config, &weights, DType::F32).unwrap());
    let pruner = Pruner::new(spec, model, Arc::new(weights), Arc::new(trajectories)).on(device);
    let plan = Arc::new(Plan { packages, shards, budget: None });
    PruningEngine::new(pruner, plan, store, Arc::new(NoWatch), Box::new(|_, _| Ok(())))
}

fn engine(store: &Arc<dyn PartStore>) -> PruningEngine<'static> {
    engine_on(ComputeDevice::Cpu, store.clone(), &spec("exact"))
}

fn no_step() -> Result<(), WorkError> {
    Ok(())
}

/// Opens the package, whose exponents the pilot finds.
fn open(engine: &mut PruningEngine<'_>) -> Exponents {
    let exponents = engine.pilot(ShardId(0), &mut no_step).unwrap();
    engine.open(&Opening { package: PackageId(0), exponents: exponents.clone() }).unwrap();
    exponents
}

fn run(engine: &mut PruningEngine<'_>, shards: impl IntoIterator<Item = u32>) {
    shards.into_iter().for_each(|shard| engine.calibrate(ShardId(shard), &mut no_step).unwrap());
}

fn save(engine: &mut PruningEngine<'_>, name: &str, shards: &[u32]) -> SavedSums {
    let shards: BTreeSet<_> = shards.iter().map(|shard| ShardId(*shard)).collect();
    let receipt = engine.save(name, &shards, &mut no_step).unwrap().unwrap();
    SavedSums { shards, receipt }
}

fn restore(engine: &mut PruningEngine<'_>, saved: &SavedSums) {
    let record = engine.check_saved(saved).unwrap();
    record.grams.iter().for_each(|gram| engine.restore(gram).unwrap());
}

/// All Grams of the open package, where they lie brought to the host.
fn grams(engine: &PruningEngine<'_>) -> Vec<(SiteId, Gram)> {
    let placed = engine.pruner.placed_grams().unwrap();
    let whole = placed.iter().map(|(site, gram)| (*site, Gram::clone(&gram.to_host().unwrap())));
    let of_groups = engine.pruner.grams_of_groups().into_iter().flatten();
    whole.chain(of_groups.map(|(site, gram)| (site, Gram::clone(&gram)))).collect()
}

/// The Grams that one engine gathers over these shards.
fn gathered(store: &Arc<dyn PartStore>, shards: impl IntoIterator<Item = u32>) -> Vec<(SiteId, Gram)> {
    let mut engine = engine(store);
    open(&mut engine);
    run(&mut engine, shards);
    grams(&engine)
}

fn in_memory() -> (MemoryPartStore, Arc<dyn PartStore>) {
    let store = MemoryPartStore::default();
    (store.clone(), Arc::new(store))
}

fn come_back(store: &Arc<dyn PartStore>) {
    let (two, all) = (gathered(store, 0..2), gathered(store, 0..5));
    assert!(two != all, "shards add to the Grams");
    let mut first = engine(store);
    open(&mut first);
    run(&mut first, 0..2);
    let replaced = save(&mut first, "1.1.0", &[0, 1]);
    let saved = save(&mut first, "1.2.0", &[0, 1]);
    // Equal Grams of two saves are objects of their own.
    first.forget(&replaced.receipt);
    assert!(first.check_saved(&replaced).is_err());
    assert!(grams(&first) == two, "saving leaves the sums");

    let mut empty = engine(store);
    open(&mut empty);
    restore(&mut empty, &saved);
    assert!(grams(&empty) == two, "restored into nothing");
    run(&mut empty, 2..5);
    assert!(grams(&empty) == all, "and added to");

    let mut other = engine(store);
    open(&mut other);
    run(&mut other, [4, 2, 3]);
    restore(&mut other, &saved);
    assert!(grams(&other) == all, "restored into what others have");
}

#[test]
fn restored_grams_are_those_that_were_saved() {
    come_back(&in_memory().1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = JobStore::create(folder.path().join("state").to_str().unwrap(), &[]).unwrap();
    runtime.block_on(store.claim(&spec("exact"))).unwrap();
    let part_store: Arc<dyn PartStore> = Arc::new(JobPartStore::new(store.clone(), runtime.handle().clone()));
    come_back(&part_store);
    assert_eq!(runtime.block_on(store.saved_sums()).unwrap().len(), 1);
}

#[test]
fn other_sums_than_those_of_the_open_package_are_refused_before_anything_is_added() {
    let (memory, store) = in_memory();
    let mut engine = engine(&store);
    let exponents = open(&mut engine);
    run(&mut engine, 0..1);
    let saved = save(&mut engine, "1.1.0", &[0]);
    let record = memory.sums(&saved.receipt).unwrap();
    engine.open(&Opening { package: PackageId(0), exponents }).unwrap();
    run(&mut engine, 1..2);
    let before = grams(&engine);
    let mut refused = |record: &SumsRecord, shards: &[u32]| {
        let shards = shards.iter().map(|shard| ShardId(*shard)).collect();
        let receipt = memory.put_sums(record).unwrap();
        match engine.check_saved(&SavedSums { shards, receipt }) {
            Err(WorkError::PartStore(PartStoreError::Damaged(problem))) => problem,
            checked => panic!("{checked:?}"),
        }
    };
    let of_package = SumsRecord { package: PackageId(1), ..record.clone() };
    assert!(refused(&of_package, &[0]).ends_with("they are of package 2"));
    let mut others = record.clone();
    others.exponents.values_mut().for_each(|exponent| *exponent -= 1);
    assert!(refused(&others, &[0]).ends_with("other exponents than the open package"));
    assert!(refused(&record, &[0, 3]).ends_with("of other shards than the order names"));
    let mut fewer = record.clone();
    fewer.grams.pop();
    assert!(refused(&fewer, &[0]).ends_with("other Grams than the open package"));
    let mut twice = record.clone();
    twice.grams[0] = twice.grams[1].clone();
    assert!(refused(&twice, &[0]).ends_with("other Grams than the open package"));
    memory.remove_grams(&[record.grams[0].receipt.clone()]).unwrap();
    assert!(refused(&record, &[0]).ends_with("is missing"));
    assert!(grams(&engine) == before, "nothing was added");
}

#[test]
fn a_save_that_fails_leaves_nothing_behind() {
    let (memory, store) = in_memory();
    let mut engine = engine(&store);
    open(&mut engine);
    run(&mut engine, 0..1);
    let before = grams(&engine);
    let mut steps = 0;
    let stopped = engine.save("1.1.0", &[ShardId(0)].into(), &mut || {
        steps += 1;
        if steps < 3 { Ok(()) } else { Err(WorkError::Stopped) }
    });
    assert!(matches!(stopped, Err(WorkError::Stopped)) && steps == 3);
    assert!(lock(&memory.0).objects.is_empty() && memory.saved_sums().is_empty());
    assert!(grams(&engine) == before);
}

#[test]
fn sums_of_floats_and_sums_that_are_not_there_are_not_saved() {
    let (memory, store) = in_memory();
    let mut floats = engine_on(ComputeDevice::Cpu, store.clone(), &spec("f32"));
    open(&mut floats);
    run(&mut floats, 0..1);
    for engine in [&mut floats, &mut engine(&store)] {
        assert_eq!(engine.save("1.1.0", &[ShardId(0)].into(), &mut no_step).unwrap(), None);
    }
    assert!(lock(&memory.0).objects.is_empty());
}

#[test]
fn a_sum_that_leaves_its_range_is_told_with_its_site_and_exponent() {
    let (_, store) = in_memory();
    let mut engine = engine(&store);
    let exponents = open(&mut engine);
    run(&mut engine, 0..1);
    // Each time the sums are added to themselves.
    let overflow = (0..64).find_map(|_| {
        let saved = save(&mut engine, "1.1.0", &[0]);
        let record = engine.check_saved(&saved).unwrap();
        record.grams.iter().find_map(|gram| engine.restore(gram).err())
    });
    match overflow {
        Some(WorkError::Overflow { site, exponent }) => assert_eq!(exponents[&site], exponent),
        other => panic!("{other:?}"),
    }
}

/// On a GPU in host memory, in a process that has its driver.
#[cfg(feature = "cuda")]
#[test]
fn what_a_gpu_has_summed_is_saved_and_added_to() {
    const TEST: &str = "device::saving::tests::what_a_gpu_has_summed_is_saved_and_added_to";
    const FOUND: &str = "FAKE_CUDA_FOUND";
    if std::env::var_os(FOUND).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(FOUND, "1")
            .env("LD_LIBRARY_PATH", obsdiff_tests::fake_cuda())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let errors = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{said}{errors}");
        return;
    }
    let (_, store) = in_memory();
    let on_gpu = |exponents: &Exponents| {
        let gpu = ComputeDevice::open(obsdiff_engine::device::DeviceName::Cuda(0)).unwrap();
        let mut engine = engine_on(gpu, store.clone(), &spec("exact"));
        engine.open(&Opening { package: PackageId(0), exponents: exponents.clone() }).unwrap();
        engine
    };
    let exponents = open(&mut engine(&store));
    let [mut whole, mut first, mut second] = [0; 3].map(|_| on_gpu(&exponents));
    run(&mut whole, 0..5);
    run(&mut first, 0..2);
    let saved = save(&mut first, "1.1.0", &[0, 1]);
    run(&mut second, 2..4);
    restore(&mut second, &saved);
    run(&mut second, 4..5);
    assert!(grams(&second) == grams(&whole));
}

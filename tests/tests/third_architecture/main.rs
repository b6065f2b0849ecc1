//! A third architecture, which this test registers. It shares no code with the shipped ones: it has its own configuration, inventory,
//! blocks and loading. All else (planner, calibration, solver, export) takes it as it is.
#![allow(clippy::unwrap_used, clippy::panic)]

mod architecture;
mod model;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use architecture::ARCHITECTURE;
use candle_core::{DType, Device, Tensor};
use obsdiff_core::assignment::SolveCost;
use obsdiff_core::split::parts;
use obsdiff_core::{Tokens, plan};
use obsdiff_engine::calibrate::{Encoded, Trajectories, WeightedTap, alphas};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::export::{Export, PruningRecord};
use obsdiff_engine::model::{DiffusionModel, Matrix, Tap};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::Pruner;
use obsdiff_engine::solve::{Factor, Obs, stride};
use obsdiff_files::Disk;
use obsdiff_proto::{Inventory, JobSpec, Package, Plan, SiteId};
use obsdiff_tests::{copy_folder, hash, noise};
use serde_json::{Value, json};

const PROMPTS: [&str; 3] = ["a ring", "two birds on a wire", "fog over a harbour"];
const TEXT_TOKENS: usize = 24;
const STEPS: usize = 3;
const DAMPING: f64 = 0.01;

/// The sizes of the transformer. Neither site's width is a multiple of a vector's lanes.
fn sizes() -> Value {
    json!({
        "_class_name": ARCHITECTURE.transformer_class,
        "blocks": 2, "channels": 4, "width": 28, "wide_branch": 44, "narrow_branch": 20, "text_width": 48
    })
}

/// A pipeline of this architecture: encoder, autoencoder and scheduler of a shipped one, and a random transformer.
fn pipeline(folder: &Path) -> PathBuf {
    let path = folder.join("pipeline");
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/shapes-flux"), &path);
    for unused in ["text_encoder_2", "tokenizer_2", "transformer"] {
        fs::remove_dir_all(path.join(unused)).unwrap();
    }
    let index = path.join("model_index.json");
    let mut keys: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    keys["_class_name"] = json!(ARCHITECTURE.pipeline_class);
    keys["transformer"] = json!(["diffusers", ARCHITECTURE.transformer_class]);
    keys.as_object_mut().unwrap().retain(|name, _| !name.ends_with("_2"));
    fs::write(&index, keys.to_string()).unwrap();
    let transformer = path.join("transformer");
    fs::create_dir(&transformer).unwrap();
    fs::write(transformer.join("config.json"), sizes().to_string()).unwrap();
    let tensors = (ARCHITECTURE.read)(&transformer).unwrap().shapes().into_iter().map(|(name, shape)| {
        let scale = (3.0 / *shape.last().unwrap() as f32).sqrt();
        let numbers = noise(hash(&name), shape.iter().product()).into_iter().map(|x| x * scale).collect();
        (name, Tensor::from_vec::<_, f32>(numbers, shape, &Device::Cpu).unwrap())
    });
    let tensors: std::collections::HashMap<_, _> = tensors.collect();
    let file = transformer.join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&tensors, file).unwrap();
    path
}

/// The job, with these further keys of `[sparsity]`.
fn spec(further: &Value) -> JobSpec {
    let mut sparsity = json!({ "method": "obs", "refine": 0 });
    sparsity.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "model": { "path": "pipeline" },
        "sparsity": sparsity,
        "calibration": {
            "prompts": "prompts.txt", "count": PROMPTS.len(), "steps": STEPS, "shard_size": 2
        },
        "hessian": { "damping": DAMPING, "precision": "f64" },
        "packages": { "count": 2 },
        "output": { "path": "out" }
    }))
    .unwrap()
}

/// The pruner of a job, and its plan.
fn planned(spec: &JobSpec, path: &Path) -> (Pruner, Plan, Arc<Weights>) {
    let pipeline = PipelineFolder::open_as(path, &[&ARCHITECTURE]).unwrap();
    let config = pipeline.transformer_config();
    let weights = Arc::new(pipeline.transformer_weights().unwrap());
    config.check(&weights).unwrap();
    let inventory = config.inventory();
    assert_eq!(inventory.check(), Ok(()));
    let size = pipeline.latent_size(Some(32), Some(48)).unwrap();
    let guidance = pipeline.guidance(2.0, 1.0).unwrap();
    let tokens =
        Tokens { image: size.tokens as u64, text: TEXT_TOKENS as u64, branches: guidance.branches() as u64 };
    let encoders = pipeline.text_encoders(TEXT_TOKENS).unwrap();
    let dtype = DType::F32;
    let encoded = Encoded::new(&encoders, &PROMPTS, dtype, path, &mut |_, _| {}).unwrap();
    let schedule = pipeline.schedule(STEPS, size.tokens).unwrap();
    let trajectories = Arc::new(Trajectories::new(schedule, guidance, 5, size, encoded));
    let model = config.load(&weights, DType::F32).unwrap();
    let plan = plan(spec, &inventory, tokens).unwrap();
    (Pruner::new(spec, model, weights.clone(), trajectories), plan, weights)
}

/// Keeps sum over observations of alpha X^T X for every site, in f64.
struct PlainGrams<'a> {
    inventory: &'a Inventory,
    alpha: f64,
    sums: BTreeMap<SiteId, Vec<f64>>,
}

impl WeightedTap for PlainGrams<'_> {
    fn set_alpha(&mut self, alpha: f64) {
        self.alpha = alpha;
    }
}

impl Tap for PlainGrams<'_> {
    fn wants(&self, _: SiteId) -> bool {
        true
    }

    fn observe(&mut self, site: SiteId, rows: &Matrix) -> obsdiff_engine::Result<()> {
        let n = self.inventory.site(site).width;
        let sum = self.sums.entry(site).or_insert_with(|| vec![0.0; n * n]);
        for row in rows.to_host()?.to_vec2::<f32>()? {
            for (i, x) in row.iter().enumerate() {
                for (j, y) in row.iter().enumerate() {
                    sum[i * n + j] += self.alpha * f64::from(*x) * f64::from(*y);
                }
            }
        }
        Ok(())
    }
}

/// The pruned weights of a package's linears by the definition: plain Grams of the model as it is, and a call of the solver for each.
fn expected(
    package: &Package,
    plan: &Plan,
    spec: &JobSpec,
    pruner: &Pruner,
    weights: &Weights,
) -> BTreeMap<String, Vec<f32>> {
    let inventory = pruner.model().inventory();
    let mut grams = PlainGrams { inventory, alpha: 1.0, sums: BTreeMap::new() };
    let hessian = &spec.hessian;
    let alphas = alphas(hessian.weighting, STEPS as u32, hessian.low, hessian.high);
    for shard in &plan.shards {
        let prompts = shard.prompts.clone();
        pruner.trajectories().denoise(pruner.model(), prompts, &alphas, &mut grams, &mut |_| Ok(())).unwrap();
    }
    let solved = package.linears.iter().map(|target| {
        let linear = inventory.linear(target.linear);
        let n = inventory.site(linear.site).width;
        let upper = grams.sums[&linear.site]
            .chunks_exact(n)
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, stride(n) - n)));
        let factor = Factor::new::<f64>(n, upper.collect(), DAMPING).unwrap();
        let name = format!("{}.weight", linear.name);
        let dense = weights.tensor(&name, &[linear.rows, n], DType::F32).unwrap();
        let mut weight = dense.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        Obs::default().prune(&mut weight, &factor, &target.target).unwrap();
        (name, weight)
    });
    solved.collect()
}

/// Prunes package by package; holds each one's weights against the definition.
fn prune(spec: &JobSpec, plan: &Plan, pruner: &mut Pruner, weights: &Weights) -> BTreeMap<String, Tensor> {
    let inventory = pruner.model().inventory().clone();
    let mut pruned = BTreeMap::new();
    let on_passed = &mut |_| Ok(());
    let sites = inventory.site_ids();
    let exponents = pruner.pilot(&plan.shards[0], sites, plan.shards.len(), on_passed).unwrap();
    for package in &plan.packages {
        let expected = expected(package, plan, spec, pruner, weights);
        pruner.open(package, &exponents).unwrap();
        plan.shards.iter().for_each(|shard| pruner.calibrate(shard, on_passed).unwrap());
        let mut solved = Vec::new();
        for part in parts(&inventory, package, None, SolveCost::of(&spec.sparsity)) {
            let gram = pruner.placed_grams().unwrap().remove(&part.sites[0]).unwrap();
            let mut done = |slice| {
                solved.push(slice);
                Ok(())
            };
            pruner.solve(package, &part.slices, Some(&gram), &mut done).unwrap();
        }
        assert_eq!(solved.len(), package.linears.len());
        for slice in solved {
            let name = format!("{}.weight", slice.report.name);
            let found = slice.weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let by_definition = &expected[&name];
            let zeros = |weight: &[f32]| weight.iter().map(|w| *w == 0.0).collect::<Vec<_>>();
            assert!(zeros(&found) == zeros(by_definition), "{name}: other weights are pruned");
            let most = by_definition.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
            for (found, expected) in found.iter().zip(by_definition) {
                assert!((found - expected).abs() <= 1e-4 * most, "{name}: {found}, not {expected}");
            }
            pruner.apply(slice.slice.linear, slice.weight.clone()).unwrap();
            pruned.insert(name, slice.weight);
        }
        pruner.close();
    }
    pruned
}

/// Plans, calibrates, prunes and exports; `share` is that of the zeros in each linear.
fn holds(further: &Value, share: f64) {
    let folder = tempfile::tempdir().unwrap();
    let path = pipeline(folder.path());
    let spec = spec(further);
    let (mut pruner, plan, weights) = planned(&spec, &path);
    assert_eq!((plan.packages.len(), plan.shards.len()), (2, 2));
    let pruned = prune(&spec, &plan, &mut pruner, &weights);
    assert_eq!(pruned.len(), 6, "three linears in each of two blocks");

    let destination = folder.path().join("out");
    let record = PruningRecord {
        obsdiff: "test".to_owned(),
        job: spec,
        hardware: String::new(),
        inputs: Vec::new(),
        held_out: Vec::new(),
        linears: Vec::new(),
        structures: Vec::new(),
        sizes: None,
        files: Vec::new(),
        measured: None,
    };
    let export = Export {
        source: &path,
        destination: &destination,
        link: false,
        weights: &weights,
        read: None,
        record: &record,
        documents: &[],
        shrink: None,
    };
    export.write(&Disk::default(), &|name| Ok(pruned.get(name).cloned())).unwrap();

    let written = PipelineFolder::open_as(&destination, &[&ARCHITECTURE]).unwrap();
    let read = Weights::open(&destination.join("transformer"), Library::Diffusers).unwrap();
    let numbers = |of: &Weights, name: &str, shape: &[usize]| {
        let tensor = of.tensor(name, shape, DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for (name, shape) in written.transformer_config().shapes() {
        let found = numbers(&read, &name, &shape);
        let expected = match pruned.get(&name) {
            Some(tensor) => tensor.flatten_all().unwrap().to_vec1().unwrap(),
            None => numbers(&weights, &name, &shape),
        };
        assert!(found == expected, "{name} is not written as it was pruned");
        if pruned.contains_key(&name) {
            let zeros = found.iter().filter(|w| **w == 0.0).count();
            assert_eq!(zeros, (share * found.len() as f64) as usize, "{name}");
        }
    }
    let again = written.transformer_config().load(&read, DType::F32).unwrap();
    let latents = |model: &dyn DiffusionModel| {
        let latents = pruner.trajectories().final_latents(model, 0..1, &mut || Ok(())).unwrap();
        latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert!(latents(&*again) == latents(pruner.model()), "the written model computes something else");
}

#[test]
fn half_of_the_weights_unstructured() {
    holds(&json!({ "pattern": "unstructured", "ratio": 0.5 }), 0.5);
}

#[test]
fn two_of_four() {
    holds(&json!({ "pattern": "2:4" }), 0.5);
}

#[test]
fn a_checkpoint_of_other_tensors_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = pipeline(folder.path());
    let mut other = sizes();
    other["blocks"] = json!(1);
    fs::write(path.join("transformer/config.json"), other.to_string()).unwrap();
    let pipeline = PipelineFolder::open_as(&path, &[&ARCHITECTURE]).unwrap();
    let weights = pipeline.transformer_weights().unwrap();
    let error = pipeline.transformer_config().check(&weights).unwrap_err().to_string();
    assert_eq!(error, "the checkpoint has 11 tensors, but 7 are expected");
}

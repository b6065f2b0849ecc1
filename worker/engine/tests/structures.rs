//! Structures of one site, solved together, against the answer by the definition in f64: what the weights become when all that goes is
//! removed at once, by the inverse of the whole H.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::{Guidance, read_config};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::model::{Denoise, DiffusionModel, State, Tap};
use obsdiff_engine::pipeline::{Conditioning, PipelineFolder, noise};
use obsdiff_engine::pruner::{Grams, Pruner, SolvedStructures};
use obsdiff_engine::{Error, Result};
use obsdiff_proto::{
    Accumulate, Features, Inventory, JobSpec, Linear, LinearId, LinearTarget, Package, PackageId, PartKind,
    Site, SiteId, Stream, StreamId, Structure, StructureId, Target,
};
use serde_json::{Value, json};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");
const DAMPING: f64 = 0.02;

/// A model of which only the inventory is asked: weights are solved as the checkpoint has them.
struct Listed(Inventory);

impl DiffusionModel for Listed {
    fn inventory(&self) -> &Inventory {
        &self.0
    }

    fn duplicate(&self) -> Box<dyn DiffusionModel> {
        Box::new(Self(self.0.clone()))
    }

    fn operations(&self) -> u64 {
        0
    }

    fn block_count(&self) -> usize {
        0
    }

    fn start(&self, _: &Denoise<'_>) -> Result<State> {
        Err(nothing_but_an_inventory())
    }

    fn block(&self, _: usize, _: State, _: &mut dyn Tap) -> Result<State> {
        Err(nothing_but_an_inventory())
    }

    fn finish(&self, _: State) -> Result<Tensor> {
        Err(nothing_but_an_inventory())
    }

    fn weight(&self, _: LinearId) -> Result<&Tensor> {
        Err(nothing_but_an_inventory())
    }

    fn replace(&mut self, _: LinearId, _: Tensor) -> Result<()> {
        Err(nothing_but_an_inventory())
    }

    fn bias(&self, _: LinearId) -> Result<Option<&Tensor>> {
        Err(nothing_but_an_inventory())
    }

    fn replace_bias(&mut self, _: LinearId, _: Tensor) -> Result<()> {
        Err(nothing_but_an_inventory())
    }
}

fn nothing_but_an_inventory() -> Error {
    Error::Argument("the model has nothing but an inventory".to_owned())
}

/// A pruner of structures with these further keys of `[sparsity]`.
fn pruner(inventory: &Inventory, weights: &Arc<Weights>, further: &Value) -> Pruner {
    let mut sparsity = json!({ "pattern": "structured", "ratio": 0.5 });
    for (key, value) in further.as_object().unwrap() {
        sparsity[key] = value.clone();
    }
    let spec: JobSpec = serde_json::from_value(json!({
        "model": { "path": "dense" }, "sparsity": sparsity, "hessian": { "damping": DAMPING },
        "calibration": { "prompts": "p.txt", "steps": 2 }, "output": { "path": "out" }
    }))
    .unwrap();
    let pipeline = PipelineFolder::open(&Path::new(ASSETS).join("shapes-sd3")).unwrap();
    let size = pipeline.latent_size(Some(32), Some(32)).unwrap();
    let schedule = pipeline.schedule(2, size.tokens).unwrap();
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let encoded = Encoded::repeated(Conditioning { text: ones(&[1, 1]), pooled: ones(&[1]) }, 1).unwrap();
    let guidance = Guidance { classifier_free: 1.0, input: None };
    let trajectories = Arc::new(Trajectories::new(schedule, guidance, 0, size, encoded));
    Pruner::new(&spec, Box::new(Listed(inventory.clone())), weights.clone(), trajectories)
}

/// The Gram of random rows whose features are correlated and have means, with the constant behind them.
fn gram(seed: u64, width: usize) -> Gram {
    let rows = noise(seed, &[4 * width, width]).unwrap().to_vec2::<f32>().unwrap();
    let mut all = Vec::new();
    for row in rows {
        let mut before = 0.0;
        for (j, x) in row.into_iter().enumerate() {
            before = x + 0.5 * before + (j % 7) as f32 * 0.1;
            all.push(before);
        }
        all.push(1.0);
    }
    let mut gram = Gram::new(width + 1, Accumulate::F32, 0);
    gram.observe(&all, 1.0).unwrap();
    gram
}

fn package(inventory: &Inventory, group: &[StructureId]) -> Package {
    let target = |linear| LinearTarget { linear, target: Target::Structured { ratio: Some(0.5) } };
    let linears: Vec<_> = inventory.outputs_of(group).into_iter().map(target).collect();
    let sites = group.iter().flat_map(|id| inventory.sites_of(*id)).collect::<BTreeSet<_>>();
    Package { id: PackageId(0), units: 0..0, sites: sites.into_iter().collect(), linears, survey: false }
}

/// A matrix (rows x n) in f64.
fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A^-1 B for symmetric positive definite A (n x n) and B (n x m), by elimination.
fn solved(mut a: Vec<f64>, mut b: Vec<f64>, n: usize) -> Vec<f64> {
    let m = b.len() / n;
    for i in 0..n {
        let pivot = a[i * n + i];
        for k in (0..n).filter(|k| *k != i) {
            let factor = a[k * n + i] / pivot;
            (i..n).for_each(|j| a[k * n + j] -= factor * a[i * n + j]);
            (0..m).for_each(|j| b[k * m + j] -= factor * b[i * m + j]);
        }
    }
    for i in 0..n {
        (0..m).for_each(|j| b[i * m + j] /= a[i * n + i]);
    }
    b
}

/// The weight (rows x n) without the columns `gone`, and the bias that keeps the mean of the outputs: the least squares of the columns
/// that stay, H_SS W_S^T = H_S: W^T.
fn by_definition(gram: &Gram, weight: &[f64], gone: &BTreeSet<usize>, folds: bool) -> (Vec<f64>, Vec<f64>) {
    let n = gram.width() - 1;
    let upper = gram.to_upper::<f64>(n + 1);
    let mass = upper[(n + 1) * (n + 1) - 1];
    let at = |i: usize, j: usize| upper[i.min(j) * (n + 1) + i.max(j)] / mass;
    let mean = |i: usize| if folds { at(i, n) } else { 0.0 };
    let mut h: Vec<f64> = (0..n * n).map(|k| at(k / n, k % n) - mean(k / n) * mean(k % n)).collect();
    let damping = DAMPING * (0..n).map(|j| h[j * n + j]).sum::<f64>() / n as f64;
    (0..n).for_each(|j| h[j * n + j] += damping);
    let stays: Vec<usize> = (0..n).filter(|j| !gone.contains(j)).collect();
    let left = stays.iter().flat_map(|i| stays.iter().map(|j| h[i * n + j]).collect::<Vec<_>>()).collect();
    let rows = weight.len() / n;
    let right = stays.iter().flat_map(|i| {
        let h = &h;
        (0..rows).map(move |r| (0..n).map(|j| h[i * n + j] * weight[r * n + j]).sum::<f64>())
    });
    let answer = solved(left, right.collect(), stays.len());
    let mut new = vec![0.0; weight.len()];
    for (s, j) in stays.iter().enumerate() {
        (0..rows).for_each(|r| new[r * n + j] = answer[s * rows + r]);
    }
    let moved = |r: usize| (0..n).map(|j| (weight[r * n + j] - new[r * n + j]) * mean(j)).sum();
    let bias = (0..rows).map(moved).collect();
    (new, bias)
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

struct Case {
    inventory: Inventory,
    weights: Arc<Weights>,
    group: Vec<StructureId>,
    grams: BTreeMap<SiteId, Arc<Gram>>,
}

impl Case {
    fn new(inventory: Inventory, weights: Weights, group: &[StructureId]) -> Self {
        assert_eq!(inventory.check(), Ok(()));
        let sites: BTreeSet<_> = group.iter().flat_map(|id| inventory.sites_of(*id)).collect();
        let gram = |site: SiteId| (site, Arc::new(gram(u64::from(site.0), inventory.site(site).width)));
        let grams = sites.into_iter().map(gram).collect();
        Self { grams, group: group.to_vec(), weights: Arc::new(weights), inventory }
    }

    fn grams(&self) -> Grams {
        self.grams.iter().map(|(site, gram)| (*site, Arc::clone(gram).into())).collect()
    }

    fn dense(&self, name: &str, shape: &[usize]) -> Vec<f64> {
        wide(&self.weights.tensor(name, shape, DType::F32).unwrap())
    }

    fn solve(&self, further: &Value) -> SolvedStructures {
        let pruner = pruner(&self.inventory, &self.weights, further);
        let package = package(&self.inventory, &self.group);
        pruner.solve_structures(&package, &self.group, &self.grams(), &[]).unwrap()
    }

    /// By linear, the features that are zero in a solved weight, of columns or of rows.
    fn zeros(&self, solved: &SolvedStructures, features: &Features, by_rows: bool) -> BTreeSet<usize> {
        let linear = self.inventory.linear(features.linear);
        let width = self.inventory.site(linear.site).width;
        let weight = wide(&solved.tensors[&format!("{}.weight", linear.name)]);
        let zero = |feature: &usize| {
            let mut values = weight.iter().enumerate();
            values.all(|(at, w)| *w == 0.0 || *feature != if by_rows { at / width } else { at % width })
        };
        (0..if by_rows { linear.rows } else { width }).filter(zero).collect()
    }

    /// Holds what was solved to the definition.
    fn check(&self, further: &Value, folds: bool) -> SolvedStructures {
        let solved = self.solve(further);
        let mut gone = BTreeMap::<LinearId, BTreeSet<usize>>::new();
        for (id, report) in &solved.structures {
            let structure = self.inventory.structure(*id);
            assert_eq!((&report.name, report.of), (&structure.name, structure.count));
            assert_eq!(report.kept, structure.count - structure.count.div_ceil(2));
            // Rows and columns of the same parts are zero.
            let parts: Vec<BTreeSet<usize>> = structure
                .inputs
                .iter()
                .map(|input| (input, self.zeros(&solved, input, true)))
                .chain(structure.outputs.iter().map(|output| (output, self.zeros(&solved, output, false))))
                .map(|(features, zeros)| {
                    let of = |part: &usize| features.of(*part).all(|feature| zeros.contains(&feature));
                    (0..structure.count).filter(of).collect()
                })
                .collect();
            assert!(parts.iter().all(|other| other.len() == report.of - report.kept && *other == parts[0]));
            if report.heads {
                assert_eq!(report.removed, parts[0].iter().copied().collect::<Vec<_>>());
            }
            for output in &structure.outputs {
                let columns = parts[0].iter().flat_map(|part| output.of(*part));
                gone.entry(output.linear).or_default().extend(columns);
            }
        }
        for (id, gone) in gone {
            let linear = self.inventory.linear(id);
            let (rows, width) = (linear.rows, self.inventory.site(linear.site).width);
            let dense = self.dense(&format!("{}.weight", linear.name), &[rows, width]);
            let folds = folds && linear.bias;
            let (wanted, moved) = by_definition(&self.grams[&linear.site], &dense, &gone, folds);
            let error = apart(&wide(&solved.tensors[&format!("{}.weight", linear.name)]), &wanted);
            println!("{}: {} of {width} columns gone, {error:.1e} apart", linear.name, gone.len());
            assert!(error < 1e-5, "{}: {error}", linear.name);
            let bias = format!("{}.bias", linear.name);
            assert_eq!(solved.tensors.contains_key(&bias), folds);
            if folds {
                let dense = self.dense(&bias, &[rows]);
                let wanted: Vec<f64> = dense.iter().zip(moved).map(|(bias, moved)| bias + moved).collect();
                assert!(apart(&wide(&solved.tensors[&bias]), &wanted) < 1e-5, "{bias}");
            }
        }
        solved
    }
}

fn flux(names: &[&str]) -> Case {
    let folder = Path::new(ASSETS).join("goldens/transformers/flux-dev");
    let inventory = read_config(&folder).unwrap().inventory();
    let id = |name: &&str| {
        let place = inventory.structures.iter().position(|s| s.name == *name).unwrap();
        StructureId(place as u32)
    };
    let group: Vec<_> = names.iter().map(id).collect();
    assert_eq!(inventory.structure_groups(&package(&inventory, &group)), std::slice::from_ref(&group));
    Case::new(inventory, Weights::open(&folder, Library::Diffusers).unwrap(), &group)
}

#[test]
fn a_single_stream_block_loses_heads_and_neurons_of_one_site() {
    let single = "single_transformer_blocks.1";
    let case = flux(&[&format!("{single}.attn"), &format!("{single}.proj_mlp")]);
    let solved = case.check(&json!({}), true);
    let changed: Vec<_> = solved.linears.iter().map(|(_, linear)| linear.name.as_str()).collect();
    let names = ["proj_out", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];
    assert_eq!(changed, names.map(|name| format!("{single}.{name}")));
    case.check(&json!({ "fold_bias": false }), false);
    case.check(&json!({ "head_score": "obs-diff" }), true);
}

#[test]
fn heads_of_a_double_stream_block_go_from_both_streams() {
    let case = flux(&["transformer_blocks.1.attn"]);
    assert_eq!(case.check(&json!({}), true).linears.len(), 8);
}

#[test]
fn the_l1_norm_takes_the_same_parts_from_all_that_make_and_read_them() {
    let single = "single_transformer_blocks.2";
    let case = flux(&[&format!("{single}.attn"), &format!("{single}.proj_mlp")]);
    let solved = case.solve(&json!({ "method": "l1" }));
    let [(_, heads), (_, neurons)] = &solved.structures[..] else { panic!("two structures") };
    assert_eq!((heads.kept, heads.error, neurons.kept, neurons.of), (2, None, 128, 256));
    let output = wide(&solved.tensors[&format!("{single}.proj_out.weight")]);
    let dense = case.dense(&format!("{single}.proj_out.weight"), &[64, 320]);
    let kept = output.iter().zip(&dense).filter(|(new, _)| **new != 0.0).all(|(new, dense)| new == dense);
    let gone = output.chunks(320).next().unwrap().iter().filter(|w| **w == 0.0).count();
    assert!(kept && gone == 2 * 16 + 128);
}

#[test]
fn a_survey_finds_each_structures_errors_with_the_others_whole() {
    let single = "single_transformer_blocks.0";
    let names = [format!("{single}.attn"), format!("{single}.proj_mlp")];
    let both = flux(&[&names[0], &names[1]]);
    let mut pruner = pruner(&both.inventory, &both.weights, &json!({ "budget_by": "errors" }));
    let together = pruner.survey_structures(&both.group, &both.grams(), &mut || Ok(())).unwrap();
    assert_eq!([together[0].len(), together[1].len()], [3, 256 - 13]);
    for (id, errors) in both.group.iter().zip(&together) {
        assert_eq!(
            pruner.survey_structures(&[*id], &both.grams(), &mut || Ok(())).unwrap(),
            std::slice::from_ref(errors)
        );
        assert!(errors.iter().all(|error| *error > 0.0));
    }
}

/// One linear makes gates, values and heads, none of them with a bias, and another reads heads and neurons.
#[test]
fn fused_and_gated_projections_without_biases_lose_their_row_groups() {
    let site = |name: &str, width, linear| Site {
        name: name.to_owned(),
        width,
        stream: StreamId(0),
        joined: Vec::new(),
        linears: vec![LinearId(linear)],
    };
    let linear =
        |name: &str, rows, site| Linear { name: name.to_owned(), rows, bias: false, site: SiteId(site) };
    let features = |linear, offset, size| Features { linear: LinearId(linear), offset, size };
    // 4 heads of 3 features, then 10 neurons: 12 queries, 12 keys, 12 values, 10 gates, 10 up.
    let inventory = Inventory {
        streams: vec![Stream::new("joint", 1, true)],
        sites: vec![site("fused", 8, 0), site("out", 22, 1)],
        linears: vec![linear("fused", 56, 0), linear("out", 8, 1)],
        structures: vec![
            Structure {
                name: "attn".to_owned(),
                block: 0,
                kind: PartKind::Heads,
                count: 4,
                outputs: vec![features(1, 0, 3)],
                inputs: [0, 12, 24].map(|offset| features(0, offset, 3)).to_vec(),
            },
            Structure {
                name: "mlp".to_owned(),
                block: 0,
                kind: PartKind::Neurons,
                count: 10,
                outputs: vec![features(1, 12, 1)],
                inputs: [36, 46].map(|offset| features(0, offset, 1)).to_vec(),
            },
        ],
        ..Inventory::default()
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let tensors =
        [("fused.weight", noise(1, &[56, 8]).unwrap()), ("out.weight", noise(2, &[8, 22]).unwrap())];
    candle_core::safetensors::save(&tensors.into_iter().collect(), file.path()).unwrap();
    let weights = Weights::open_file(file.path()).unwrap();
    let case = Case::new(inventory, weights, &[StructureId(0), StructureId(1)]);
    let solved = case.check(&json!({}), true);
    assert_eq!(solved.tensors.keys().collect::<Vec<_>>(), ["fused.weight", "out.weight"]);
    let gone = case.zeros(&solved, &features(0, 0, 1), true);
    assert_eq!(gone.len(), 3 * 2 * 3 + 2 * 5);
}

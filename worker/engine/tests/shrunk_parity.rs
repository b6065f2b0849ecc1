//! A model without the heads and neurons that nobody reads computes what it computed with them: SD3-medium, SD3.5-medium with its
//! second attentions, SD3.5-large, FLUX.1-dev and FLUX.1-schnell.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::read_config;
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::export::{Export, PruningRecord, Shrink};
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap};
use obsdiff_engine::pruner::{kept_parts, selections};
use obsdiff_proto::{Features, LinearId, PartKind};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/transformers");

/// The golden forward call. FLUX's holds packed tokens of 4 x 6 squares, and timesteps from 0 to 1.
fn predict(model: &dyn DiffusionModel, folder: &Path) -> Tensor {
    let inputs: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("forward.safetensors"), &Device::Cpu).unwrap();
    let (mut latents, mut timestep) = (inputs["hidden_states"].clone(), inputs["timestep"].clone());
    if let Ok((batch, _, features)) = latents.dims3() {
        let squares = latents.reshape(&[batch, 4, 6, features / 4, 2, 2]).unwrap();
        let picture = squares.permute([0, 3, 1, 4, 2, 5]).unwrap();
        latents = picture.reshape((batch, features / 4, 8, 12)).unwrap();
        timestep = (timestep * 1000.0).unwrap();
    }
    let call = Denoise {
        latents: &latents,
        timestep: &timestep,
        text: &inputs["encoder_hidden_states"],
        pooled: &inputs["pooled_projections"],
        guidance: inputs.get("guidance"),
    };
    model.forward(&call, &mut NoTap).unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    f64::from(norm(&(a - b).unwrap()) / norm(b))
}

/// Makes some rows (or columns) of a linear zero, with their biases where they are rows.
fn clear(model: &mut dyn DiffusionModel, id: LinearId, by_rows: bool, gone: &[usize]) {
    let (rows, n) = model.weight(id).unwrap().dims2().unwrap();
    let size = if by_rows { rows } else { n };
    let mask: Vec<f32> = (0..size).map(|i| if gone.contains(&i) { 0.0 } else { 1.0 }).collect();
    let shape = if by_rows { (rows, 1) } else { (1, n) };
    let weights = Tensor::from_slice(&mask, shape, &Device::Cpu).unwrap();
    let weight = model.weight(id).unwrap().broadcast_mul(&weights).unwrap();
    model.replace(id, weight).unwrap();
    if by_rows {
        let bias = (model.bias(id).unwrap().unwrap() * Tensor::new(mask, &Device::Cpu).unwrap()).unwrap();
        model.replace_bias(id, bias).unwrap();
    }
}

fn record() -> PruningRecord {
    let job = serde_json::json!({
        "model": { "path": "dense" }, "sparsity": { "pattern": "structured", "ratio": 0.5 },
        "calibration": { "prompts": "p.txt" }, "output": { "path": "out" }
    });
    PruningRecord {
        hardware: "a processor".to_owned(),
        obsdiff: "0".into(),
        job: serde_json::from_value(job).unwrap(),
        inputs: vec![],
        held_out: vec![],
        linears: vec![],
        structures: vec![],
        sizes: None,
        files: Vec::new(),
        measured: None,
    }
}

fn shrinks_without_a_difference(name: &str) {
    let golden = Path::new(GOLDENS).join(name);
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("dense");
    fs::create_dir_all(source.join("transformer")).unwrap();
    fs::write(source.join("model_index.json"), r#"{"transformer": ["diffusers", "SD3Transformer2DModel"]}"#)
        .unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(golden.join(file), source.join("transformer").join(file)).unwrap();
    }
    let config = read_config(&source.join("transformer")).unwrap();
    let weights = Weights::open(&source.join("transformer"), Library::Diffusers).unwrap();
    let mut model = config.load(&weights, DType::F32).unwrap();
    let dense = predict(&*model, &golden);

    let inventory = model.inventory().clone();
    assert_eq!(inventory.structures.iter().any(|s| s.name.ends_with("attn2")), name == "sd35-medium");
    for (i, structure) in inventory.structures.iter().enumerate() {
        // Every third neuron; of heads the first or the last, block by block. Some structures stay whole.
        let goes = |part: usize| match structure.kind {
            PartKind::Heads => part == i % structure.count && structure.count > 1,
            PartKind::Neurons => i % 4 != 3 && part % 3 == 1,
        };
        let gone = |features: &Features| -> Vec<usize> {
            (0..structure.count).filter(|part| goes(*part)).flat_map(|part| features.of(part)).collect()
        };
        structure.outputs.iter().for_each(|of| clear(&mut *model, of.linear, false, &gone(of)));
        structure.inputs.iter().for_each(|of| clear(&mut *model, of.linear, true, &gone(of)));
    }
    let masked = predict(&*model, &golden);
    assert!(apart(&masked, &dense) > 1e-3, "{name}: nothing changed");

    let weight = &mut |id| model.weight(id).unwrap().flatten_all()?.to_vec1::<f32>();
    let kept = kept_parts(&inventory, 1, weight).unwrap();
    let small = config.shrunk(&kept.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(
        small.flops(1, 64, 20).total() < config.flops(1, 64, 20).total()
            && small.same_but_for_blocks(&*config)
    );
    let files = small.shrunk_files(&source.join("transformer")).unwrap();
    let module = files[1].0.clone();
    let shrink = Shrink { kept: selections(&inventory, &kept), files };
    let destination = root.path().join("out");
    let by_name: HashMap<String, LinearId> =
        inventory.linears.iter().zip(0..).map(|(l, id)| (l.name.clone(), LinearId(id))).collect();
    let tensor = |name: &str| {
        let (linear, what) = name.rsplit_once('.').unwrap_or((name, ""));
        let Some(id) = by_name.get(linear) else { return Ok(None) };
        if what == "weight" { model.weight(*id).map(Some) } else { model.bias(*id) }.map(|t| t.cloned())
    };
    let record = record();
    let export = Export {
        source: &source,
        destination: &destination,
        link: false,
        weights: &weights,
        read: None,
        record: &record,
        documents: &[],
        shrink: Some(&shrink),
    };
    export.write(&obsdiff_files::Disk::default(), &tensor).unwrap();

    let folder = destination.join("transformer");
    let read = read_config(&folder).unwrap();
    assert!(read.shapes() == small.shapes() && read.same_but_for_blocks(&*small));
    let written = Weights::open(&folder, Library::Diffusers).unwrap();
    let total: u64 = small.inventory().parameters;
    assert!(total < inventory.parameters);
    let shrunk = read.load(&written, DType::F32).unwrap();
    let error = apart(&predict(&*shrunk, &golden), &masked);
    println!("{name}: {} of {} parameters, {error:.1e} apart", total, inventory.parameters);
    assert!(error < 1e-6, "{name}: {error}");
    assert!(folder.join(module).is_file());
}

#[test]
fn sd3_medium() {
    shrinks_without_a_difference("sd3-medium");
}

#[test]
fn sd35_medium() {
    shrinks_without_a_difference("sd35-medium");
}

#[test]
fn sd35_large() {
    shrinks_without_a_difference("sd35-large");
}

#[test]
fn flux_dev() {
    shrinks_without_a_difference("flux-dev");
}

#[test]
fn flux_schnell() {
    shrinks_without_a_difference("flux-schnell");
}

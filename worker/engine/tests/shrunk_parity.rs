//! A model without the heads and neurons that nobody reads computes what it computed with them: SD3-medium, SD3.5-medium with its
//! second attentions, SD3.5-large.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::sd3::{MODULE, MODULE_FILE, Sd3Config, Sd3Transformer};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::export::{Export, PruningRecord, Shrink};
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap};
use obsdiff_engine::pruner::{kept_parts, selections};
use obsdiff_proto::LinearId;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/transformers");

/// The golden forward call.
fn predict(model: &Sd3Transformer, folder: &Path) -> Tensor {
    let inputs: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("forward.safetensors"), &Device::Cpu).unwrap();
    let call = Denoise {
        latents: &inputs["hidden_states"],
        timestep: &inputs["timestep"],
        text: &inputs["encoder_hidden_states"],
        pooled: &inputs["pooled_projections"],
        guidance: None,
    };
    model.forward(&call, &mut NoTap).unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    f64::from(norm(&(a - b).unwrap()) / norm(b))
}

/// Makes some rows (or columns) of a linear zero, with their biases where they are rows.
fn clear(model: &mut Sd3Transformer, id: LinearId, by_rows: bool, goes: &dyn Fn(usize) -> bool) {
    let (rows, n) = model.weight(id).unwrap().dims2().unwrap();
    let size = if by_rows { rows } else { n };
    let mask: Vec<f32> = (0..size).map(|i| if goes(i) { 0.0 } else { 1.0 }).collect();
    let shape = if by_rows { (rows, 1) } else { (1, n) };
    let weights = Tensor::from_slice(&mask, shape, &Device::Cpu).unwrap();
    let weight = model.weight(id).unwrap().broadcast_mul(&weights).unwrap();
    model.replace(id, weight).unwrap();
    if by_rows {
        let bias = (model.bias(id).unwrap() * Tensor::new(mask, &Device::Cpu).unwrap()).unwrap();
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
        linears: vec![],
        structures: vec![],
        sizes: None,
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
    let config = Sd3Config::read(&source.join("transformer")).unwrap();
    let weights = Weights::open(&source.join("transformer"), Library::Diffusers).unwrap();
    let mut model = Sd3Transformer::load(config.clone(), &weights, DType::F32, &Device::Cpu).unwrap();
    let dense = predict(&model, &golden);

    let inventory = model.inventory().clone();
    assert_eq!(inventory.structures.iter().any(|s| s.name.ends_with("attn2")), name == "sd35-medium");
    for (i, structure) in inventory.structures.iter().enumerate() {
        // Every third neuron; of heads the first or the last, block by block. Some structures stay whole.
        let goes = |part: usize| {
            if structure.is_attention() {
                part == i % structure.count && structure.count > 1
            } else {
                i % 4 != 3 && part % 3 == 1
            }
        };
        let of_feature = |feature: usize| goes(feature / structure.size);
        structure.outputs.iter().for_each(|id| clear(&mut model, *id, false, &of_feature));
        structure.inputs.iter().for_each(|id| clear(&mut model, *id, true, &of_feature));
    }
    let masked = predict(&model, &golden);
    assert!(apart(&masked, &dense) > 1e-3, "{name}: nothing changed");

    let weight = &mut |id| model.weight(id).unwrap().flatten_all()?.to_vec1::<f32>();
    let kept = kept_parts(&inventory, weight).unwrap();
    let small = config.shrunk(&kept.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(small.flops(1, 64, 20) < config.flops(1, 64, 20) && small.same_but_for_blocks(&config));
    let files = vec![
        ("config.json".to_owned(), small.pruned_json(&source.join("transformer")).unwrap()),
        (MODULE_FILE.to_owned(), MODULE.into()),
    ];
    let shrink = Shrink { kept: selections(&inventory, &kept), files };
    let destination = root.path().join("out");
    let by_name: HashMap<String, LinearId> =
        inventory.linears.iter().zip(0..).map(|(l, id)| (l.name.clone(), LinearId(id))).collect();
    let tensor = |name: &str| {
        let (linear, what) = name.rsplit_once('.').unwrap_or((name, ""));
        let Some(id) = by_name.get(linear) else { return Ok(None) };
        if what == "weight" { model.weight(*id) } else { model.bias(*id) }.cloned().map(Some)
    };
    let record = record();
    let export = Export {
        source: &source,
        destination: &destination,
        link: false,
        weights: &weights,
        record: &record,
        shrink: Some(&shrink),
    };
    export.write(&obsdiff_files::Disk::default(), &tensor).unwrap();

    let folder = destination.join("transformer");
    let read = Sd3Config::read(&folder).unwrap();
    assert_eq!(read, small);
    let written = Weights::open(&folder, Library::Diffusers).unwrap();
    let total: u64 = small.inventory().parameters;
    assert!(total < inventory.parameters);
    let shrunk = Sd3Transformer::load(read, &written, DType::F32, &Device::Cpu).unwrap();
    let error = apart(&predict(&shrunk, &golden), &masked);
    println!("{name}: {} of {} parameters, {error:.1e} apart", total, inventory.parameters);
    assert!(error < 1e-6, "{name}: {error}");
    assert!(folder.join(MODULE_FILE).is_file());
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

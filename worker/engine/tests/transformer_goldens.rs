//! The transformers hold what diffusers computed: outputs, and the Gram of every linear's input.
#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::Result;
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::model::sd3::{Sd3Config, Sd3Transformer};
use obsdiff_engine::model::{Denoise, DiffusionModel, Tap};
use obsdiff_proto::SiteId;

/// Sums X^T X of every site in f64.
#[derive(Default)]
struct Grams(HashMap<SiteId, Tensor>);

impl Tap for Grams {
    fn wants(&self, _: SiteId) -> bool {
        true
    }

    fn observe(&mut self, site: SiteId, rows: &Tensor) -> Result<()> {
        let x = rows.to_dtype(DType::F64)?;
        let gram = x.t()?.matmul(&x)?;
        assert!(self.0.insert(site, gram).is_none(), "a forward call shows each site once");
        Ok(())
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/transformers")).join(name)
}

fn deviation(found: &Tensor, expected: &Tensor) -> f64 {
    let norm = |t: &Tensor| {
        t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    norm(&(found.to_dtype(DType::F64).unwrap() - expected.to_dtype(DType::F64).unwrap()).unwrap())
        / norm(expected)
}

/// Deviations of the output and of the worst Gram, with the number of Grams compared.
fn held_to(name: &str, dtype: DType) -> (f64, f64, usize) {
    let folder = folder(name);
    let weights = Weights::open(&folder, "diffusion_pytorch_model").unwrap();
    let model =
        Sd3Transformer::load(Sd3Config::read(&folder).unwrap(), &weights, dtype, &Device::Cpu).unwrap();
    let golden = candle_core::safetensors::load(folder.join("forward.safetensors"), &Device::Cpu).unwrap();
    let grams = candle_core::safetensors::load(folder.join("grams.safetensors"), &Device::Cpu).unwrap();
    let call = Denoise {
        latents: &golden["hidden_states"],
        timestep: &golden["timestep"],
        text: &golden["encoder_hidden_states"],
        pooled: &golden["pooled_projections"],
    };
    let mut tap = Grams::default();
    let output = model.forward(&call, &mut tap).unwrap();
    let inventory = model.inventory();
    let worst = inventory.linears.iter().map(|linear| deviation(&tap.0[&linear.site], &grams[&linear.name]));
    let worst = worst.fold(0.0, f64::max);
    assert_eq!(tap.0.len(), inventory.sites.len(), "{name}: every site is shown");
    // The AdaLN linears have golden Grams too, but are never pruned.
    let golden = grams
        .keys()
        .filter(|key| !key.ends_with("norm1.linear") && !key.ends_with("norm1_context.linear"))
        .count();
    assert_eq!(inventory.linears.len(), golden, "{name}: every linear of a block is listed");
    (deviation(&output, &golden_output(&folder)), worst, inventory.linears.len())
}

fn golden_output(folder: &Path) -> Tensor {
    candle_core::safetensors::load(folder.join("forward.safetensors"), &Device::Cpu)
        .unwrap()
        .remove("output")
        .unwrap()
}

fn hold(name: &str) {
    let (output, gram, linears) = held_to(name, DType::F32);
    println!("{name}: output {output:.1e}, worst of {linears} Grams {gram:.1e}");
    assert!(output < 2e-4, "{name}: output deviates by {output:e}");
    assert!(gram < 2e-4, "{name}: a Gram deviates by {gram:e}");
}

#[test]
fn sd3_medium_holds() {
    hold("sd3-medium");
}

#[test]
fn sd35_large_holds() {
    hold("sd35-large");
}

#[test]
fn sd35_medium_holds() {
    hold("sd35-medium");
}

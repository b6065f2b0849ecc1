//! A pipeline whose transformer is wide enough that its arithmetic and memory are more than what surrounds them.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_tests::{copy_folder, hash, noise};

pub const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");

/// The shipped pipeline with a wider transformer of random weights, in f16.
pub fn wide_pipeline(folder: &Path) {
    random_pipeline(folder, &[("num_layers", 2.into())], 12);
}

/// The shipped pipeline with a transformer of random weights in f16, of these `keys` and so many heads of 64 features.
pub fn random_pipeline(folder: &Path, keys: &[(&str, serde_json::Value)], heads: u32) {
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), folder);
    let config = folder.join("transformer/config.json");
    let mut values: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for (key, value) in
        [("attention_head_dim", 64), ("num_attention_heads", heads), ("caption_projection_dim", 64 * heads)]
    {
        values[key] = value.into();
    }
    for (key, value) in keys {
        values[*key] = value.clone();
    }
    fs::write(&config, values.to_string()).unwrap();
    let pipeline = PipelineFolder::open(folder).unwrap();
    let tensors = pipeline.transformer_config().shapes().into_iter().map(|(name, shape)| {
        let small =
            noise(hash(&name), shape.iter().product()).into_iter().map(|number| number * 0.05).collect();
        let values = Tensor::from_vec(small, shape, &Device::Cpu).unwrap();
        (name, values.to_dtype(DType::F16).unwrap())
    });
    let file = folder.join("transformer/diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&tensors.collect(), file).unwrap();
}

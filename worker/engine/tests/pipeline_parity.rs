//! The shipped pipeline against what diffusers 0.33.1 computed with it: every stage of its golden.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::sd3::Sd3Transformer;
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::model::NoTap;
use obsdiff_engine::pipeline::{Conditioning, PipelineFolder, TextEncoders, Trajectory, noise};

fn assets(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets")).join(path)
}

/// The golden, with what its metadata says.
struct Golden {
    weights: Weights,
    prompts: Vec<String>,
    seeds: Vec<u64>,
    steps: usize,
    guidance: f64,
}

impl Golden {
    fn open() -> Self {
        let path = assets("goldens/shapes-sd3/pipeline.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let told = metadata.metadata().clone().unwrap();
        Self {
            weights: Weights::open_file(&path).unwrap(),
            prompts: serde_json::from_str(&told["prompts"]).unwrap(),
            seeds: serde_json::from_str(&told["seeds"]).unwrap(),
            steps: told["steps"].parse().unwrap(),
            guidance: told["guidance"].parse().unwrap(),
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let entry = self.weights.entry(name).unwrap();
        self.weights.tensor(name, entry.shape(), entry.dtype(), &Device::Cpu).unwrap()
    }

    /// The largest deviation of `found` from the tensor `name`, shown with the test's output.
    fn deviation(&self, name: &str, found: &Tensor) -> f32 {
        let expected = self.tensor(name);
        assert_eq!(found.elem_count(), expected.elem_count(), "{name}");
        let difference = (found.reshape(expected.dims()).unwrap() - expected).unwrap();
        let difference: Vec<f32> = difference.abs().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let largest = difference.into_iter().max_by(f32::total_cmp).unwrap();
        println!("{name}: {largest:e}");
        largest
    }

    fn prompts(&self) -> Vec<&str> {
        self.prompts.iter().map(String::as_str).collect()
    }
}

fn pipeline() -> PipelineFolder {
    PipelineFolder::open(&assets("shapes-sd3")).unwrap()
}

fn encoders() -> TextEncoders {
    pipeline().text_encoders(24, &Device::Cpu).unwrap()
}

/// The golden's prompts, then the empty one.
fn encode(golden: &Golden) -> Vec<Conditioning> {
    let mut prompts = golden.prompts();
    prompts.push("");
    encoders().encode(&prompts, &mut |_, _| {}).unwrap()
}

#[test]
fn token_ids_are_equal() {
    let (golden, encoders) = (Golden::open(), encoders());
    for (i, prompt) in golden.prompts().iter().enumerate() {
        let ids = encoders.token_ids(prompt).unwrap();
        assert_eq!(ids.len(), 3);
        for (encoder, ids) in ids.iter().enumerate() {
            let expected: Vec<i64> =
                golden.tensor(&format!("{i}.tokens.{encoder}")).squeeze(0).unwrap().to_vec1().unwrap();
            assert_eq!(ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), expected, "{prompt}");
        }
    }
}

#[test]
fn embeddings_hold() {
    let golden = Golden::open();
    let mut encoded = encode(&golden);
    let negative = encoded.pop().unwrap();
    for (i, prompt) in encoded.iter().enumerate() {
        for (name, found) in [
            ("prompt_embeds", &prompt.text),
            ("pooled_prompt_embeds", &prompt.pooled),
            ("negative_prompt_embeds", &negative.text),
            ("negative_pooled_prompt_embeds", &negative.pooled),
        ] {
            assert!(golden.deviation(&format!("{i}.{name}"), found) < 1e-4);
        }
    }
}

#[test]
fn the_schedule_holds() {
    let golden = Golden::open();
    let pipeline = pipeline();
    let tokens = pipeline.latent_size(None, None).unwrap().tokens;
    let schedule = pipeline.scheduler().unwrap().schedule(golden.steps, tokens).unwrap();
    let cpu = &Device::Cpu;
    assert!(golden.deviation("sigmas", &Tensor::new(schedule.sigmas(), cpu).unwrap()) < 1e-6);
    assert!(golden.deviation("timesteps", &Tensor::new(schedule.timesteps(), cpu).unwrap()) < 1e-3);
}

#[test]
fn noise_holds() {
    let golden = Golden::open();
    let shape = pipeline().latent_size(None, None).unwrap().shape(1);
    for (i, &seed) in golden.seeds.iter().enumerate() {
        assert!(golden.deviation(&format!("{i}.noise"), &noise(seed, &shape).unwrap()) < 1e-6);
    }
}

#[test]
fn pictures_hold() {
    let golden = Golden::open();
    let vae = pipeline().vae(&Device::Cpu).unwrap();
    for i in 0..golden.prompts.len() {
        let latents = golden.tensor(&format!("{i}.latents.{}", golden.steps - 1));
        assert!(golden.deviation(&format!("{i}.image"), &vae.decode(&latents).unwrap()) < 5e-3);
    }
}

/// All prompts in one batch, from text to pictures.
#[test]
fn latents_hold_step_by_step() {
    let golden = Golden::open();
    let pipeline = pipeline();
    let size = pipeline.latent_size(None, None).unwrap();
    let schedule = pipeline.scheduler().unwrap().schedule(golden.steps, size.tokens).unwrap();
    let encoded = encode(&golden);
    let (negative, prompts) = encoded.split_last().unwrap();
    let start: Vec<Tensor> = golden.seeds.iter().map(|&seed| noise(seed, &size.shape(1)).unwrap()).collect();
    let start = Tensor::cat(&start, 0).unwrap();
    let config = pipeline.transformer_config().clone();
    let weights = pipeline.transformer_weights().unwrap();
    let model = Sd3Transformer::load(config, &weights, DType::F32, &Device::Cpu).unwrap();
    let prompts: Vec<&Conditioning> = prompts.iter().collect();
    let mut trajectory = Trajectory::new(&schedule, golden.guidance, &prompts, negative, start).unwrap();
    for k in 0..trajectory.step_count() {
        trajectory.step(&model, &mut NoTap).unwrap();
        for i in 0..prompts.len() {
            let latents = trajectory.latents().narrow(0, i, 1).unwrap();
            assert!(golden.deviation(&format!("{i}.latents.{k}"), &latents) < 1e-3);
        }
    }
    let pictures = pipeline.vae(&Device::Cpu).unwrap().decode(trajectory.latents()).unwrap();
    for i in 0..prompts.len() {
        assert!(golden.deviation(&format!("{i}.image"), &pictures.narrow(0, i, 1).unwrap()) < 5e-3);
    }
}

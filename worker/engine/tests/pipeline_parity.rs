//! The shipped pipelines against what diffusers 0.33.1 computed with them: every stage of their goldens.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::NoTap;
use obsdiff_engine::pipeline::{
    Conditioning, LatentSize, PipelineFolder, Schedule, TextEncoders, Trajectory, noise,
};

fn assets(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets")).join(path)
}

/// A pipeline's golden, with what its metadata says.
struct Golden {
    pipeline: PipelineFolder,
    weights: Weights,
    prompts: Vec<String>,
    seeds: Vec<u64>,
    steps: usize,
    guidance: f64,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = assets("goldens").join(name).join("pipeline.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let stated = metadata.metadata().clone().unwrap();
        Self {
            pipeline: PipelineFolder::open(&assets(name)).unwrap(),
            weights: Weights::open_file(&path).unwrap(),
            prompts: serde_json::from_str(&stated["prompts"]).unwrap(),
            seeds: serde_json::from_str(&stated["seeds"]).unwrap(),
            steps: stated["steps"].parse().unwrap(),
            guidance: stated["guidance"].parse().unwrap(),
        }
    }

    fn both() -> [Self; 2] {
        ["shapes-sd3", "shapes-flux"].map(Self::open)
    }

    fn tensor(&self, name: &str) -> Tensor {
        let entry = self.weights.entry(name).unwrap();
        self.weights.tensor(name, entry.shape(), entry.dtype()).unwrap()
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

    fn encoders(&self) -> TextEncoders {
        self.pipeline.text_encoders(24).unwrap()
    }

    /// The golden's prompts, then the empty one.
    fn encode(&self) -> Vec<Conditioning> {
        let mut prompts = self.prompts();
        prompts.push("");
        self.encoders().encode(&prompts, &mut |_, _| {}).unwrap()
    }

    fn size(&self) -> LatentSize {
        self.pipeline.latent_size(Some(32), Some(32)).unwrap()
    }

    fn schedule(&self) -> Schedule {
        self.pipeline.schedule(self.steps, self.size().tokens).unwrap()
    }

    /// Latents as the golden has them: FLUX's are packed, 2 x 2 latent pixels in a token.
    fn packed(&self, latents: &Tensor) -> Tensor {
        if self.weights.contains("0.noise") {
            return latents.clone();
        }
        let (batch, channels, height, width) = latents.dims4().unwrap();
        let squares = latents.reshape(&[batch, channels, height / 2, 2, width / 2, 2]).unwrap();
        let tokens = squares.permute([0, 2, 4, 1, 3, 5]).unwrap();
        tokens.reshape((batch, height / 2 * (width / 2), channels * 4)).unwrap()
    }

    /// A tensor of the golden as latents: `1 x channels x height x width`.
    fn unpacked(&self, name: &str) -> Tensor {
        let tensor = self.tensor(name);
        if tensor.rank() == 4 {
            return tensor;
        }
        let LatentSize { channels, height, width, .. } = self.size();
        let tokens = tensor.reshape(&[1, height / 2, width / 2, channels, 2, 2]).unwrap();
        let squares = tokens.permute([0, 3, 1, 4, 2, 5]).unwrap();
        squares.reshape((1, channels, height, width)).unwrap()
    }
}

#[test]
fn token_ids_are_equal() {
    for (golden, count) in Golden::both().into_iter().zip([3, 2]) {
        let encoders = golden.encoders();
        for (i, prompt) in golden.prompts().iter().enumerate() {
            let ids = encoders.token_ids(prompt).unwrap();
            assert_eq!(ids.len(), count);
            for (encoder, ids) in ids.iter().enumerate() {
                let expected: Vec<i64> =
                    golden.tensor(&format!("{i}.tokens.{encoder}")).squeeze(0).unwrap().to_vec1().unwrap();
                assert_eq!(ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), expected, "{prompt}");
            }
        }
    }
}

#[test]
fn embeddings_hold() {
    for golden in Golden::both() {
        let mut encoded = golden.encode();
        let negative = encoded.pop().unwrap();
        for (i, prompt) in encoded.iter().enumerate() {
            let prompt = [("prompt_embeds", &prompt.text), ("pooled_prompt_embeds", &prompt.pooled)];
            let negative = [
                ("negative_prompt_embeds", &negative.text),
                ("negative_pooled_prompt_embeds", &negative.pooled),
            ];
            // Without classifier-free guidance there is no negative prompt.
            let guided = golden.weights.contains("0.negative_prompt_embeds");
            for (name, found) in prompt.iter().chain(if guided { &negative[..] } else { &[] }) {
                assert!(golden.deviation(&format!("{i}.{name}"), found) < 1e-4);
            }
        }
    }
}

#[test]
fn the_schedule_holds() {
    for golden in Golden::both() {
        let (schedule, cpu) = (golden.schedule(), &Device::Cpu);
        assert!(golden.deviation("sigmas", &Tensor::new(schedule.sigmas(), cpu).unwrap()) < 1e-6);
        assert!(golden.deviation("timesteps", &Tensor::new(schedule.timesteps(), cpu).unwrap()) < 1e-3);
    }
}

#[test]
fn noise_holds() {
    for (golden, name) in Golden::both().into_iter().zip(["noise", "noise_packed"]) {
        let shape = golden.size().shape(1);
        for (i, &seed) in golden.seeds.iter().enumerate() {
            let noise = golden.packed(&noise(seed, &shape).unwrap());
            assert!(golden.deviation(&format!("{i}.{name}"), &noise) < 1e-6);
        }
    }
}

#[test]
fn pictures_hold() {
    for golden in Golden::both() {
        let vae = golden.pipeline.vae(&ComputeDevice::Cpu).unwrap();
        for i in 0..golden.prompts.len() {
            let latents = golden.unpacked(&format!("{i}.latents.{}", golden.steps - 1));
            assert!(golden.deviation(&format!("{i}.image"), &vae.decode(&latents).unwrap()) < 5e-3);
        }
    }
}

/// All prompts in one batch, from text to pictures.
#[test]
fn latents_hold_step_by_step() {
    for golden in Golden::both() {
        let (schedule, encoded) = (golden.schedule(), golden.encode());
        let (negative, prompts) = encoded.split_last().unwrap();
        let shape = golden.size().shape(1);
        let start: Vec<Tensor> = golden.seeds.iter().map(|&seed| noise(seed, &shape).unwrap()).collect();
        let start = Tensor::cat(&start, 0).unwrap();
        let config = golden.pipeline.transformer_config();
        let weights = golden.pipeline.transformer_weights().unwrap();
        let model = config.load(&weights, DType::F32).unwrap();
        let prompts: Vec<&Conditioning> = prompts.iter().collect();
        let guidance = config.guidance(golden.guidance);
        let mut trajectory = Trajectory::new(&schedule, guidance, &prompts, negative, start).unwrap();
        for k in 0..trajectory.step_count() {
            trajectory.step(&*model, &mut NoTap).unwrap();
            for i in 0..prompts.len() {
                let latents = golden.packed(&trajectory.latents().narrow(0, i, 1).unwrap());
                assert!(golden.deviation(&format!("{i}.latents.{k}"), &latents) < 1e-3);
            }
        }
        let pictures =
            golden.pipeline.vae(&ComputeDevice::Cpu).unwrap().decode(trajectory.latents()).unwrap();
        for i in 0..prompts.len() {
            assert!(golden.deviation(&format!("{i}.image"), &pictures.narrow(0, i, 1).unwrap()) < 5e-3);
        }
    }
}

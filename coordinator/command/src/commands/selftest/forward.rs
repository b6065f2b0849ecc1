//! Forward calls of small transformers with random weights, held to the processor's in f32.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use obsdiff_engine::architecture::{SUPPORTED, TransformerConfig};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap};
use obsdiff_engine::pipeline::noise;

use super::{Bench, Check, distance};
use crate::{Error, Result};
use obsdiff_engine::HOST;

/// Pictures of a call.
const PICTURES: usize = 2;

/// Latent pixels on a side of a picture.
const SIDE: usize = 16;

/// Tokens of a prompt.
const TOKENS: usize = 20;

/// Types of forward calls, each with how far it may be off the processor's f32: what the goldens are held to.
const TYPES: [(DType, f64); 3] = [(DType::F32, 2e-4), (DType::BF16, 0.03), (DType::F16, 0.005)];

/// A forward call of each architecture in each type.
///
/// # Errors
/// When a model cannot be made, or the device fails.
pub(super) fn checks(bench: &Bench<'_>) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for architecture in SUPPORTED {
        let (name, config) = (architecture.transformer_class, &*(architecture.small)());
        let weights = weights(config)?;
        let call = CallInputs::new(config)?;
        let (wanted, processor_seconds) =
            call.run(config, &weights, DType::F32, &ComputeDevice::Cpu, bench)?;
        for (dtype, limit) in TYPES {
            let (found, seconds) = call.run(config, &weights, dtype, bench.device, bench)?;
            checks.push(Check {
                what: format!("{name} in {}", dtype.as_str()),
                off: distance(&found, &wanted),
                limit,
                seconds,
                processor_seconds: Some(processor_seconds),
            });
        }
    }
    Ok(checks)
}

/// Small random weights. Each tensor has numbers of its own.
fn weights(config: &dyn TransformerConfig) -> Result<Weights> {
    let file = tempfile::NamedTempFile::new().map_err(Error::System)?;
    let made = || -> obsdiff_engine::Result<()> {
        let tensor =
            |(seed, (name, shape)): (u64, (String, Vec<usize>))| -> obsdiff_engine::Result<(String, Tensor)> {
                // As long as what each sums over is wide, outputs are about as large as inputs.
                let inner: usize = shape.iter().skip(1).product();
                let scale = 1.0 / (inner as f64).sqrt().max(4.0);
                Ok((name, (noise(seed, &shape)? * scale)?))
            };
        let tensors = (0..).zip(config.shapes()).map(tensor);
        let tensors = tensors.collect::<obsdiff_engine::Result<HashMap<_, _>>>()?;
        Ok(candle_core::safetensors::save(&tensors, file.path())?)
    };
    made()?;
    // What is open stays there when the file's name goes.
    Ok(Weights::open_file(file.path())?)
}

/// The inputs of a call.
struct CallInputs {
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    pooled: Tensor,
    guidance: Tensor,
}

impl CallInputs {
    fn new(config: &dyn TransformerConfig) -> Result<Self> {
        let (widths, channels) = (config.conditioning(), config.latents().channels);
        let number = |x: f32| Tensor::full(x, PICTURES, &HOST).map_err(obsdiff_engine::Error::from);
        Ok(Self {
            latents: noise(101, &[PICTURES, channels, SIDE, SIDE])?,
            timestep: number(700.0)?,
            text: noise(102, &[PICTURES, TOKENS, widths.text])?,
            pooled: noise(103, &[PICTURES, widths.pooled])?,
            guidance: number(3.5)?,
        })
    }

    /// The velocity in f32, and the seconds of a second call: the first one brings weights to the device.
    fn run(
        &self,
        config: &dyn TransformerConfig,
        weights: &Weights,
        dtype: DType,
        device: &ComputeDevice,
        bench: &Bench<'_>,
    ) -> Result<(Vec<f32>, f64)> {
        let mut model: Box<dyn DiffusionModel> = config.load(weights, dtype)?;
        model.move_blocks(device);
        let typed = |tensor: &Tensor| tensor.to_dtype(dtype).map_err(obsdiff_engine::Error::from);
        let (latents, text, pooled) = (typed(&self.latents)?, typed(&self.text)?, typed(&self.pooled)?);
        let guidance = config.guidance(3.5).input.map(|_| &self.guidance);
        let timestep = &self.timestep;
        let call = Denoise { latents: &latents, timestep, text: &text, pooled: &pooled, guidance };
        model.forward(&call, &mut NoTap)?;
        let (velocity, seconds) = bench.timed(|| Ok(model.forward(&call, &mut NoTap)?))?;
        let numbers = velocity.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1());
        Ok((numbers.map_err(obsdiff_engine::Error::from)?, seconds))
    }
}

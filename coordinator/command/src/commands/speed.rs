//! Compares how much less time a pruned transformer takes with how much less it computes.

use std::fmt;
use std::time::Duration;

use candle_core::{DType, Tensor};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap};
use obsdiff_engine::pipeline::{PipelineFolder, noise};
use obsdiff_worker::preparation::compute_type;
use serde::Serialize;

use crate::Result;
use crate::context::CommandContext;
use crate::sampling::{Settings, load_transformer};
use crate::text;
use obsdiff_engine::HOST;

/// The least and the most calls of each transformer.
const ROUNDS: [usize; 2] = [5, 200];
/// The time after which no further round begins, once the least number is done.
const LONG: Duration = Duration::from_secs(10);

/// The time and the arithmetic of a forward call on one picture, of the dense transformer and of the pruned one.
#[derive(Serialize)]
pub(super) struct Speed {
    image_tokens: usize,
    text_tokens: usize,
    dense: ForwardCall,
    pruned: ForwardCall,
}

/// A forward call of one transformer.
#[derive(Serialize)]
struct ForwardCall {
    seconds: f64,
    flops: f64,
}

/// The fastest call of each transformer on a device, on noise: on the processor in f32, on a GPU in the job's type. The two take turns, so that
/// other load on the machine affects both.
pub(super) fn measure(
    dense: &PipelineFolder,
    pruned: &PipelineFolder,
    (settings, device): (Settings, &ComputeDevice),
    context: &CommandContext<'_>,
) -> Result<Speed> {
    let size = dense.latent_size(settings.height, settings.width)?;
    let tokens = dense.text_encoders(settings.max_sequence_length)?.tokens();
    let config = dense.transformer_config();
    let widths = config.conditioning();
    let latents = noise(settings.seed, &size.shape(1))?;
    let text = noise(settings.seed, &[1, tokens, widths.text])?;
    let pooled = noise(settings.seed, &[1, widths.pooled])?;
    let number = |value: f32| Tensor::full(value, 1, &HOST).map_err(obsdiff_engine::Error::from);
    let timestep = number(500.0)?;
    let guidance = config.guidance(settings.guidance).input.map(|scale| number(scale as f32)).transpose()?;
    let call = Denoise {
        latents: &latents,
        timestep: &timestep,
        text: &text,
        pooled: &pooled,
        guidance: guidance.as_ref(),
    };
    let dtype = if device.is_host() { DType::F32 } else { compute_type(settings.dtype) };
    let models = [load_transformer(dense, dtype, device)?, load_transformer(pruned, dtype, device)?];
    let time = |model: &dyn DiffusionModel| -> Result<Duration> {
        let start = (context.clock)();
        model.forward(&call, &mut NoTap)?;
        Ok((context.clock)().saturating_sub(start))
    };
    let start = (context.clock)();
    let mut times = [Duration::MAX; 2];
    for round in 0..ROUNDS[1] {
        if round >= ROUNDS[0] && (context.clock)().saturating_sub(start) >= LONG {
            break;
        }
        for (best, model) in times.iter_mut().zip(&models) {
            *best = time(&**model)?.min(*best);
        }
    }
    let call = |pipeline: &PipelineFolder, time: Duration| ForwardCall {
        seconds: time.as_secs_f64(),
        flops: pipeline.transformer_config().flops(1, size.tokens, tokens).total(),
    };
    Ok(Speed {
        image_tokens: size.tokens,
        text_tokens: tokens,
        dense: call(dense, times[0]),
        pruned: call(pruned, times[1]),
    })
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dense, pruned, .. } = self;
        let change = |before: f64, after: f64, less: &str, more: &str| {
            let share = 100.0 * (1.0 - after / before);
            format!("{:.1}% {}", share.abs(), if share < 0.0 { more } else { less })
        };
        write!(
            f,
            "forward call with {} image and {} text tokens:\n  dense   {} for {}\n  pruned  {} for {}: {}, for {}",
            self.image_tokens,
            self.text_tokens,
            milliseconds(dense.seconds),
            text::flops(dense.flops),
            milliseconds(pruned.seconds),
            text::flops(pruned.flops),
            change(dense.seconds, pruned.seconds, "less time", "more time"),
            change(dense.flops, pruned.flops, "less arithmetic", "more arithmetic"),
        )
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

//! Compares how much faster a pruned transformer is with how much less it computes.

use std::fmt;
use std::time::Duration;

use candle_core::{Device, Tensor};
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap};
use obsdiff_engine::pipeline::{PipelineFolder, noise};

use crate::Result;
use crate::context::CommandContext;
use crate::sampling::{Settings, load_transformer};
use crate::text;

/// The least and the most calls of each transformer.
const ROUNDS: [usize; 2] = [5, 200];
/// The time after which no further round begins, once the least number is done.
const LONG: Duration = Duration::from_secs(10);

/// The time and the arithmetic of a forward call on one picture, of the dense transformer and of the pruned one.
pub(super) struct Speed {
    image: usize,
    text: usize,
    times: [Duration; 2],
    flops: [f64; 2],
}

/// The fastest call of each transformer, on noise. The two take turns, so that other load on the machine affects both.
pub(super) fn measure(
    dense: &PipelineFolder,
    pruned: &PipelineFolder,
    settings: Settings,
    context: &CommandContext<'_>,
) -> Result<Speed> {
    let size = dense.latent_size(settings.height, settings.width)?;
    let tokens = dense.text_encoders(settings.max_sequence_length, &Device::Cpu)?.tokens();
    let config = dense.transformer_config();
    let widths = config.conditioning();
    let latents = noise(settings.seed, &size.shape(1))?;
    let text = noise(settings.seed, &[1, tokens, widths.text])?;
    let pooled = noise(settings.seed, &[1, widths.pooled])?;
    let number = |value: f32| Tensor::full(value, 1, &Device::Cpu).map_err(obsdiff_engine::Error::from);
    let timestep = number(500.0)?;
    let guidance = config.guidance(settings.guidance).input.map(|scale| number(scale as f32)).transpose()?;
    let call = Denoise {
        latents: &latents,
        timestep: &timestep,
        text: &text,
        pooled: &pooled,
        guidance: guidance.as_ref(),
    };
    let models = [load_transformer(dense)?, load_transformer(pruned)?];
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
    let flops = [dense, pruned].map(|p| p.transformer_config().flops(1, size.tokens, tokens));
    Ok(Speed { image: size.tokens, text: tokens, times, flops })
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [dense, pruned] = self.times;
        let [all, left] = self.flops;
        let less_time = 1.0 - pruned.as_secs_f64() / dense.as_secs_f64();
        let less_flops = 1.0 - left / all;
        write!(
            f,
            "forward call with {} image and {} text tokens: dense {} ({}), pruned {} ({})\n{:.1}% less time for {:.1}% less arithmetic",
            self.image,
            self.text,
            milliseconds(dense),
            text::flops(all),
            milliseconds(pruned),
            text::flops(left),
            100.0 * less_time,
            100.0 * less_flops,
        )?;
        if less_flops > 0.0 { write!(f, ": {:.2} of it", less_time / less_flops) } else { Ok(()) }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

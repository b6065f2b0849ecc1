//! diffusers' FlowMatchEulerDiscreteScheduler: the noise levels of a trajectory, and the Euler step between two of them.

use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::keys::Keys;
use crate::{Error, Result};

/// More steps than any trajectory takes; bounds what a job can ask for.
const MAX_STEPS: usize = 1_000_000;

/// Keys that the scheduler of diffusers 0.42 has, and three that decide although it warns that it ignores them: its spacings read
/// `sigma_min` and `sigma_max`, and FLUX's pipeline `use_flow_sigmas`. It ignores others with a warning, and so do we.
const KNOWN: [&str; 17] = [
    "base_image_seq_len",
    "base_shift",
    "invert_sigmas",
    "max_image_seq_len",
    "max_shift",
    "num_train_timesteps",
    "shift",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "stochastic_sampling",
    "time_shift_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
];

/// A pipeline's scheduler, as its `scheduler_config.json` sets it.
#[derive(Clone, Debug)]
pub struct Scheduler {
    path: PathBuf,
    train_timesteps: f64,
    shift: Shift,
    terminal: Option<f64>,
    spacing: Spacing,
    /// The first and the last level in place of the source's, for spacings that are not even.
    ends: [Option<f64>; 2],
    /// Whether the levels come from the scheduler whatever the pipeline's source is.
    own_levels: bool,
    inverted: bool,
}

/// How noise levels are moved towards the noisy end.
#[derive(Clone, Copy, Debug)]
enum Shift {
    /// By the same factor for all sizes of pictures.
    Fixed(f64),
    /// The more the larger the picture. The strength runs linearly from `base` at `base_tokens` to `max` at `max_tokens`.
    Dynamic { base: f64, max: f64, base_tokens: f64, max_tokens: f64, exponential: bool },
}

/// How noise levels lie between the first and the last one.
#[derive(Clone, Copy, Debug)]
enum Spacing {
    Even,
    Karras,
    Exponential,
}

/// The source of a trajectory's noise levels, before they are shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelSource {
    /// The scheduler: even timesteps between the ends of its training.
    Scheduler,
    /// The pipeline, which gives the scheduler T levels, evenly from 1 to 1 / T.
    Pipeline,
}

impl Scheduler {
    /// Reads `scheduler_config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, or a key has a value that is unknown or not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let keys = Keys::open(path)?;
        for name in keys.names().filter(|name| !name.starts_with('_') && !KNOWN.contains(name)) {
            tracing::warn!(file = %path.display(), key = name, "ignoring a key that this scheduler does not have");
        }
        if keys.flag_or("stochastic_sampling", false)? {
            return Err(keys.refuse(
                "stochastic_sampling",
                "fresh noise in each step is not supported: set it to false",
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            train_timesteps: keys.size_or("num_train_timesteps", 1000)? as f64,
            shift: read_shift(&keys)?,
            terminal: read_terminal(&keys)?,
            spacing: read_spacing(&keys)?,
            ends: [keys.number("sigma_max")?, keys.number("sigma_min")?],
            own_levels: keys.flag_or("use_flow_sigmas", false)?,
            inverted: keys.flag_or("invert_sigmas", false)?,
        })
    }

    /// The schedule of a trajectory of `steps` steps for a picture of `tokens` image tokens (latent patches).
    ///
    /// `source` is where its levels come from. They are computed in f64 and rounded to f32 at the end, as NumPy and PyTorch do
    /// it for diffusers.
    ///
    /// # Errors
    /// When `steps` is 0 or above a million, or the configuration gives levels that are not finite.
    pub fn schedule(&self, steps: usize, tokens: usize, source: LevelSource) -> Result<Schedule> {
        if !(1..=MAX_STEPS).contains(&steps) {
            let problem =
                format!("a trajectory of {steps} steps: `calibration.steps` must be 1 to {MAX_STEPS}");
            return Err(Error::Argument(problem));
        }
        let source = if self.own_levels { LevelSource::Scheduler } else { source };
        let mut levels = self.shifted(steps, tokens, source);
        if let Some(terminal) = self.terminal {
            stretch(&mut levels, terminal);
        }
        self.spacing.apply(&mut levels, self.ends);
        let train_timesteps = self.train_timesteps as f32;
        let mut sigmas: Vec<f32> = levels.iter().map(|&level| level as f32).collect();
        if self.inverted {
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - *sigma);
        }
        let timesteps: Vec<f32> = sigmas.iter().map(|sigma| sigma * train_timesteps).collect();
        sigmas.push(if self.inverted { 1.0 } else { 0.0 });
        if !timesteps.iter().chain(&sigmas).all(|value| value.is_finite()) {
            let problem = format!("gives noise levels that are not finite for {steps} steps: {sigmas:?}");
            return Err(Error::content(&self.path, problem));
        }
        Ok(Schedule { sigmas, timesteps })
    }

    /// The levels of the source, shifted. A fixed shift acts on the ends of training too: what lies evenly between them is shifted
    /// twice.
    fn shifted(&self, steps: usize, tokens: usize, source: LevelSource) -> Vec<f64> {
        let n = self.train_timesteps;
        let smallest = 1.0 / n as f32;
        let even = |[first, last]: [f64; 2]| -> Vec<f64> {
            match source {
                LevelSource::Scheduler => {
                    linspace(first * n, last * n, steps).into_iter().map(|timestep| timestep / n).collect()
                }
                // diffusers rounds these before it shifts them.
                LevelSource::Pipeline => {
                    let levels = linspace(1.0, 1.0 / steps as f64, steps).into_iter();
                    levels.map(|level| f64::from(level as f32)).collect()
                }
            }
        };
        match self.shift {
            Shift::Fixed(shift) => {
                let end = |sigma: f32| -> f64 {
                    f64::from(shift as f32 * sigma / (1.0 + (shift - 1.0) as f32 * sigma))
                };
                let levels = even([end(1.0), end(smallest)]);
                levels.into_iter().map(|sigma| shift * sigma / (1.0 + (shift - 1.0) * sigma)).collect()
            }
            Shift::Dynamic { base, max, base_tokens, max_tokens, exponential } => {
                let slope = (max - base) / (max_tokens - base_tokens);
                let mu = tokens as f64 * slope + (base - slope * base_tokens);
                let strength = if exponential { mu.exp() } else { mu };
                let levels = even([1.0, f64::from(smallest)]);
                levels.into_iter().map(|sigma| strength / (strength + (1.0 / sigma - 1.0))).collect()
            }
        }
    }
}

impl Spacing {
    /// Replaces the levels between the first and the last one, or between `ends`: `Karras` as in arXiv 2206.00364 with rho = 7.
    fn apply(self, levels: &mut Vec<f64>, ends: [Option<f64>; 2]) {
        let (Some(&first), Some(&last)) = (levels.first(), levels.last()) else { return };
        let (first, last) = (ends[0].unwrap_or(first), ends[1].unwrap_or(last));
        let steps = levels.len();
        match self {
            Self::Even => {}
            Self::Karras => {
                let rho = 7.0;
                let (high, low) = (first.powf(1.0 / rho), last.powf(1.0 / rho));
                *levels = linspace(0.0, 1.0, steps)
                    .iter()
                    .map(|ramp| (high + ramp * (low - high)).powf(rho))
                    .collect();
            }
            Self::Exponential => {
                *levels = linspace(first.ln(), last.ln(), steps).iter().map(|level| level.exp()).collect();
            }
        }
    }
}

/// Stretches levels so that the last one becomes `terminal`.
fn stretch(levels: &mut [f64], terminal: f64) {
    let Some(&last) = levels.last() else { return };
    let factor = (1.0 - last) / (1.0 - terminal);
    levels.iter_mut().for_each(|level| *level = 1.0 - (1.0 - *level) / factor);
}

/// `count` numbers from `first` to `last`, evenly spaced, as NumPy spaces them.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let step = (last - first) / count.saturating_sub(1).max(1) as f64;
    let mut numbers: Vec<f64> = (0..count).map(|i| i as f64 * step + first).collect();
    if count > 1 {
        numbers[count - 1] = last;
    }
    numbers
}

fn read_shift(keys: &Keys) -> Result<Shift> {
    let kind = keys.text_or("time_shift_type", "exponential")?;
    let exponential = match kind {
        "exponential" => true,
        "linear" => false,
        _ => return Err(keys.refuse("time_shift_type", "it must be \"exponential\" or \"linear\"")),
    };
    if !keys.flag_or("use_dynamic_shifting", false)? {
        let shift = keys.number_or("shift", 1.0)?;
        return if shift > 0.0 {
            Ok(Shift::Fixed(shift))
        } else {
            Err(keys.refuse("shift", "it must be above 0"))
        };
    }
    let base_tokens = keys.size_or("base_image_seq_len", 256)? as f64;
    let max_tokens = keys.size_or("max_image_seq_len", 4096)? as f64;
    if base_tokens == max_tokens {
        return Err(keys.refuse("max_image_seq_len", "it must differ from `base_image_seq_len`"));
    }
    let base = keys.number_or("base_shift", 0.5)?;
    let max = keys.number_or("max_shift", 1.15)?;
    Ok(Shift::Dynamic { base, max, base_tokens, max_tokens, exponential })
}

fn read_terminal(keys: &Keys) -> Result<Option<f64>> {
    match keys.number("shift_terminal")? {
        // diffusers takes 0 for "not set".
        None | Some(0.0) => Ok(None),
        Some(terminal) if terminal > 0.0 && terminal < 1.0 => Ok(Some(terminal)),
        Some(_) => Err(keys.refuse("shift_terminal", "it must be null, or lie between 0 and 1")),
    }
}

fn read_spacing(keys: &Keys) -> Result<Spacing> {
    let karras = keys.flag_or("use_karras_sigmas", false)?;
    let exponential = keys.flag_or("use_exponential_sigmas", false)?;
    if keys.flag_or("use_beta_sigmas", false)? {
        return Err(keys
            .refuse("use_beta_sigmas", "beta-distributed noise levels are not supported: set it to false"));
    }
    match (karras, exponential) {
        (false, false) => Ok(Spacing::Even),
        (true, false) => Ok(Spacing::Karras),
        (false, true) => Ok(Spacing::Exponential),
        (true, true) => {
            Err(keys.refuse("use_karras_sigmas", "`use_exponential_sigmas` is true too: only one may be"))
        }
    }
}

/// The noise levels of one trajectory, from the noisiest to the clean end.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

impl Schedule {
    /// The number of steps T.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// T + 1 noise levels: step k goes from level k to level k + 1.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// T timesteps, as the transformer takes them: 0..=`num_train_timesteps`.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Euler's step `k`: latents + (next sigma - sigma) * velocity, in f32.
    ///
    /// # Errors
    /// When there is no step `k`, or the two tensors differ in shape or are not f32.
    pub fn step(&self, k: usize, latents: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        let (Some(sigma), Some(next)) = (self.sigmas.get(k), self.sigmas.get(k + 1)) else {
            return Err(Error::Argument(format!("step {k} of a trajectory of {} steps", self.steps())));
        };
        Ok((latents + (velocity * f64::from(next - sigma))?)?)
    }
}

#[cfg(test)]
mod tests;

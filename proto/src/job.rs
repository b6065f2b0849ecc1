//! The job file: one TOML document, checked before any work.

mod check;
mod sparsity;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ByteSize, OutputLayout};

pub use sparsity::{Allocation, BudgetBy, Effort, Method, SparsityRule, SparsitySpec};

/// A pruning job as its user wrote it, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Whose values the keys have that the job does not give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// `[model]`
    pub model: ModelSpec,
    /// `[sparsity]`
    pub sparsity: SparsitySpec,
    /// `[calibration]`
    #[serde(default)]
    pub calibration: CalibrationSpec,
    /// `[hessian]`
    #[serde(default)]
    pub hessian: HessianSpec,
    /// `[probe]`
    #[serde(default, skip_serializing_if = "ProbeSpec::is_default")]
    pub probe: ProbeSpec,
    /// `[packages]`
    #[serde(default)]
    pub packages: PackagesSpec,
    /// `[evaluation]`
    #[serde(default)]
    pub evaluation: EvaluationSpec,
    /// `[workers]`
    #[serde(default)]
    pub workers: WorkersSpec,
    /// `[output]`
    pub output: OutputSpec,
}

/// Values for several keys at once. A key that the job gives itself keeps its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The settings of the paper: OBS without refinement, the same ratio everywhere, four packages of as many units each.
    ObsDiff,
    /// Few prompts and few steps: a first look, with somewhat larger errors.
    Fast,
}

/// `[model]`: what is pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// A diffusers pipeline directory.
    pub path: String,
    /// The type forward calls compute in.
    #[serde(default)]
    pub dtype: ComputeType,
}

/// The type forward calls compute in. Grams and solvers have their own, see `[hessian]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
}

/// `[calibration]`: the prompts and trajectories whose activations are gathered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationSpec {
    /// A `.txt` file with one prompt a line, or `.csv`, `.tsv` or `.jsonl` with a column. Absent only where nothing is calibrated.
    pub prompts: Option<String>,
    /// The column that holds the prompt, for files that have columns.
    pub column: Option<String>,
    /// The conditioning of the prompts, made elsewhere: a safetensors file, in place of the pipeline's text encoders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditioning: Option<String>,
    /// Grams that an earlier job kept, a directory or `s3://...`: this job solves by them, and calibrates nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grams: Option<String>,
    /// Of these Grams, those over the first so many prompts; over all of them when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gram_prompts: Option<u32>,
    /// Prompts used, from the start of the file.
    pub count: u32,
    /// Denoising steps T of a trajectory.
    pub steps: u32,
    /// Guidance scale. Classifier-free guidance of at most 1 runs without the negative prompt; models distilled from guided ones
    /// take it as an input.
    pub guidance: f64,
    /// Classifier-free guidance scale of models that take `guidance` as an input (diffusers' `true_cfg_scale`); at most 1 runs without
    /// the negative prompt.
    #[serde(skip_serializing_if = "is_one")]
    pub true_guidance: f64,
    /// Picture height in pixels; the model's own when absent.
    pub height: Option<u32>,
    /// Picture width in pixels; the model's own when absent.
    pub width: Option<u32>,
    /// Tokens of the T5 prompt.
    pub max_sequence_length: u32,
    /// Prompt i starts from the noise of seed + i.
    pub seed: u64,
    /// Prompts in a shard, which run as one batch.
    pub shard_size: u32,
}

/// Records of jobs without it look as they did before there was this key.
fn is_one(number: &f64) -> bool {
    *number == 1.0
}

impl Default for CalibrationSpec {
    fn default() -> Self {
        Self {
            prompts: None,
            column: None,
            conditioning: None,
            grams: None,
            gram_prompts: None,
            count: 100,
            steps: 25,
            guidance: 7.0,
            true_guidance: 1.0,
            height: None,
            width: None,
            max_sequence_length: 256,
            seed: 0,
            shard_size: 4,
        }
    }
}

impl CalibrationSpec {
    /// Prompts that are taken from the file, of prompts or of their conditioning: none where there is no file.
    pub fn prompt_count(&self) -> u32 {
        if self.prompts.is_some() || self.conditioning.is_some() { self.count } else { 0 }
    }
}

/// `[hessian]`: how observations become the matrix that is factorised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HessianSpec {
    /// How alpha falls or rises along the trajectory.
    pub weighting: Weighting,
    /// The smallest alpha.
    pub low: f64,
    /// The largest alpha.
    pub high: f64,
    /// Share of the mean diagonal added to the diagonal.
    pub damping: f64,
    /// The same where OBS chooses a mask that is refined afterwards. It is larger: a mask that trusts the calibration less than the
    /// weights do serves inputs better that pruning itself has changed.
    pub mask_damping: f64,
    /// How observations are summed.
    pub accumulate: Accumulate,
    /// The type of the factorisation.
    pub precision: Precision,
}

impl Default for HessianSpec {
    fn default() -> Self {
        Self {
            weighting: Weighting::default(),
            low: 0.8,
            high: 1.2,
            damping: 0.01,
            mask_damping: 0.1,
            accumulate: Accumulate::default(),
            precision: Precision::default(),
        }
    }
}

/// `[probe]`: where it is measured how far pruning one linear alone moves the model's velocity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeSpec {
    /// Calibration prompts, from the first one on, whose dense trajectories are probed.
    pub prompts: u32,
    /// Steps of each trajectory at which it is done.
    pub points: u32,
}

impl Default for ProbeSpec {
    fn default() -> Self {
        Self { prompts: 1, points: 3 }
    }
}

impl ProbeSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The steps of a trajectory of `steps` at which the velocity is compared, ascending: spread evenly from a twentieth of the
    /// trajectory to three quarters, so 1, 8 and 15 of 20.
    pub fn steps(&self, steps: u32) -> Vec<u32> {
        let last = f64::from(self.points.max(2) - 1);
        let step = |point: u32| {
            let place = (0.05 + 0.7 * f64::from(point) / last) * f64::from(steps);
            // A place that is a whole number must not fall below it by rounding.
            ((place + 1e-9) as u32).min(steps.saturating_sub(1))
        };
        let mut steps: Vec<u32> = (0..self.points).map(step).collect();
        steps.dedup();
        steps
    }
}

/// How alpha_k, the weight of denoising step k, runs from k = 0 (noisiest) to T - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// Every step counts 1.
    Uniform,
    /// From high to low, evenly.
    LinearDecrease,
    /// From high to low, by the logarithm of the steps left.
    #[default]
    LogDecrease,
    /// `linear-decrease` reversed.
    LinearIncrease,
    /// `log-decrease` reversed.
    LogIncrease,
}

/// How observations are summed into a Gram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accumulate {
    /// Rounded to 64-bit integers: the sum does not depend on order.
    #[default]
    Exact,
    /// 32-bit floats: half the memory, results depend on the order of shards.
    F32,
}

/// The type of the factorisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats; a pivot that fails is tried again in 64 bits.
    #[default]
    F32,
    /// 64-bit floats throughout.
    F64,
}

/// `[packages]`: how many units are pruned between two calibrations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackagesSpec {
    /// Number of packages (default 1 where `memory` is absent too).
    pub count: Option<u32>,
    /// The fewest packages whose Grams fit in this much memory.
    pub memory: Option<ByteSize>,
    /// How units are spread over packages.
    pub balance: Balance,
    /// A site whose solving takes more multiplications than this is solved in parts, by workers side by side: linear by linear, then
    /// rows by rows. Rows of different parts do not compete for which weights go.
    pub split_above: u64,
}

impl Default for PackagesSpec {
    fn default() -> Self {
        Self { count: None, memory: None, balance: Balance::default(), split_above: SPLIT_ABOVE }
    }
}

/// Half a minute of a processor of 300 GFLOP/s: no site of a model of two billion parameters takes as much.
const SPLIT_ABOVE: u64 = 1 << 42;

/// How units are spread over packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Even arithmetic of Grams and solving.
    #[default]
    Work,
    /// An even number of units, the first packages one more (as published).
    Units,
}

/// `[evaluation]`: prompts held out from calibration, on which the pruned model is compared with the dense one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSpec {
    /// A prompt file of its own; without it, the prompts that follow the calibration prompts.
    pub prompts: Option<String>,
    /// The column that holds the prompt, for files that have columns.
    pub column: Option<String>,
    /// Prompts used; 0 leaves the comparison out.
    pub count: u32,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { prompts: None, column: None, count: 8 }
    }
}

/// `[workers]`: who may work on the job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersSpec {
    /// Workers of different kinds of hardware may work side by side: the result then depends on who did what.
    pub mixed_hardware: bool,
}

/// `[output]`: where the pruned pipeline goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// A directory that does not exist yet, or a prefix of an object store, `s3://...`, that holds nothing yet.
    pub path: String,
    /// Hard-link the components that do not change instead of copying them.
    #[serde(default)]
    pub link: bool,
    /// Where the job keeps what it has done so far, a directory or `s3://...`; beside the output when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Where the job keeps its Grams and what it surveyed, a directory or `s3://...`; kept nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grams: Option<String>,
    /// Numbers of prompts, ascending: Grams over the first so many are kept, too, each in as much memory as those over all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gram_prompts: Vec<u32>,
    /// How exactly kept Grams are written.
    #[serde(default, skip_serializing_if = "GramPrecision::is_default")]
    pub gram_precision: GramPrecision,
    /// `structured` only: whether what goes leaves the tensors, or zeros in them.
    #[serde(default)]
    pub layout: OutputLayout,
}

/// How exactly kept Grams are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GramPrecision {
    /// As they are summed: solving by them gives the bytes of the whole job.
    #[default]
    Exact,
    /// As 32-bit floats, in half the bytes of exact sums: solving by them gives nearly the same masks and weights.
    F32,
}

impl GramPrecision {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A value of a job file that cannot be used: the key, and what to do.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{key}: {problem}")]
pub struct JobError {
    /// The key as a path, such as `sparsity.rules[0].ratio`.
    pub key: String,
    /// What is wrong with the value, and what would be right.
    pub problem: String,
}

impl JobError {
    /// An error about `key`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests;

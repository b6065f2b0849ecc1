//! `[sparsity]`, and what a linear may have of its own.

use serde::{Deserialize, Serialize};

use crate::{HeadScore, Pattern};

/// `[sparsity]`: how much goes, and by which rule it is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparsitySpec {
    /// How weights are chosen, and whether the survivors are updated; the pattern's default when absent ([`Self::method`]).
    #[serde(default)]
    pub method: Option<Method>,
    /// Which weights may go together.
    pub pattern: Pattern,
    /// Share of the weights that goes, 0..=1. Needed by `unstructured`; an N:M pattern implies it. Of `structured`, the
    /// share of each block's heads and neurons.
    pub ratio: Option<f64>,
    /// `unstructured` only: whether every linear loses the same share; the method's default when absent ([`Self::allocation`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
    /// `global` only: the least share that a linear loses.
    #[serde(default = "default_min_ratio", skip_serializing_if = "is_default_min_ratio")]
    pub min_ratio: f64,
    /// `global` only: the largest share that a linear loses.
    #[serde(default = "default_max_ratio", skip_serializing_if = "is_default_max_ratio")]
    pub max_ratio: f64,
    /// N:M only: the share of the weights that stay dense, in the linears that lose most by the pattern.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dense: f64,
    /// Steps by which the weights that stay are moved to the least-squares optimum of their mask; 0 leaves them where the method
    /// put them, as published.
    #[serde(default = "default_refine")]
    pub refine: u32,
    /// `admm` only: how long mask and weights take turns.
    #[serde(default)]
    pub effort: Effort,
    /// `structured` only, in place of a ratio: the share of a forward call's arithmetic to save, taken where it costs least.
    pub budget: Option<f64>,
    /// `budget` only: what makes heads and neurons of different structures comparable.
    #[serde(default, skip_serializing_if = "BudgetBy::is_default")]
    pub budget_by: BudgetBy,
    /// `structured` only: the neurons that a feed-forward network keeps, where it loses any, are a multiple of this many. Odd widths are
    /// slow on GPUs.
    #[serde(default = "default_align", skip_serializing_if = "is_default_align")]
    pub align: u32,
    /// `structured` only: how heads and neurons are scored.
    #[serde(default)]
    pub head_score: HeadScore,
    /// `structured` only: whether biases take over the mean of what is removed.
    #[serde(default = "default_fold_bias")]
    pub fold_bias: bool,
    /// Exceptions for linears by name; the first match wins.
    #[serde(default)]
    pub rules: Vec<SparsityRule>,
}

impl SparsitySpec {
    /// How weights are chosen: as the job sets, else `obs` for heads and neurons and `admm` for weights.
    pub fn method(&self) -> Method {
        let default = if self.pattern == Pattern::Structured { Method::Obs } else { Method::Admm };
        self.method.unwrap_or(default)
    }

    /// Which share of each linear goes: as the job sets, else `global` where an unstructured job prunes by Hessians and `uniform`
    /// elsewhere, since `wanda` and `magnitude` are there to compare with what is published of them.
    pub fn allocation(&self) -> Allocation {
        let by_hessians = matches!(self.method(), Method::Obs | Method::Admm);
        let default = if by_hessians && self.pattern == Pattern::Unstructured {
            Allocation::Global
        } else {
            Allocation::Uniform
        };
        self.allocation.unwrap_or(default)
    }

    /// The reverse of [`Self::spelled_out`]: what is a default of its pattern or method is left out.
    #[must_use]
    pub fn without_defaults(self) -> Self {
        let own = |method| Self { method, ..self.clone() };
        let method = self.method.filter(|method| *method != own(None).method());
        let default = Self { allocation: None, ..own(self.method) }.allocation();
        let allocation = self.allocation.filter(|allocation| *allocation != default);
        Self { method, allocation, ..self }
    }

    /// The same with every default of its pattern or method filled in.
    pub fn spelled_out(self) -> Self {
        let (method, allocation) = (Some(self.method()), self.allocation());
        let allocation = (self.pattern == Pattern::Unstructured).then_some(allocation).or(self.allocation);
        Self { method, allocation, ..self }
    }
}

/// Which share of each linear's weights goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocation {
    /// The job's ratio, for every linear.
    Uniform,
    /// Ratios by which the pruned model's velocity is expected to change least, at the job's share of zeros over all linears.
    Global,
}

/// What a budget compares of the heads and neurons of different structures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BudgetBy {
    /// The error that each brings to its own linear, relative to what that puts out.
    Errors,
    /// The same times what errors of the structure cost: how far pruning some of it alone moves the model's velocity.
    #[default]
    Velocity,
}

impl BudgetBy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn default_min_ratio() -> f64 {
    0.2
}

fn default_max_ratio() -> f64 {
    0.9
}

// Records of jobs without these keys look as they did before there were any.

fn is_default_min_ratio(ratio: &f64) -> bool {
    *ratio == default_min_ratio()
}

fn is_default_max_ratio(ratio: &f64) -> bool {
    *ratio == default_max_ratio()
}

fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

fn default_align() -> u32 {
    1
}

fn is_default_align(align: &u32) -> bool {
    *align == default_align()
}

fn default_refine() -> u32 {
    5
}

fn default_fold_bias() -> bool {
    true
}

/// How weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Optimal Brain Surgeon: scores and updates by the inverse Hessian.
    Obs,
    /// Alternating directions: weights and mask take turns until they agree (arXiv 2406.07831).
    Admm,
    /// Smallest absolute value; no calibration, unless what stays is refined.
    Magnitude,
    /// Smallest |w| times the norm of its input column; no update.
    Wanda,
    /// `structured` only: heads and neurons of the smallest sum of |w|; no calibration, no update.
    L1,
}

impl Method {
    /// Its name in a job file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Obs => "obs",
            Self::Admm => "admm",
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::L1 => "l1",
        }
    }

    /// Whether it needs activations.
    pub fn calibrates(self) -> bool {
        matches!(self, Self::Obs | Self::Admm | Self::Wanda)
    }
}

/// How long `admm` has mask and weights take turns: so many rounds for each penalty rho on their disagreement. The schedules are ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Three penalties of five rounds.
    #[default]
    Fast,
    /// Six penalties of four rounds: about 7% less error of the linears for 1.43 times the arithmetic of solving.
    Thorough,
}

impl Effort {
    /// The penalties, in turn. A site needs an inverse for each.
    pub const fn penalties(self) -> &'static [f64] {
        match self {
            Self::Fast => &[0.1, 0.3, 1.0],
            Self::Thorough => &[0.03, 0.06, 0.12, 0.25, 0.5, 1.0],
        }
    }

    /// The rounds of each penalty. A linear needs a product of rows x n x n for each but the very first.
    pub const fn rounds(self) -> usize {
        match self {
            Self::Fast => 5,
            Self::Thorough => 4,
        }
    }

    /// Products of rows x n x n for a linear.
    pub const fn products(self) -> usize {
        self.penalties().len() * self.rounds() - 1
    }
}

/// An exception for the linears whose names a glob matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparsityRule {
    /// Glob on linear names, such as `transformer_blocks.0.*`.
    #[serde(rename = "match")]
    pub matches: String,
    /// Leave these linears dense.
    #[serde(default)]
    pub skip: bool,
    /// A pattern of their own.
    pub pattern: Option<Pattern>,
    /// A ratio of their own.
    pub ratio: Option<f64>,
}

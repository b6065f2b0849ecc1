//! `pruning.json`: what was done to a pipeline, for people and for programs.

use obsdiff_proto::{InputDigest, JobSpec, Target};
use serde::{Deserialize, Serialize};

/// The file in a pruned pipeline that says how it was pruned.
pub const RECORD_FILE: &str = "pruning.json";

/// The content of `pruning.json`. It holds nothing that differs between two runs of the same job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruningRecord {
    /// The version of obsdiff that wrote it.
    pub obsdiff: String,
    /// The job with every default filled in.
    pub job: JobSpec,
    /// The kind of hardware that computed it; "mixed" where workers of any kind could take part.
    #[serde(default)]
    pub hardware: String,
    /// Digests of the files that decided the result.
    pub inputs: Vec<InputDigest>,
    /// Every pruned linear, in model order.
    pub linears: Vec<PrunedLinear>,
    /// Every structure that lost heads or neurons, in model order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub structures: Vec<PrunedStructure>,
    /// What structured pruning made of the whole transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Sizes>,
}

/// An attention or a feed-forward network that lost parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedStructure {
    /// The diffusers module path.
    pub name: String,
    /// The package it was pruned in.
    pub package: u32,
    /// Whether its parts are attention heads, or neurons.
    pub heads: bool,
    /// Parts before.
    pub of: usize,
    /// Parts that are left.
    pub kept: usize,
    /// The errors of the parts that went, each over its linear's output energy, damping counted; absent without a Gram.
    pub error: Option<f64>,
    /// The attention heads that went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<usize>,
}

/// A transformer before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Parameters.
    pub parameters: [u64; 2],
    /// Floating-point operations of a forward call on one picture of the job.
    pub forward_flops: [f64; 2],
}

/// A pruned linear and how well it kept its function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedLinear {
    /// The diffusers module path.
    pub name: String,
    /// Rows (output features) and columns (input features) of its weight.
    pub shape: [usize; 2],
    /// Its target.
    pub target: Target,
    /// The package it was pruned in.
    pub package: u32,
    /// Weights that are zero.
    pub zeros: u64,
    /// The damping its site's Hessian needed to choose the mask, or to refine that of another method; absent where neither the method nor
    /// refinement uses it.
    pub damping: Option<f64>,
    /// tr(S) of its site's Gram S, the weighted energy of its inputs; absent without a Gram.
    pub gram_trace: Option<f64>,
    /// The relative error that pruning left, before the weights that stay were refined; absent where they were not.
    pub unrefined_error: Option<f64>,
    /// tr(dW S dW^T) / tr(W S W^T) with the Gram S, W before and W + dW after pruning and refining; absent without a Gram.
    pub relative_error: Option<f64>,
    /// How much an error of this linear moves the model's velocity, as probed: the mean squared relative change of the velocity over
    /// the relative error; absent where nothing was probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

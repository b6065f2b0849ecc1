//! `pruning.json`: what was done to a pipeline, for people and for programs.

use obsdiff_proto::{JobSpec, Target};
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
    /// Digests of the files that decided the result.
    pub inputs: Vec<InputDigest>,
    /// Every pruned linear, in model order.
    pub linears: Vec<PrunedLinear>,
}

/// An input file and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputDigest {
    /// The file, relative to the pipeline directory where it lies in it.
    pub path: String,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A pruned linear and how well it kept its function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedLinear {
    /// The diffusers module path.
    pub name: String,
    /// Rows (output features) and columns (input features) of its weight.
    pub shape: [usize; 2],
    /// What it was to become.
    pub target: Target,
    /// The package it was pruned in.
    pub package: u32,
    /// Weights that are zero.
    pub zeros: u64,
    /// The damping its site's Hessian needed; absent where no Hessian was factorised.
    pub damping: Option<f64>,
    /// tr(S) of its site's Gram S, the weighted energy of its inputs; absent without a Gram.
    pub gram_trace: Option<f64>,
    /// tr(dW S dW^T) / tr(W S W^T) with the Gram S, W before and W + dW after pruning; absent without a Gram.
    pub relative_error: Option<f64>,
}

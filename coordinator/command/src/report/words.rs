//! A job and its result in words.

use obsdiff_engine::export::{PrunedLinear, PruningRecord};
use obsdiff_proto::{Allocation, CalibrationSpec, JobSpec, Method, Pattern, counted};

use crate::text::percent;

/// Weights of a linear.
pub(super) fn weights(linear: &PrunedLinear) -> u64 {
    linear.shape[0] as u64 * linear.shape[1] as u64
}

/// The share of the weights of all pruned linears that is gone or zero.
pub(super) fn share(record: &PruningRecord) -> String {
    let zeros = record.linears.iter().map(|linear| linear.zeros).sum();
    percent(zeros, record.linears.iter().map(weights).sum())
}

/// A method as people call it.
pub(super) fn method(method: Method) -> &'static str {
    match method {
        Method::Admm => "alternating directions (admm)",
        Method::Obs => "Optimal Brain Surgeon (obs)",
        Method::Magnitude => "magnitude",
        Method::Wanda => "Wanda",
        Method::L1 => "sums of weights (l1)",
    }
}

/// What was pruned, by which pattern and method.
pub(super) fn what(record: &PruningRecord) -> String {
    let sparsity = &record.job.sparsity;
    let (linears, share) = (counted(record.linears.len(), "linear"), share(record));
    let what = match sparsity.pattern {
        Pattern::Unstructured => {
            format!("{share} of the weights of {linears} are zero, wherever they cost least")
        }
        Pattern::NToM { n, m } => {
            format!(
                "of every {m} consecutive weights of a row, {n} are zero: {share} of the weights of {linears}"
            )
        }
        Pattern::Structured => format!(
            "whole attention heads and feed-forward neurons went, and with them {share} of the weights of {linears}"
        ),
    };
    let shares = match (sparsity.pattern, sparsity.allocation()) {
        (Pattern::Unstructured, Allocation::Global) => {
            ". Linears lose different shares, so that the model's velocity changes least"
        }
        (Pattern::Unstructured, Allocation::Uniform) => ". Every linear loses the same share",
        _ => "",
    };
    let structured = sparsity.pattern == Pattern::Structured;
    let refined = match sparsity.refine {
        steps if steps > 0 && !structured => {
            format!(" {} of refinement moved the weights that stay.", counted(steps as usize, "step"))
        }
        _ => String::new(),
    };
    format!("{}{shares}. What goes was chosen by {}.{refined}", capital(&what), method(sparsity.method()))
}

/// What the calibration was.
pub(super) fn calibration(calibration: &CalibrationSpec) -> String {
    let size = match (calibration.width, calibration.height) {
        (Some(width), Some(height)) => format!(", pictures of {width} x {height}"),
        _ => String::new(),
    };
    match calibration.prompt_count() {
        0 if calibration.grams.is_some() => "Calibrated by the Grams that an earlier job kept.".to_owned(),
        0 => "Not calibrated: weights alone decided.".to_owned(),
        prompts => format!(
            "Calibrated on {} of {} at guidance {}{size}, from seed {} on.",
            counted(prompts as usize, "prompt"),
            counted(calibration.steps as usize, "step"),
            calibration.guidance,
            calibration.seed
        ),
    }
}

/// The same words with a capital letter first.
pub(super) fn capital(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// A decibel figure of pictures, or that they are equal.
pub(super) fn decibels(psnr: Option<f64>) -> String {
    psnr.map_or("equal".to_owned(), |psnr| format!("{psnr:.2} dB"))
}

/// The list of blocks that a linear is in, its block's number, and its name in the block.
pub(super) fn place(linear: &str) -> (&str, &str, &str) {
    let mut parts = linear.splitn(3, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(list), Some(block), Some(name)) if block.bytes().all(|c| c.is_ascii_digit()) => {
            (list, block, name)
        }
        _ => ("other", "", linear),
    }
}

/// The job file with every default filled in.
pub(super) fn job_file(job: &JobSpec) -> String {
    toml::to_string_pretty(job)
        .or_else(|_| serde_json::to_string_pretty(job))
        .unwrap_or_else(|_| "see pruning.json".to_owned())
}

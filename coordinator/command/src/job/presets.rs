//! Presets: values for several keys at once, in the place of those that the job does not give.

use config::{Value, ValueKind};

use super::{find, is_given, overrides};
use crate::Result;

/// The paper's settings, whatever is pruned. Its damping and its weighting are the defaults.
const OBS_DIFF: &[(&str, &str)] = &[("sparsity.method", "obs")];
/// Those for weights.
const OBS_DIFF_WEIGHTS: &[(&str, &str)] = &[("sparsity.allocation", "uniform"), ("sparsity.refine", "0")];
/// Those for heads and neurons.
const OBS_DIFF_STRUCTURES: &[(&str, &str)] =
    &[("sparsity.head_score", "obs-diff"), ("sparsity.fold_bias", "false")];
/// Those for packages.
const OBS_DIFF_PACKAGES: &[(&str, &str)] = &[("packages.count", "4"), ("packages.balance", "units")];
/// A tenth of the default calibration.
const FAST: &[(&str, &str)] = &[("calibration.count", "16"), ("calibration.steps", "10")];

/// Gives the keys that the user left alone the values of the job's preset. A preset of an unknown name gives none: reading the job
/// then refuses it.
///
/// # Errors
/// When what a value would lie in is no table.
pub(super) fn fill(merged: &mut Value) -> Result<()> {
    let text = |key| match find(merged, key).map(|value: &Value| &value.kind) {
        Some(ValueKind::String(text)) => text.as_str(),
        _ => "",
    };
    let structured = text("sparsity.pattern") == "structured";
    let values = match text("preset") {
        "obs-diff" if is_given(merged, "packages.memory") => {
            [OBS_DIFF, of_pattern(structured), &OBS_DIFF_PACKAGES[1..]].concat()
        }
        "obs-diff" => [OBS_DIFF, of_pattern(structured), OBS_DIFF_PACKAGES].concat(),
        "fast" => FAST.to_vec(),
        _ => return Ok(()),
    };
    for (key, value) in values {
        if !is_given(merged, key) {
            overrides::of_preset(key, value)?.apply(merged)?;
        }
    }
    Ok(())
}

fn of_pattern(structured: bool) -> &'static [(&'static str, &'static str)] {
    if structured { OBS_DIFF_STRUCTURES } else { OBS_DIFF_WEIGHTS }
}

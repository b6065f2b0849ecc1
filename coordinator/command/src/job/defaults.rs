//! Defaults that depend on the model.

use std::path::Path;

use config::Value;
use obsdiff_engine::architecture::read_config;
use obsdiff_proto::JobSpec;

use super::is_given;

/// Sets keys that were not given to the defaults of diffusers' pipeline for the job's `model`, a folder. If the model cannot be read, the general
/// defaults stay; opening the model then gives the error.
pub(super) fn fill(spec: &mut JobSpec, model: &Path, merged: &Value) {
    let Ok(config) = read_config(&model.join("transformer")).or_else(|_| read_config(model)) else { return };
    let defaults = config.defaults();
    if !is_given(merged, "calibration.guidance") {
        spec.calibration.guidance = defaults.guidance;
    }
    if !is_given(merged, "calibration.max_sequence_length") {
        spec.calibration.max_sequence_length = defaults.max_sequence_length;
    }
}

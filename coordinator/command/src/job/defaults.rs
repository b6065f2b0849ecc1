//! Defaults that depend on the model.

use std::path::Path;

use config::Value;
use obsdiff_engine::architecture::read_config;
use obsdiff_proto::JobSpec;

use super::is_given;

/// Sets the keys that were not given to what diffusers' pipeline for the job's model takes. A model that cannot be read keeps the general
/// defaults: it is refused where it is opened.
pub(super) fn fill(spec: &mut JobSpec, merged: &Value) {
    let model = Path::new(&spec.model.path);
    let Ok(config) = read_config(&model.join("transformer")).or_else(|_| read_config(model)) else { return };
    let defaults = config.defaults();
    if !is_given(merged, "calibration.guidance") {
        spec.calibration.guidance = defaults.guidance;
    }
    if !is_given(merged, "calibration.max_sequence_length") {
        spec.calibration.max_sequence_length = defaults.max_sequence_length;
    }
}

//! What was pruned, with its reports.

use std::collections::BTreeMap;

use obsdiff_engine::export::{PrunedLinear, PrunedStructure};
use obsdiff_engine::solve::OutputEnergy;
use obsdiff_proto::LinearId;

use super::PrunedTensors;
use super::object::SliceRecord;

/// What was pruned, with its reports, in model order.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The report of each linear.
    pub linears: Vec<PrunedLinear>,
    /// The report of each structure that lost heads or neurons.
    pub structures: Vec<PrunedStructure>,
    /// The new weights and biases.
    pub tensors: PrunedTensors,
    /// How far the velocity was expected to be from the dense model's; absent where nothing was surveyed.
    pub expected_velocity_error: Option<f64>,
}

/// Joins the reports of the slices of each linear.
pub(super) fn linears(records: &[SliceRecord]) -> BTreeMap<LinearId, PrunedLinear> {
    let mut by_linear: BTreeMap<LinearId, (PrunedLinear, Option<OutputEnergy>)> = BTreeMap::new();
    for record in records {
        match by_linear.get_mut(&record.linear) {
            None => {
                by_linear.insert(record.linear, (record.report.clone(), record.energy));
            }
            Some((whole, energy)) => {
                whole.shape[0] += record.report.shape[0];
                whole.zeros += record.report.zeros;
                *energy = energy.zip(record.energy).map(|(a, b)| a + b);
                whole.relative_error = energy.map(|energy| energy.relative());
                whole.unrefined_error = energy.and_then(|energy| energy.unrefined());
            }
        }
    }
    by_linear.into_iter().map(|(linear, (report, _))| (linear, report)).collect()
}

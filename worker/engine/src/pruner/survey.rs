//! Survey: what pruning each linear alone would cost, found on the dense model before anything is pruned.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use obsdiff_proto::message::Slice;
use obsdiff_proto::{LinearId, LinearTarget, Method, Package, Target, Targets};
use serde::{Deserialize, Serialize};

use super::probe::{Probe, Replacement};
use super::stored::Reported;
use super::{Allocated, Pruner, no_package};
use crate::gram::PlacedGram;
use crate::{Error, Result};

/// A linear is probed at the ratio tried that is nearest to this one.
const PROBED_RATIO: f64 = 0.7;

/// The effect of pruning some rows of a linear alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SurveyedSlice {
    /// Which linear.
    pub linear: LinearId,
    /// The first of the rows.
    pub start: usize,
    /// One past the last of the rows.
    pub end: usize,
    /// The targets tried.
    pub targets: Vec<Target>,
    /// tr(dW S dW^T) of these rows, for each of the targets tried.
    pub changes: Vec<f64>,
    /// tr(W S W^T) of these rows.
    pub whole: f64,
    /// The mean squared relative change of the velocity, with these rows pruned to the target that is probed, less what rounding alone moves.
    pub shift: f64,
}

/// The targets that a survey tries on a linear.
pub(super) struct Trial {
    pub(super) targets: Vec<Target>,
    /// The index of the target that is probed.
    pub(super) probed: usize,
}

impl Trial {
    /// The trial of a linear of this target: these ratios where the allocation chooses one, otherwise the target alone.
    pub(super) fn of(target: Target, ratios: Option<&[f64]>) -> Self {
        match (target, ratios) {
            (Target::Unstructured { .. }, Some(ratios)) => {
                let far = |ratio: &f64| (ratio - PROBED_RATIO).abs();
                let nearest = (0..ratios.len()).min_by(|a, b| far(&ratios[*a]).total_cmp(&far(&ratios[*b])));
                let targets = ratios.iter().map(|ratio| Target::Unstructured { ratio: *ratio }).collect();
                Self { targets, probed: nearest.unwrap_or(0) }
            }
            _ => Self { targets: vec![target], probed: 0 },
        }
    }
}

impl Pruner {
    /// Prunes rows of linears that all read one site to several targets, by the site's Gram, and probes each slice at one of them. The
    /// model is the dense one, and does not change.
    ///
    /// # Errors
    /// As [`Pruner::solve`], and when a forward call or `on_step` fails.
    pub fn survey_slices(
        &mut self,
        package: &Package,
        slices: &[Slice],
        gram: Option<&PlacedGram>,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<SurveyedSlice>> {
        let trials = slices.iter().map(|slice| self.trial(package, slice)).collect::<Result<Vec<_>>>()?;
        let mut found: Vec<_> = slices
            .iter()
            .zip(&trials)
            .map(|(slice, trial)| (empty_survey(slice, trial), None::<Tensor>))
            .collect();
        // `admm` prunes to all targets of a site by the same inverses. The other methods prune every slice to one target at a time,
        // because refinement overwrites the factor that pruning needs.
        let mut rounds: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (place, trial) in trials.iter().enumerate() {
            for tried in 0..trial.targets.len() {
                let round = if self.method == Method::Admm { 0 } else { tried };
                rounds.entry(round).or_default().push((place, tried));
            }
        }
        for order in rounds.into_values() {
            let wanted: Vec<_> =
                order.iter().map(|(place, i)| (slices[*place].clone(), trials[*place].targets[*i])).collect();
            let mut next = order.into_iter();
            self.solve_to(package.id, &wanted, gram, Reported::Solved, &mut |solved| {
                let (place, target) = next.next().ok_or_else(no_package)?;
                let (slice, weight) = &mut found[place];
                let energy = solved.energy.ok_or_else(no_package)?;
                slice.changes.push(energy.change);
                slice.whole = energy.whole;
                if target == trials[place].probed {
                    *weight = Some(solved.weight);
                }
                on_step()
            })?;
        }
        let mut probe = match self.probe.take() {
            Some(probe) => probe,
            None => self.new_probe(on_step)?,
        };
        for ((found, weight), slice) in found.iter_mut().zip(slices) {
            let whole = self.with_rows(slice, weight.take().ok_or_else(no_package)?)?;
            let replaced = vec![Replacement { linear: slice.linear, weight: whole, bias: None }];
            found.shift = probe.shift(&mut *self.model, replaced, on_step)?;
        }
        self.probe = Some(probe);
        Ok(found.into_iter().map(|(found, _)| found).collect())
    }

    /// The targets and costs of a plan's linears, from the survey of all their rows.
    ///
    /// # Errors
    /// When a linear was not surveyed.
    pub fn allocate(&self, linears: &[LinearTarget], slices: &[SurveyedSlice]) -> Result<Allocated> {
        Allocated::new(&self.sparsity, self.model.inventory(), linears, slices)
    }

    /// The targets to which a survey prunes a slice's linear.
    ///
    /// # Errors
    /// When the slice is not of this package.
    pub fn trial_targets(&self, package: &Package, slice: &Slice) -> Result<Vec<Target>> {
        Ok(self.trial(package, slice)?.targets)
    }

    /// The trial of a slice's linear.
    fn trial(&self, package: &Package, slice: &Slice) -> Result<Trial> {
        let target = package.linears.iter().find(|target| target.linear == slice.linear);
        let LinearTarget { linear, target } = *target.ok_or_else(no_package)?;
        let by_rule = self.is_set_by_rule(linear)?;
        let ratios = self.sparsity.tried_ratios();
        Ok(Trial::of(target, (!by_rule).then_some(&ratios)))
    }

    /// Whether a rule of the job sets a linear's target.
    fn is_set_by_rule(&self, linear: LinearId) -> Result<bool> {
        let targets = Targets::new(&self.sparsity).map_err(|e| Error::Argument(e.to_string()))?;
        Ok(targets.by_rule(&self.model.inventory().linear(linear).name).is_some())
    }

    pub(super) fn new_probe(&self, on_step: &mut dyn FnMut() -> Result<()>) -> Result<Probe> {
        let _span = tracing::info_span!("probe").entered();
        let prompts = self.probe_spec.prompts.min(self.trajectories.prompts());
        let steps = self.probe_spec.steps(self.trajectories.step_count() as u32);
        Probe::new(&*self.model, &self.trajectories, 0..prompts, &steps, on_step)
    }

    /// A linear's weight in the model, with some of its rows replaced.
    fn with_rows(&self, slice: &Slice, rows: Tensor) -> Result<Tensor> {
        let dense = self.model.weight(slice.linear)?;
        let count = dense.dim(0)?;
        if slice.rows == (0..count) {
            return Ok(rows);
        }
        let rows = rows.to_dtype(DType::F32)?.to_dtype(dense.dtype())?;
        let around = [0..slice.rows.start, slice.rows.end..count];
        let [before, after] = around.map(|rows| dense.narrow(0, rows.start, rows.len()));
        let parts = [before?, rows, after?];
        let parts: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// A survey of a slice whose figures are still to be found.
fn empty_survey(slice: &Slice, trial: &Trial) -> SurveyedSlice {
    SurveyedSlice {
        linear: slice.linear,
        start: slice.rows.start,
        end: slice.rows.end,
        targets: trial.targets.clone(),
        changes: Vec::new(),
        whole: 0.0,
        shift: 0.0,
    }
}

//! Survey: what pruning each linear alone would cost, found on the dense model before anything is pruned.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use obsdiff_proto::message::Slice;
use obsdiff_proto::{LinearId, LinearTarget, Method, Package, Target, Targets};
use serde::{Deserialize, Serialize};

use super::probe::{Probe, Replaced};
use super::{Allocated, Pruner, no_package};
use crate::gram::Gram;
use crate::{Error, Result};

/// The ratio nearest to which a linear is probed.
const PROBED: f64 = 0.7;

/// What pruning some rows of a linear alone does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SurveyedSlice {
    /// Which linear.
    pub linear: LinearId,
    /// The first of the rows.
    pub start: usize,
    /// The first row behind them.
    pub end: usize,
    /// The targets tried.
    pub targets: Vec<Target>,
    /// tr(dW S dW^T) of these rows, for each of the targets tried.
    pub changes: Vec<f64>,
    /// tr(W S W^T) of these rows.
    pub whole: f64,
    /// The mean squared relative change of the velocity, with these rows pruned to the target that is probed.
    pub shift: f64,
}

/// What is tried on a linear: targets, and which of them is probed.
pub(super) struct Trial {
    pub(super) targets: Vec<Target>,
    pub(super) probed: usize,
}

impl Trial {
    /// What is tried on a linear of this target: several ratios where the allocation decides, else the target alone.
    pub(super) fn of(target: Target, decided: Option<&[f64]>) -> Self {
        match (target, decided) {
            (Target::Unstructured { .. }, Some(ratios)) => {
                let far = |ratio: &f64| (ratio - PROBED).abs();
                let nearest = (0..ratios.len()).min_by(|a, b| far(&ratios[*a]).total_cmp(&far(&ratios[*b])));
                let targets = ratios.iter().map(|ratio| Target::Unstructured { ratio: *ratio }).collect();
                Self { targets, probed: nearest.unwrap_or(0) }
            }
            _ => Self { targets: vec![target], probed: 0 },
        }
    }
}

impl Pruner {
    /// Prunes rows of linears that all read one site to several targets, by the site's Gram, and probes each. The model is the dense one,
    /// and stays so.
    ///
    /// # Errors
    /// As [`Pruner::solve`], and when a forward call or `on_step` fails.
    pub fn survey_slices(
        &mut self,
        package: &Package,
        slices: &[Slice],
        gram: Option<&Gram>,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<SurveyedSlice>> {
        let trials = slices.iter().map(|slice| self.trial(package, slice)).collect::<Result<Vec<_>>>()?;
        let mut found: Vec<_> = slices
            .iter()
            .zip(&trials)
            .map(|(slice, trial)| (surveyed(slice, trial), None::<Tensor>))
            .collect();
        // The inverses of `admm` serve all targets of a site; what else prunes takes one target of every slice at a time, as refinement
        // takes the place of the factor that it goes by.
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
            self.solve_to(package.id, &wanted, gram, &mut |solved| {
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
            let replaced = vec![Replaced { linear: slice.linear, weight: whole, bias: None }];
            found.shift = probe.shift(&mut *self.model, replaced, on_step)?;
        }
        self.probe = Some(probe);
        Ok(found.into_iter().map(|(found, _)| found).collect())
    }

    /// What becomes of the linears of a plan, by what was surveyed of all their rows.
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

    /// What is tried on a slice's linear.
    fn trial(&self, package: &Package, slice: &Slice) -> Result<Trial> {
        let target = package.linears.iter().find(|target| target.linear == slice.linear);
        let LinearTarget { linear, target } = *target.ok_or_else(no_package)?;
        let by_rule = self.ruled(linear)?;
        let ratios = self.sparsity.tried_ratios();
        Ok(Trial::of(target, (!by_rule).then_some(&ratios)))
    }

    /// Whether a rule of the job decides for a linear.
    fn ruled(&self, linear: LinearId) -> Result<bool> {
        let targets = Targets::new(&self.sparsity).map_err(|e| Error::Argument(e.to_string()))?;
        Ok(targets.by_rule(&self.model.inventory().linear(linear).name).is_some())
    }

    pub(super) fn new_probe(&self, on_step: &mut dyn FnMut() -> Result<()>) -> Result<Probe> {
        let _span = tracing::info_span!("probe").entered();
        let prompts = self.probing.prompts.min(self.trajectories.prompts());
        let steps = self.probing.steps(self.trajectories.step_count() as u32);
        Probe::new(&*self.model, &self.trajectories, 0..prompts, &steps, on_step)
    }

    /// A linear's weight in the model, with other rows in the place of some.
    fn with_rows(&self, slice: &Slice, rows: Tensor) -> Result<Tensor> {
        let dense = self.model.weight(slice.linear)?;
        let count = dense.dim(0)?;
        if slice.rows == (0..count) {
            return Ok(rows);
        }
        let rows = rows.to_device(dense.device())?.to_dtype(DType::F32)?.to_dtype(dense.dtype())?;
        let around = [0..slice.rows.start, slice.rows.end..count];
        let [before, after] = around.map(|rows| dense.narrow(0, rows.start, rows.len()));
        let parts = [before?, rows, after?];
        let parts: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
        Ok(Tensor::cat(&parts, 0)?)
    }
}

fn surveyed(slice: &Slice, trial: &Trial) -> SurveyedSlice {
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

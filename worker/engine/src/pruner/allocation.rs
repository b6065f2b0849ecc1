//! Allocation: the ratio of each linear, chosen so that the pruned model's velocity is expected to change least.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, LinearId, LinearTarget, SparsitySpec, Target, Targets};

use super::SurveyedSlice;
use super::survey::Trial;
use crate::{Error, Result};

/// Steps between the least and the largest ratio that a linear may get.
const RATIO_STEPS: usize = 140;

/// Steps of the bisection for the price of a zero, whose logarithm lies between -60 and 60.
const BISECTIONS: usize = 120;

/// The target and the cost of each linear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocated {
    /// The targets that follow from the survey.
    pub targets: BTreeMap<LinearId, Target>,
    /// The cost of each surveyed linear: the mean squared relative change of the velocity over the linear's relative error.
    pub costs: BTreeMap<LinearId, f64>,
    /// The expected mean squared relative change of the velocity: the sum of cost * error over all linears.
    pub expected: f64,
}

/// The error of a linear by its ratio, and what the error costs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ErrorCurve {
    /// How many weights it has.
    pub(super) size: f64,
    /// Change of the velocity for each unit of its relative error.
    pub(super) cost: f64,
    /// Its relative error at each of the ratios tried.
    pub(super) errors: Vec<f64>,
}

impl ErrorCurve {
    /// The relative error at `ratio`, interpolated between its neighbours among the ratios `tried`, which ascend: by the logarithms of
    /// the errors where both are positive, otherwise by the errors themselves.
    fn error(&self, tried: &[f64], ratio: f64) -> f64 {
        let found = |i: usize| self.errors.get(i).copied().unwrap_or(0.0);
        let above = tried.partition_point(|r| *r < ratio).clamp(1, tried.len().max(2) - 1);
        let (Some(low), Some(high)) = (tried.get(above - 1), tried.get(above)) else { return found(0) };
        let share = if high > low { ((ratio - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 };
        let (before, after) = (found(above - 1), found(above));
        if before > 0.0 && after > 0.0 {
            (before.ln() * (1.0 - share) + after.ln() * share).exp()
        } else {
            before * (1.0 - share) + after * share
        }
    }
}

/// The ratio of each linear, within the range of the ratios `tried`, that minimises the sum of cost * error while the share `ratio` of
/// all weights becomes zero. Bisection finds the price of a zero (a Lagrange multiplier). Just below that price there are too few
/// zeros, just above too many: the linears move from the first allocation to the second, in their order, until the share is met. Where that
/// costs more than the same ratio everywhere, which it may on the way past a steep rise of an error, it is that ratio.
pub(super) fn allocate_ratios(curves: &[ErrorCurve], tried: &[f64], ratio: f64) -> Vec<f64> {
    let (Some(&least), Some(&most)) = (tried.first(), tried.last()) else { return vec![ratio; curves.len()] };
    // Nine decimals: the digits after them come from the arithmetic alone.
    let place = |i: usize| ((least + (most - least) * i as f64 / RATIO_STEPS as f64) * 1e9).round() / 1e9;
    let grid: Vec<f64> = (0..=RATIO_STEPS).map(place).collect();
    let losses = |curve: &ErrorCurve| grid.iter().map(|r| curve.cost * curve.error(tried, *r)).collect();
    let losses: Vec<Vec<f64>> = curves.iter().map(losses).collect();
    let wanted = ratio * curves.iter().map(|curve| curve.size).sum::<f64>();
    let zeros = |chosen: &[f64]| chosen.iter().zip(curves).map(|(r, curve)| r * curve.size).sum::<f64>();
    let at = |price: f64| -> Vec<f64> {
        let best = |(curve, losses): (&ErrorCurve, &Vec<f64>)| {
            let net = |i: &usize| losses[*i] - price * grid[*i] * curve.size;
            (0..grid.len()).min_by(|a, b| net(a).total_cmp(&net(b))).map_or(ratio, |i| grid[i])
        };
        curves.iter().zip(&losses).map(best).collect()
    };
    let (mut few, mut many) = (vec![least; curves.len()], vec![most; curves.len()]);
    let (mut low, mut high) = (-60.0f64, 60.0f64);
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        let chosen = at(middle.exp());
        if zeros(&chosen) < wanted {
            (low, few) = (middle, chosen);
        } else {
            (high, many) = (middle, chosen);
        }
    }
    let mut missing = wanted - zeros(&few);
    for ((ratio, more), curve) in few.iter_mut().zip(many).zip(curves) {
        let added = ((more - *ratio) * curve.size).min(missing).max(0.0);
        if curve.size > 0.0 {
            *ratio += added / curve.size;
        }
        missing -= added;
    }
    let loss = |chosen: &[f64]| -> f64 {
        curves.iter().zip(chosen).map(|(curve, ratio)| curve.cost * curve.error(tried, *ratio)).sum()
    };
    let uniform = vec![ratio; curves.len()];
    if (least..=most).contains(&ratio) && loss(&uniform) < loss(&few) { uniform } else { few }
}

/// Which linears stay dense. Those with the largest loss for each weight come first; one stays dense if its weights still fit into
/// `share` of all weights. `linears` are (weights, loss).
pub(super) fn choose_dense(linears: &[(f64, f64)], share: f64) -> Vec<bool> {
    let mut room = share * linears.iter().map(|(size, _)| size).sum::<f64>();
    let mut order: Vec<usize> = (0..linears.len()).collect();
    let price = |i: usize| linears[i].1 / linears[i].0.max(1.0);
    order.sort_by(|a, b| price(*b).total_cmp(&price(*a)).then(a.cmp(b)));
    let mut dense = vec![false; linears.len()];
    for i in order {
        if linears[i].0 <= room {
            dense[i] = true;
            room -= linears[i].0;
        }
    }
    dense
}

/// The survey of one linear, all its rows together.
struct SurveyedLinear {
    target: LinearTarget,
    by_rule: bool,
    curve: ErrorCurve,
    /// The index of the target, and of the error, at which it was probed.
    probed: usize,
}

/// Joins what was surveyed of the slices of each linear.
///
/// # Errors
/// When a linear was not surveyed.
fn join_slices(
    sparsity: &SparsitySpec,
    inventory: &Inventory,
    linears: &[LinearTarget],
    slices: &[SurveyedSlice],
) -> Result<Vec<SurveyedLinear>> {
    let targets = Targets::new(sparsity).map_err(|e| Error::Argument(e.to_string()))?;
    let tried = sparsity.tried_ratios();
    let mut surveyed = Vec::with_capacity(linears.len());
    for target in linears {
        let described = inventory.linear(target.linear);
        let by_rule = targets.by_rule(&described.name).is_some();
        let trial = Trial::of(target.target, (!by_rule).then_some(&tried));
        let own: Vec<_> = slices.iter().filter(|slice| slice.linear == target.linear).collect();
        let whole: f64 = own.iter().map(|slice| slice.whole).sum();
        let error = |i: usize| {
            let change: f64 = own.iter().filter_map(|slice| slice.changes.get(i)).sum();
            if whole > 0.0 { (change / whole).max(0.0) } else { 0.0 }
        };
        let errors: Vec<f64> = (0..trial.targets.len()).map(error).collect();
        if own.is_empty() {
            return Err(Error::Argument(format!("{} was not surveyed", described.name)));
        }
        let shift: f64 = own.iter().map(|slice| slice.shift).sum();
        let probed = errors.get(trial.probed).copied().unwrap_or(0.0);
        let cost = if probed > 0.0 { shift / probed } else { 0.0 };
        let size = (described.rows * inventory.site(described.site).width) as f64;
        let curve = ErrorCurve { size, cost, errors };
        surveyed.push(SurveyedLinear { target: *target, by_rule, curve, probed: trial.probed });
    }
    Ok(surveyed)
}

/// The expected mean squared relative change of the velocity when every linear loses the share `ratio`, except those whose targets a rule
/// sets. `slices` were surveyed for a job of this `sparsity`.
///
/// # Errors
/// When a linear was not surveyed.
pub fn expected_at(
    sparsity: &SparsitySpec,
    inventory: &Inventory,
    linears: &[LinearTarget],
    slices: &[SurveyedSlice],
    ratio: f64,
) -> Result<f64> {
    let tried = sparsity.tried_ratios();
    let loss = |one: &SurveyedLinear| {
        let own = one.curve.errors.get(one.probed).copied().unwrap_or(0.0);
        one.curve.cost * if one.by_rule { own } else { one.curve.error(&tried, ratio) }
    };
    Ok(join_slices(sparsity, inventory, linears, slices)?.iter().map(loss).sum())
}

impl Allocated {
    /// The targets and costs of a plan's linears, from the survey of all their rows. Linears whose targets a rule sets keep them.
    ///
    /// # Errors
    /// When a linear was not surveyed.
    pub fn new(
        sparsity: &SparsitySpec,
        inventory: &Inventory,
        linears: &[LinearTarget],
        slices: &[SurveyedSlice],
    ) -> Result<Self> {
        let tried = sparsity.tried_ratios();
        let surveyed = join_slices(sparsity, inventory, linears, slices)?;
        let mut allocated = Self::default();
        let free = |one: &&SurveyedLinear| !one.by_rule;
        let curves: Vec<ErrorCurve> = surveyed.iter().filter(free).map(|one| one.curve.clone()).collect();
        match sparsity.ratio {
            Some(ratio) if sparsity.dense == 0.0 => {
                let ratios = allocate_ratios(&curves, &tried, ratio);
                for (one, ratio) in surveyed.iter().filter(free).zip(ratios) {
                    allocated.targets.insert(one.target.linear, Target::Unstructured { ratio });
                    allocated.expected += one.curve.cost * one.curve.error(&tried, ratio);
                }
            }
            _ => {
                let loss = |curve: &ErrorCurve| {
                    (curve.size, curve.cost * curve.errors.first().copied().unwrap_or(0.0))
                };
                let losses: Vec<_> = curves.iter().map(loss).collect();
                let dense = choose_dense(&losses, sparsity.dense);
                for ((one, dense), (_, loss)) in surveyed.iter().filter(free).zip(dense).zip(losses) {
                    if dense {
                        allocated.targets.insert(one.target.linear, Target::Unstructured { ratio: 0.0 });
                    } else {
                        allocated.expected += loss;
                    }
                }
            }
        }
        for one in &surveyed {
            if one.by_rule {
                allocated.expected +=
                    one.curve.cost * one.curve.errors.get(one.probed).copied().unwrap_or(0.0);
            }
            allocated.costs.insert(one.target.linear, one.curve.cost);
        }
        Ok(allocated)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRIED: [f64; 8] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

    /// Errors that grow by these factors from one ratio to the next.
    fn curve(size: f64, cost: f64, first: f64, factors: &[f64]) -> ErrorCurve {
        let grown = factors.iter().scan(first, |error, factor| {
            *error *= factor;
            Some(*error)
        });
        ErrorCurve { size, cost, errors: std::iter::once(first).chain(grown).collect() }
    }

    fn curves() -> impl Strategy<Value = Vec<ErrorCurve>> {
        let one = (1.0f64..1e6, 1e-6f64..10.0, 1e-6f64..1e-2, prop::collection::vec(1.05f64..4.0, 7));
        let curve = |(size, cost, first, factors): (_, _, _, Vec<f64>)| curve(size, cost, first, &factors);
        prop::collection::vec(one.prop_map(curve), 1..12)
    }

    fn loss(curves: &[ErrorCurve], ratios: &[f64]) -> f64 {
        curves.iter().zip(ratios).map(|(curve, ratio)| curve.cost * curve.error(&TRIED, *ratio)).sum()
    }

    #[test]
    fn the_logarithm_of_the_error_is_interpolated() {
        let curve = curve(1.0, 1.0, 0.01, &[4.0; 7]);
        for (ratio, error) in [(0.2, 0.01), (0.25, 0.02), (0.3, 0.04), (0.35, 0.08), (0.9, 163.84)] {
            assert!((curve.error(&TRIED, ratio) / error - 1.0).abs() < 1e-9, "at {ratio}");
        }
    }

    #[test]
    fn an_error_of_zero_does_not_make_small_ratios_free() {
        let curve = ErrorCurve { size: 1.0, cost: 1.0, errors: vec![0.0, 0.02] };
        assert_eq!([0.0, 0.05, 0.1].map(|ratio| curve.error(&[0.0, 0.1], ratio)), [0.0, 0.01, 0.02]);
        let dead = ErrorCurve { errors: vec![0.0, 0.0], ..curve };
        assert_eq!(dead.error(&[0.0, 0.1], 0.05), 0.0);
    }

    #[test]
    fn what_costs_less_loses_more() {
        let curves = [1.0, 100.0, 1.0].map(|cost| curve(10.0, cost, 0.001, &[2.0; 7]));
        let ratios = allocate_ratios(&curves, &TRIED, 0.5);
        assert!(ratios[0] > 0.5 && ratios[1] < 0.5 && (ratios[0] - ratios[2]).abs() < 0.006, "{ratios:?}");
        // Nothing to choose between: what is left over goes to the first ones.
        let free = allocate_ratios(&curves.map(|curve| ErrorCurve { cost: 0.0, ..curve }), &TRIED, 0.5);
        assert!((free.iter().sum::<f64>() / 3.0 - 0.5).abs() < 1e-12, "{free:?}");
    }

    #[test]
    fn two_linears_come_out_as_by_trying_all() {
        let curves = [curve(3.0, 0.2, 0.004, &[1.5; 7]), curve(1.0, 0.9, 0.001, &[2.5; 7])];
        for ratio in [0.3, 0.5, 0.7, 0.85] {
            let found = loss(&curves, &allocate_ratios(&curves, &TRIED, ratio));
            let tries = (0..=7000).map(|i| 0.2 + 0.7 * f64::from(i) / 7000.0);
            let second = |first: f64| (4.0 * ratio - 3.0 * first, first);
            let within = tries.map(second).filter(|(second, _)| (0.2..=0.9).contains(second));
            let best = within.map(|(second, first)| loss(&curves, &[first, second])).fold(f64::MAX, f64::min);
            assert!(found <= best * 1.001, "{found} at {ratio}, but {best} is possible");
        }
    }

    #[test]
    fn a_steep_rise_of_an_error_costs_no_more_than_the_same_ratio_everywhere() {
        let curves = [
            curve(538_620.0, 9.6, 0.0062, &[1.05, 3.73, 3.51, 1.05, 1.05, 1.05, 1.05]),
            curve(713_853.0, 8.0, 0.0087, &[1.05, 3.88, 1.12, 1.05, 1.05, 1.05, 1.05]),
        ];
        // Before and after its rise the second one has a good ratio. The share leaves it between the two.
        let uniform = loss(&curves, &[0.37, 0.37]);
        assert!(loss(&curves, &allocate_ratios(&curves, &TRIED, 0.37)) <= uniform);
    }

    #[test]
    fn the_costliest_stay_dense_while_they_fit() {
        // Losses for each weight: 1, 4, 0.1, 2.
        let linears = [(10.0, 10.0), (5.0, 20.0), (20.0, 2.0), (15.0, 30.0)];
        assert_eq!(choose_dense(&linears, 0.0), [false; 4]);
        assert_eq!(choose_dense(&linears, 0.1), [false, true, false, false]);
        // The fourth has no room beside the second, the first has.
        assert_eq!(choose_dense(&linears, 0.3), [true, true, false, false]);
        assert_eq!(choose_dense(&linears, 0.4), [false, true, false, true]);
    }

    proptest! {
        #[test]
        fn the_share_is_met_within_the_range(curves in curves(), ratio in 0.2f64..=0.9) {
            let ratios = allocate_ratios(&curves, &TRIED, ratio);
            let size: f64 = curves.iter().map(|curve| curve.size).sum();
            let zeros: f64 = curves.iter().zip(&ratios).map(|(curve, ratio)| ratio * curve.size).sum();
            prop_assert!((zeros / size - ratio).abs() < 1e-9, "{zeros} of {size} at {ratio}");
            prop_assert!(ratios.iter().all(|r| (0.2 - 1e-9..=0.9 + 1e-9).contains(r)), "{ratios:?}");
            let uniform = loss(&curves, &vec![ratio; curves.len()]);
            prop_assert!(loss(&curves, &ratios) <= uniform, "{} against {uniform}", loss(&curves, &ratios));
        }
    }
}

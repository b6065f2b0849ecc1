//! Allocation: which share of each linear goes, so that the pruned model's velocity is expected to change least.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, LinearId, LinearTarget, SparsitySpec, Target, Targets};

use super::SurveyedSlice;
use super::survey::Trial;
use crate::{Error, Result};

/// Ratios that a linear may get: so many steps from the least to the largest.
const STEPS: usize = 140;

/// Halvings of the price of a zero, whose logarithm lies within +-60.
const HALVINGS: usize = 120;

/// What each linear becomes, and what is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocated {
    /// Targets that the survey decided.
    pub targets: BTreeMap<LinearId, Target>,
    /// How much an error of each linear surveyed moves the velocity: its mean squared relative change over the relative error.
    pub costs: BTreeMap<LinearId, f64>,
    /// The mean squared relative change of the velocity to expect: the sum of cost * error over all linears.
    pub expected: f64,
}

/// A linear whose ratio is to be found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    /// Weights.
    pub(super) size: f64,
    /// What its error costs.
    pub(super) cost: f64,
    /// Its relative error at each of the ratios tried.
    pub(super) errors: Vec<f64>,
}

impl Curve {
    /// The logarithm of the error is interpolated between the ratios tried, which ascend; from a ratio without error on, the error itself.
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

/// The ratio of each linear, within the ratios `tried`, that minimises the sum of cost * error at the share `ratio` of zeros over all: by a
/// price of a zero (a Lagrange multiplier), found by halving. What is left over at the price that two allocations share goes to the
/// linears in their order, so that the share is met but for rounding.
pub(super) fn allocate_ratios(curves: &[Curve], tried: &[f64], ratio: f64) -> Vec<f64> {
    let (Some(&least), Some(&most)) = (tried.first(), tried.last()) else { return vec![ratio; curves.len()] };
    // Without the last digits that only rounding brought.
    let place = |i: usize| ((least + (most - least) * i as f64 / STEPS as f64) * 1e9).round() / 1e9;
    let grid: Vec<f64> = (0..=STEPS).map(place).collect();
    let losses = |curve: &Curve| grid.iter().map(|r| curve.cost * curve.error(tried, *r)).collect();
    let losses: Vec<Vec<f64>> = curves.iter().map(losses).collect();
    let wanted = ratio * curves.iter().map(|curve| curve.size).sum::<f64>();
    let zeros = |chosen: &[f64]| chosen.iter().zip(curves).map(|(r, curve)| r * curve.size).sum::<f64>();
    let at = |price: f64| -> Vec<f64> {
        let best = |(curve, losses): (&Curve, &Vec<f64>)| {
            let net = |i: &usize| losses[*i] - price * grid[*i] * curve.size;
            (0..grid.len()).min_by(|a, b| net(a).total_cmp(&net(b))).map_or(ratio, |i| grid[i])
        };
        curves.iter().zip(&losses).map(best).collect()
    };
    let (mut few, mut many) = (vec![least; curves.len()], vec![most; curves.len()]);
    let (mut low, mut high) = (-60.0f64, 60.0f64);
    for _ in 0..HALVINGS {
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
    few
}

/// Which linears stay as they are: those whose loss costs most for each weight, as long as their weights are at most `share` of all. One
/// that has no room is passed over. `linears` are (weights, loss).
pub(super) fn spare_costliest(linears: &[(f64, f64)], share: f64) -> Vec<bool> {
    let mut room = share * linears.iter().map(|(size, _)| size).sum::<f64>();
    let mut order: Vec<usize> = (0..linears.len()).collect();
    let price = |i: usize| linears[i].1 / linears[i].0.max(1.0);
    order.sort_by(|a, b| price(*b).total_cmp(&price(*a)).then(a.cmp(b)));
    let mut spared = vec![false; linears.len()];
    for i in order {
        if linears[i].0 <= room {
            spared[i] = true;
            room -= linears[i].0;
        }
    }
    spared
}

/// What a survey says of one linear.
struct Surveyed {
    target: LinearTarget,
    by_rule: bool,
    curve: Curve,
    /// Which of the errors is that of its own target, where there is only one.
    probed: usize,
}

/// What a survey says of the linears of a plan.
///
/// # Errors
/// When a linear was not surveyed.
fn surveyed(
    sparsity: &SparsitySpec,
    inventory: &Inventory,
    linears: &[LinearTarget],
    slices: &[SurveyedSlice],
) -> Result<Vec<Surveyed>> {
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
        let curve = Curve { size, cost, errors };
        surveyed.push(Surveyed { target: *target, by_rule, curve, probed: trial.probed });
    }
    Ok(surveyed)
}

/// The mean squared relative change of the velocity to expect where every linear that no rule decides for loses the share `ratio`, by a
/// survey of a job of this `sparsity`.
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
    let loss = |one: &Surveyed| {
        let own = one.curve.errors.get(one.probed).copied().unwrap_or(0.0);
        one.curve.cost * if one.by_rule { own } else { one.curve.error(&tried, ratio) }
    };
    Ok(surveyed(sparsity, inventory, linears, slices)?.iter().map(loss).sum())
}

impl Allocated {
    /// What becomes of the linears of a plan, by what was surveyed of all their rows. Linears that a rule decides for keep their
    /// targets.
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
        let surveyed = surveyed(sparsity, inventory, linears, slices)?;
        let mut allocated = Self::default();
        let free = |one: &&Surveyed| !one.by_rule;
        let curves: Vec<Curve> = surveyed.iter().filter(free).map(|one| one.curve.clone()).collect();
        match sparsity.ratio {
            Some(ratio) if sparsity.dense == 0.0 => {
                let ratios = allocate_ratios(&curves, &tried, ratio);
                for (one, ratio) in surveyed.iter().filter(free).zip(ratios) {
                    allocated.targets.insert(one.target.linear, Target::Unstructured { ratio });
                    allocated.expected += one.curve.cost * one.curve.error(&tried, ratio);
                }
            }
            _ => {
                let loss =
                    |curve: &Curve| (curve.size, curve.cost * curve.errors.first().copied().unwrap_or(0.0));
                let losses: Vec<_> = curves.iter().map(loss).collect();
                let spared = spare_costliest(&losses, sparsity.dense);
                for ((one, spared), (_, loss)) in surveyed.iter().filter(free).zip(spared).zip(losses) {
                    if spared {
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
    fn curve(size: f64, cost: f64, first: f64, factors: &[f64]) -> Curve {
        let grown = factors.iter().scan(first, |error, factor| {
            *error *= factor;
            Some(*error)
        });
        Curve { size, cost, errors: std::iter::once(first).chain(grown).collect() }
    }

    fn curves() -> impl Strategy<Value = Vec<Curve>> {
        let one = (1.0f64..1e6, 1e-6f64..10.0, 1e-6f64..1e-2, prop::collection::vec(1.05f64..4.0, 7));
        let curve = |(size, cost, first, factors): (_, _, _, Vec<f64>)| curve(size, cost, first, &factors);
        prop::collection::vec(one.prop_map(curve), 1..12)
    }

    fn loss(curves: &[Curve], ratios: &[f64]) -> f64 {
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
    fn an_error_of_nothing_does_not_make_small_ratios_free() {
        let curve = Curve { size: 1.0, cost: 1.0, errors: vec![0.0, 0.02] };
        assert_eq!([0.0, 0.05, 0.1].map(|ratio| curve.error(&[0.0, 0.1], ratio)), [0.0, 0.01, 0.02]);
        let dead = Curve { errors: vec![0.0, 0.0], ..curve };
        assert_eq!(dead.error(&[0.0, 0.1], 0.05), 0.0);
    }

    #[test]
    fn what_costs_less_loses_more() {
        let curves = [1.0, 100.0, 1.0].map(|cost| curve(10.0, cost, 0.001, &[2.0; 7]));
        let ratios = allocate_ratios(&curves, &TRIED, 0.5);
        assert!(ratios[0] > 0.5 && ratios[1] < 0.5 && (ratios[0] - ratios[2]).abs() < 0.006, "{ratios:?}");
        // Nothing to choose between: what is left over goes to the first ones.
        let free = allocate_ratios(&curves.map(|curve| Curve { cost: 0.0, ..curve }), &TRIED, 0.5);
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
    fn the_costliest_stay_as_far_as_there_is_room() {
        // Losses for each weight: 1, 4, 0.1, 2.
        let linears = [(10.0, 10.0), (5.0, 20.0), (20.0, 2.0), (15.0, 30.0)];
        assert_eq!(spare_costliest(&linears, 0.0), [false; 4]);
        assert_eq!(spare_costliest(&linears, 0.1), [false, true, false, false]);
        // The fourth has no room beside the second, the first has.
        assert_eq!(spare_costliest(&linears, 0.3), [true, true, false, false]);
        assert_eq!(spare_costliest(&linears, 0.4), [false, true, false, true]);
    }

    proptest! {
        #[test]
        fn the_share_is_met_within_the_range(curves in curves(), ratio in 0.2f64..=0.9) {
            let ratios = allocate_ratios(&curves, &TRIED, ratio);
            let size: f64 = curves.iter().map(|curve| curve.size).sum();
            let zeros: f64 = curves.iter().zip(&ratios).map(|(curve, ratio)| ratio * curve.size).sum();
            prop_assert!((zeros / size - ratio).abs() < 1e-9, "{zeros} of {size} at {ratio}");
            prop_assert!(ratios.iter().all(|r| (0.2 - 1e-9..=0.9 + 1e-9).contains(r)), "{ratios:?}");
            // It costs no more than what is uniform, but for the step between two ratios.
            let uniform = loss(&curves, &vec![ratio; curves.len()]);
            prop_assert!(loss(&curves, &ratios) <= uniform * 1.02, "{} against {uniform}", loss(&curves, &ratios));
        }
    }
}

//! Linears, by alternating directions or OBS, and refinement.

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::{
    BLOCK, Factor, Obs, ScaledHessian, SiteSettings, SiteSolver, SolveError, SolvedWeight, output_energy,
    refine, stride,
};
use obsdiff_proto::{Accumulate, Effort, Precision, Target};
use obsdiff_tests::noise;

use crate::device;

pub(crate) const FAST: SiteSettings =
    SiteSettings { damping: 0.01, precision: Precision::F32, effort: Effort::Fast, refinement: 10 };

/// The upper triangle of the Gram of random rows whose features are correlated and of different sizes; the columns in `dead` see only zeros.
pub(crate) fn upper(n: usize, dead: &[usize]) -> Vec<f32> {
    let mut rows = noise(9, 2 * n * n);
    for row in rows.chunks_mut(n) {
        for j in 1..n {
            row[j] += 0.5 * row[j - 1];
        }
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + 2.0 * ((j * 7) % 5) as f32);
        dead.iter().for_each(|j| row[*j] = 0.0);
    }
    let mut gram = Gram::new(n, Accumulate::Exact, 30);
    gram.observe(&rows, 1.0).unwrap();
    gram.to_upper(stride(n))
}

fn solved(
    device: &ComputeDevice,
    n: usize,
    upper: &[f32],
    settings: SiteSettings,
    weights: &[(&[f32], Target)],
) -> Vec<SolvedWeight> {
    let mut solver = device.solver();
    solver.reserve(settings.effort, n, weights.iter().map(|(weight, _)| weight.len()).max().unwrap());
    solver.begin(n, upper.to_vec(), settings).unwrap();
    let solved = solver.solve(weights).into_iter().map(Result::unwrap).collect();
    solver.end();
    solved
}

/// How many weights have to be 0: those of the target and, where these are more, those of dead columns.
fn least_zeros(rows: usize, n: usize, target: &Target, dead: usize) -> usize {
    let of_target = match *target {
        Target::Unstructured { ratio } => (ratio * (rows * n) as f64) as usize,
        Target::NToM { n: pruned, m } => {
            rows * (0..n).step_by(m).map(|first| pruned * m.min(n - first) / m).sum::<usize>()
        }
        Target::Structured { .. } => 0,
    };
    of_target.max(rows * dead)
}

#[test]
fn linears_are_solved_as_by_the_processor() {
    let targets = [
        Target::Unstructured { ratio: 0.5 },
        Target::Unstructured { ratio: 0.77 },
        Target::NToM { n: 2, m: 4 },
        Target::NToM { n: 3, m: 7 },
    ];
    let thorough = SiteSettings { effort: Effort::Thorough, refinement: 0, ..FAST };
    let double = SiteSettings { precision: Precision::F64, ..FAST };
    for (rows, n, dead, settings) in [
        (40, 60, vec![], FAST),
        (33, 97, vec![0, 41], FAST),
        (20, 35, vec![3], thorough),
        (31, 64, vec![], double),
    ] {
        let upper = upper(n, &dead);
        let weight = noise(4, rows * n);
        let wanted: Vec<_> = targets.iter().map(|target| (weight.as_slice(), *target)).collect();
        let found = solved(&device(), n, &upper, settings, &wanted);
        let processor = solved(&ComputeDevice::Cpu, n, &upper, settings, &wanted);
        for ((found, processor), target) in found.iter().zip(&processor).zip(&targets) {
            let zeros = |solved: &SolvedWeight| solved.weight.iter().filter(|w| **w == 0.0).count();
            assert_eq!(zeros(found), zeros(processor), "{target:?}");
            assert!(zeros(found) >= least_zeros(rows, n, target, dead.len()));
            let pairs = found.weight.iter().zip(&processor.weight);
            let agree = pairs.filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count();
            let share = agree as f64 / (rows * n) as f64;
            assert!(share >= 0.995, "{target:?}: masks of {rows} x {n} agree on {share}");
            let near = |a: f64, b: f64, within: f64| (a / b - 1.0).abs() < within;
            let (a, b) = (found.energy, processor.energy);
            assert!(near(a.relative(), b.relative(), 0.01), "{target:?}: {a:?} and {b:?}");
            assert!(near(a.whole, b.whole, 1e-5), "{a:?} and {b:?}");
            assert_eq!(a.unrefined.is_some(), settings.refinement > 0);
            assert!(a.unrefined.is_none_or(|unrefined| near(unrefined, b.unrefined.unwrap(), 0.01)));
        }
    }
}

#[test]
fn counts_are_exact_and_ties_go_as_on_the_processor() {
    // Every feature sees the same energy and no other feature: all weights of one size tie.
    let (rows, n) = (5, 8);
    let mut upper = vec![0.0; n * stride(n)];
    (0..n).for_each(|j| upper[j * stride(n) + j] = 2.0);
    let weight: Vec<f32> = (0..rows * n).map(|at| if at % 3 == 0 { -0.5 } else { 0.5 }).collect();
    let mut targets =
        vec![Target::NToM { n: 2, m: 4 }, Target::NToM { n: 1, m: 3 }, Target::Unstructured { ratio: 1.0 }];
    targets.extend([1, 7, 23].map(|pruned| Target::Unstructured { ratio: (f64::from(pruned) + 0.5) / 40.0 }));
    for target in targets {
        let [found, wanted] = [device(), ComputeDevice::Cpu].map(|device| {
            let solved = solved(&device, n, &upper, FAST, &[(&weight, target)]);
            solved[0].weight.iter().map(|w| *w == 0.0).collect::<Vec<_>>()
        });
        assert_eq!(found, wanted, "{target:?}");
        let zeros = found.iter().filter(|zero| **zero).count();
        assert_eq!(zeros, least_zeros(rows, n, &target, 0), "{target:?}");
    }
}

#[test]
fn the_change_of_any_weight_of_a_site_can_be_told() {
    let (rows, n) = (21, 60);
    let weight = noise(4, rows * n);
    let mut solver = device().solver();
    assert_eq!(solver.change(&weight, &weight), None);
    solver.begin(n, upper(n, &[7]), FAST).unwrap();
    let solved = solver.solve(&[(&weight, Target::Unstructured { ratio: 0.5 })]).remove(0).unwrap();
    let change = solver.change(&weight, &solved.weight).unwrap().unwrap();
    assert!((change / solved.energy.change - 1.0).abs() < 1e-3, "{change} {:?}", solved.energy);
    assert_eq!(solver.change(&weight, &weight), Some(Ok(0.0)));
    assert!(matches!(solver.change(&weight, &weight[n..]), Some(Err(SolveError::Size { .. }))));
    assert!(matches!(solver.change(&weight[1..], &weight[1..]), Some(Err(SolveError::Size { .. }))));
}

#[test]
fn nothing_changes_where_nothing_is_to_go() {
    let (rows, n) = (3, 20);
    let weight = noise(4, rows * n);
    for target in [Target::Unstructured { ratio: 0.0 }, Target::NToM { n: 0, m: 4 }] {
        let solved = &solved(&device(), n, &upper(n, &[7]), FAST, &[(&weight, target)])[0];
        assert_eq!(solved.weight, weight, "{target:?}");
        assert_eq!(solved.energy.relative(), 0.0, "{:?}", solved.energy);
    }
}

#[test]
fn what_cannot_be_solved_is_refused_as_by_the_processor() {
    let n = 6;
    let good = noise(4, 4 * n);
    let mut not_finite = good.clone();
    not_finite[2 * n + 5] = f32::NAN;
    let half = Target::Unstructured { ratio: 0.5 };
    for device in [device(), ComputeDevice::Cpu] {
        let mut solver = device.solver();
        let refused = |solver: &mut dyn SiteSolver, weight: &[f32], target: Target| {
            solver.solve(&[(weight, target)]).remove(0).unwrap_err()
        };
        let no_site = refused(&mut *solver, &good, half);
        assert!(matches!(no_site, SolveError::Size { .. }), "{no_site}");
        let mut infinite = upper(n, &[]);
        infinite[stride(n) + 3] = f32::INFINITY;
        assert_eq!(solver.begin(n, infinite, FAST), Err(SolveError::GramNotFinite));
        let negative = SiteSettings { damping: -1.0, ..FAST };
        assert_eq!(solver.begin(n, upper(n, &[]), negative), Err(SolveError::Damping { damping: -1.0 }));
        let mut no_gram = vec![0.0; n * stride(n)];
        (0..n).for_each(|j| no_gram[j * stride(n) + j] = 1.0);
        (1..n).for_each(|j| no_gram[j] = 5.0);
        let negative = solver.begin(n, no_gram, FAST).unwrap_err();
        assert!(matches!(negative, SolveError::NotPositive { .. }), "{negative}");
        solver.begin(n, upper(n, &[]), FAST).unwrap();
        let found = refused(&mut *solver, &not_finite, half);
        assert_eq!(found, SolveError::WeightNotFinite { row: 2, column: 5 });
        assert_eq!(
            refused(&mut *solver, &good[1..], half),
            SolveError::Size { rows: 3, columns: n, found: 4 * n - 1 }
        );
        for target in [Target::Unstructured { ratio: 1.5 }, Target::NToM { n: 4, m: 4 }] {
            assert_eq!(refused(&mut *solver, &good, target), SolveError::Target(target));
        }
    }
}

#[test]
fn the_same_bytes_come_out_whatever_is_solved_beside() {
    let (rows, n) = (16, 48);
    let (upper, weights) = (upper(n, &[]), [noise(1, rows * n), noise(2, rows * n), noise(3, rows * n)]);
    let target = Target::Unstructured { ratio: 0.6 };
    let together: Vec<_> = weights.iter().map(|weight| (weight.as_slice(), target)).collect();
    let together = solved(&device(), n, &upper, FAST, &together);
    for (weight, together) in weights.iter().zip(together) {
        assert_eq!(solved(&device(), n, &upper, FAST, &[(weight, target)])[0].weight, together.weight);
    }
}

/// By OBS with this damping of masks, on the processor: the weight, its relative output error before and after refinement, and the damping.
fn by_obs(
    n: usize,
    upper: &[f32],
    damping: f64,
    settings: SiteSettings,
    (dense, target): (&[f32], &Target),
) -> (Vec<f32>, [f64; 2], f64) {
    let factor = Factor::new(n, upper.to_vec(), damping).unwrap();
    let mut weight = dense.to_vec();
    Obs::default().prune(&mut weight, &factor, target).unwrap();
    let energy = output_energy(dense, &weight, &factor).unwrap();
    let used = factor.damping_used();
    let hessian = ScaledHessian::new(factor, settings.damping);
    let left = refine(&mut weight, dense, &hessian, settings.refinement).unwrap();
    (weight, [energy.relative(), energy.refined(left).relative()], used)
}

#[test]
fn linears_are_pruned_by_obs_as_by_the_processor() {
    let damping = 0.03;
    let Some(mut solver) = device().obs_solver(damping) else { return };
    for (rows, n, dead) in [(40, 60, vec![]), (33, 2 * BLOCK + 44, vec![0, 200]), (24, 130, vec![3])] {
        let upper = upper(n, &dead);
        let dense = noise(4, rows * n);
        for precision in [Precision::F32, Precision::F64] {
            let settings = SiteSettings { precision, ..FAST };
            assert_eq!(solver.begin(n, upper.clone(), settings), Ok(damping));
            for target in [
                Target::Unstructured { ratio: 0.5 },
                Target::Unstructured { ratio: 0.77 },
                Target::NToM { n: 2, m: 4 },
                Target::NToM { n: 3, m: 7 },
                Target::NToM { n: 30, m: 100 },
            ] {
                let found = solver.solve(&[(&dense, target)]).remove(0).unwrap();
                let (wanted, [unrefined, relative], _) =
                    by_obs(n, &upper, damping, settings, (&dense, &target));
                let zeros = |weight: &[f32]| weight.iter().filter(|w| **w == 0.0).count();
                assert_eq!(zeros(&found.weight), zeros(&wanted), "{rows} x {n}, {target:?}");
                let pairs = found.weight.iter().zip(&wanted);
                let agree = pairs.filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count() as f64;
                assert!(agree >= 0.995 * (rows * n) as f64, "{rows} x {n}, {target:?}: {agree} agree");
                let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
                assert!(near(found.energy.relative(), relative), "{:?}, {relative}", found.energy);
                let energy = found.energy.unrefined().unwrap();
                assert!(near(energy, unrefined), "{energy}, {unrefined}");
            }
        }
    }
}

#[test]
fn obs_raises_the_damping_of_a_gram_that_has_no_factor_as_the_processor_does() {
    let Some(mut solver) = device().obs_solver(0.0) else { return };
    let (rows, n) = (6, 12);
    // Features that are all the same: without damping no factor.
    let mut upper = vec![0.0; n * stride(n)];
    (0..n).for_each(|i| (i..n).for_each(|j| upper[i * stride(n) + j] = 1.0));
    let dense = noise(7, rows * n);
    let target = Target::Unstructured { ratio: 0.5 };
    let (_, _, used) = by_obs(n, &upper, 0.0, FAST, (&dense, &target));
    assert!(used > 0.0);
    assert_eq!(solver.begin(n, upper, FAST), Ok(used));
    let found = solver.solve(&[(&dense, target)]).remove(0).unwrap();
    assert_eq!(found.weight.iter().filter(|w| **w == 0.0).count(), rows * n / 2);
    assert!(found.weight.iter().all(|w| w.is_finite()));
}

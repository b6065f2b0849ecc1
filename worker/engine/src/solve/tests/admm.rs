use obsdiff_proto::Effort;

use super::answers::{inverse, threads};
use super::*;
use crate::solve::shifted::shifted_inverse;

fn scaled(gram: &[f64], n: usize) -> ScaledHessian {
    ScaledHessian::of_gram(n, upper::<f32>(gram, n), 0.01).unwrap()
}

fn alternated(weight: &[f32], hessian: &ScaledHessian, effort: Effort, target: Target) -> Vec<f32> {
    let mut admm = Admm::default();
    admm.begin::<f32>(hessian, effort).unwrap();
    let mut weight = weight.to_vec();
    admm.prune(&mut weight, hessian, &target).unwrap();
    weight
}

/// The places that stay, of |x| over the whole matrix or over each group of a row.
fn staying(x: &[f64], n: usize, target: &Target) -> Vec<bool> {
    let mut stays = vec![true; x.len()];
    let mut prune = |mut places: Vec<usize>, count: usize| {
        places.sort_by(|a, b| {
            x[*a].abs().total_cmp(&x[*b].abs()).then_with(|| (a % n, a / n).cmp(&(b % n, b / n)))
        });
        places[..count].iter().for_each(|at| stays[*at] = false);
    };
    match *target {
        Target::Unstructured { ratio } => prune((0..x.len()).collect(), (ratio * x.len() as f64) as usize),
        Target::NToM { n: pruned, m } => {
            for row in 0..x.len() / n {
                for first in (0..n).step_by(m) {
                    let columns = m.min(n - first);
                    prune((first..first + columns).map(|j| row * n + j).collect(), pruned * columns / m);
                }
            }
        }
        Target::Structured { .. } => unreachable!(),
    }
    stays
}

/// `x` (rows x n) times a symmetric square.
fn times(x: &[f64], square: &[f64], n: usize) -> Vec<f64> {
    let row =
        |x: &[f64]| -> Vec<f64> { (0..n).map(|j| (0..n).map(|k| x[k] * square[k * n + j]).sum()).collect() };
    x.chunks(n).flat_map(row).collect()
}

/// The definition in f64, with every product and every variable: X, Z and U.
fn plain(
    weight: &[f32],
    gram: &[f64],
    n: usize,
    penalties: &[f64],
    rounds: usize,
    target: &Target,
) -> Vec<f64> {
    let h = damped(gram, n, 0.01);
    let s: Vec<f64> = (0..n).map(|j| h[j * n + j].sqrt()).collect();
    let a: Vec<f64> = (0..n * n).map(|at| h[at] / (s[at / n] * s[at % n])).collect();
    let dead = |j: usize| gram[j * n + j] == 0.0;
    let scaled = |(at, w): (usize, &f32)| if dead(at % n) { 0.0 } else { f64::from(*w) * s[at % n] };
    let v0: Vec<f64> = weight.iter().enumerate().map(scaled).collect();
    let aimed = times(&v0, &a, n);
    let (mut z, mut u) = (v0.clone(), vec![0.0; v0.len()]);
    let mut before = penalties[0];
    for rho in penalties {
        let mut shifted = a.clone();
        (0..n).for_each(|j| shifted[j * n + j] += rho);
        let inverse = inverse(&shifted, n);
        u.iter_mut().for_each(|u| *u *= before / rho);
        before = *rho;
        for _ in 0..rounds {
            let right: Vec<f64> =
                aimed.iter().zip(z.iter().zip(&u)).map(|(t, (z, u))| t + rho * (z - u)).collect();
            let y: Vec<f64> = times(&right, &inverse, n).iter().zip(&u).map(|(x, u)| x + u).collect();
            let stays = staying(&y, n, target);
            z = y.iter().zip(&stays).map(|(y, stays)| if *stays { *y } else { 0.0 }).collect();
            u = y.iter().zip(&z).map(|(y, z)| y - z).collect();
        }
    }
    z.iter().enumerate().map(|(at, z)| z / s[at % n]).collect()
}

#[test]
fn a_shifted_inverse_in_f32_is_as_good_as_one_in_f64() {
    for (n, dead) in [(1, vec![]), (50, vec![7]), (97, vec![]), (400, vec![0])] {
        let gram = gram(n as u64, n, &dead);
        let hessian = scaled(&gram, n);
        for rho in [0.03, 0.1, 1.0] {
            let (mut single, mut double) = (Vec::new(), Vec::new());
            shifted_inverse::<f32>(&hessian, rho, &mut Vec::new(), &mut single).unwrap();
            shifted_inverse::<f64>(&hessian, rho, &mut Vec::new(), &mut double).unwrap();
            let mut shifted: Vec<f64> =
                (0..n * n).map(|at| f64::from(hessian.square()[at / n * stride(n) + at % n])).collect();
            (0..n).for_each(|j| shifted[j * n + j] += rho);
            let exact = inverse(&shifted, n);
            // No entry of the inverse is above 1 / rho.
            for (at, exact) in exact.iter().enumerate() {
                let place = at / n * stride(n) + at % n;
                let [single, double] =
                    [&single, &double].map(|found| (f64::from(found[place]) - exact) * rho);
                assert!(single.abs() < 2e-5 && double.abs() < 1e-7, "n {n}, rho {rho}: {single} {double}");
            }
        }
    }
}

#[test]
fn it_does_what_the_definition_says() {
    for (n, rows, dead) in [(40, 9, vec![]), (130, 6, vec![3, 129])] {
        let gram = gram(n as u64, n, &dead);
        let hessian = scaled(&gram, n);
        let weight = noise(n as u64 + 1, rows * n);
        for target in TARGETS {
            for (effort, penalties, rounds) in [
                (Effort::Fast, &[0.1, 0.3, 1.0][..], 5),
                (Effort::Thorough, &[0.03, 0.06, 0.12, 0.25, 0.5, 1.0], 4),
            ] {
                let found = alternated(&weight, &hessian, effort, target);
                let wanted = plain(&weight, &gram, n, penalties, rounds, &target);
                let same = found.iter().zip(&wanted).filter(|(f, w)| (**f == 0.0) == (**w == 0.0)).count();
                assert!(same as f64 >= 0.99 * found.len() as f64, "{target:?}: {same} of {}", found.len());
                let (mut off, mut size) = (0.0, 0.0);
                for (found, wanted) in found.iter().zip(&wanted).filter(|(f, w)| **f != 0.0 && **w != 0.0) {
                    off += (f64::from(*found) - wanted).powi(2);
                    size += wanted * wanted;
                }
                assert!(off <= 1e-5 * size, "{target:?}: {off} of {size}");
            }
        }
    }
}

#[test]
fn exactly_so_many_go_and_dead_columns_among_them() {
    let (n, rows) = (150, 11);
    let gram = gram(5, n, &[0, 70]);
    let (hessian, weight) = (scaled(&gram, n), noise(6, rows * n));
    for target in TARGETS {
        let found = alternated(&weight, &hessian, Effort::Fast, target);
        assert!(found.chunks(n).all(|row| row[0] == 0.0 && row[70] == 0.0), "{target:?}");
        match target {
            Target::Unstructured { ratio } => {
                assert_eq!(zeros(&found), (ratio * weight.len() as f64) as usize, "{target:?}");
            }
            Target::NToM { n: pruned, m } => {
                for group in found.chunks(n).flat_map(|row| row.chunks(m).enumerate()) {
                    let (g, group) = group;
                    let of_dead = [0, 70].iter().filter(|j| *j / m == g).count();
                    let wanted = (pruned * group.len() / m).max(of_dead);
                    assert_eq!(zeros(group), wanted, "{target:?}");
                }
            }
            Target::Structured { .. } => unreachable!(),
        }
    }
}

#[test]
fn nothing_goes_at_0_and_everything_at_1() {
    let n = 24;
    let hessian = scaled(&gram(7, n, &[2]), n);
    let weight = noise(8, 5 * n);
    for target in [Target::Unstructured { ratio: 0.0 }, Target::NToM { n: 0, m: 4 }] {
        assert_eq!(alternated(&weight, &hessian, Effort::Fast, target), weight, "{target:?}");
    }
    let gone = alternated(&weight, &hessian, Effort::Fast, Target::Unstructured { ratio: 1.0 });
    assert_eq!(zeros(&gone), gone.len());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (n, rows) = (700, 530);
    let gram = gram(9, n, &[]);
    let weight = noise(10, rows * n);
    for target in [Target::Unstructured { ratio: 0.6 }, Target::NToM { n: 2, m: 4 }] {
        let [one, two] = [1, 2]
            .map(|count| threads(count, || alternated(&weight, &scaled(&gram, n), Effort::Fast, target)));
        assert!(one.iter().zip(&two).all(|(a, b)| a.to_bits() == b.to_bits()), "{target:?}");
    }
}

#[test]
fn what_a_site_does_not_fit_is_refused() {
    let n = 16;
    let hessian = scaled(&gram(11, n, &[]), n);
    let mut admm = Admm::default();
    let half = Target::Unstructured { ratio: 0.5 };
    assert!(matches!(admm.prune(&mut [0.5; 32], &hessian, &half), Err(SolveError::Size { .. })));
    admm.begin::<f32>(&hessian, Effort::Fast).unwrap();
    assert!(matches!(admm.prune(&mut [0.5; 17], &hessian, &half), Err(SolveError::Size { .. })));
    let mut weight = [0.5; 32];
    weight[20] = f32::NAN;
    let refused = admm.prune(&mut weight, &hessian, &half);
    assert_eq!(refused, Err(SolveError::WeightNotFinite { row: 1, column: 4 }));
    let over = Target::Unstructured { ratio: 1.5 };
    assert_eq!(admm.prune(&mut [0.5; 32], &hessian, &over), Err(SolveError::Target(over)));
    let bad = |change: fn(&mut Vec<f32>), damping: f64| {
        let mut square = upper::<f32>(&gram(11, n, &[]), n);
        change(&mut square);
        ScaledHessian::of_gram(n, square, damping).err()
    };
    assert_eq!(bad(|square| square[1] = f32::NAN, 0.01), Some(SolveError::GramNotFinite));
    assert_eq!(
        bad(|square| square.truncate(5), 0.01).map(|e| matches!(e, SolveError::Size { .. })),
        Some(true)
    );
    assert_eq!(bad(|_| {}, -0.5), Some(SolveError::Damping { damping: -0.5 }));
    assert_eq!(bad(|_| {}, 0.0), None);
}

#[test]
fn energies_by_the_scaled_gram_are_those_of_the_factor() {
    let (n, rows) = (300, 20);
    let gram = gram(12, n, &[8]);
    let weight = noise(13, rows * n);
    let after = pruned(&weight, &factor(&gram, n, 0.01), Target::Unstructured { ratio: 0.5 });
    let wanted = output_energy(&weight, &after, &factor(&gram, n, 0.01)).unwrap();
    let found = scaled(&gram, n).output_energy(&weight, &after).unwrap();
    assert!((found.change / wanted.change - 1.0).abs() < 1e-4, "{found:?} {wanted:?}");
    assert!((found.whole / wanted.whole - 1.0).abs() < 1e-4, "{found:?} {wanted:?}");
}

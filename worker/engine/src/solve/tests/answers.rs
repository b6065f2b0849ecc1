use super::*;

/// H^-1, by Gauss and Jordan.
pub(in crate::solve) fn inverse(h: &[f64], n: usize) -> Vec<f64> {
    let mut h = h.to_vec();
    let mut inverse: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for k in 0..n {
        let pivot = h[k * n + k];
        for j in 0..n {
            h[k * n + j] /= pivot;
            inverse[k * n + j] /= pivot;
        }
        for i in (0..n).filter(|i| *i != k) {
            let f = h[i * n + k];
            for j in 0..n {
                h[i * n + j] -= f * h[k * n + j];
                inverse[i * n + j] -= f * inverse[k * n + j];
            }
        }
    }
    inverse
}

/// OBS by its definition, in f64: one column after the other, H^-1 of the columns to the right kept by Gaussian elimination.
/// Returns the weight and, for each, how far its score was from being ranked otherwise, relative.
fn plain_obs(weight: &[f32], gram: &[f64], n: usize, damping: f64, target: &Target) -> (Vec<f64>, Vec<f64>) {
    let rows = weight.len() / n;
    let mut w: Vec<f64> = weight.iter().map(|x| f64::from(*x)).collect();
    for j in (0..n).filter(|j| gram[j * n + j] == 0.0) {
        (0..rows).for_each(|r| w[r * n + j] = 0.0);
    }
    let first = inverse(&damped(gram, n, damping), n);
    // [H^-1]_jj of the matrix that is left when columns before j are gone: U_jj^2.
    let mut pivots = vec![0.0; n];
    let mut left = first.clone();
    let mut lefts = Vec::new();
    for j in 0..n {
        pivots[j] = left[j * n + j];
        lefts.push(left[j * n..(j + 1) * n].to_vec());
        for a in j + 1..n {
            let f = left[a * n + j] / left[j * n + j];
            for b in j..n {
                left[a * n + b] -= f * left[j * n + b];
            }
        }
    }
    let mut margin = vec![f64::INFINITY; rows * n];
    let mut goes = vec![false; rows * n];
    let step = match *target {
        Target::Unstructured { .. } => BLOCK,
        Target::NToM { m, .. } => m,
        Target::Structured { .. } => unreachable!(),
    };
    for j in 0..n {
        if j % step == 0 {
            let columns = step.min(n - j);
            let sets: Vec<Vec<usize>> = match target {
                Target::Unstructured { .. } => {
                    vec![(0..columns).flat_map(|c| (0..rows).map(move |r| r * n + j + c)).collect()]
                }
                _ => (0..rows).map(|r| (0..columns).map(|c| r * n + j + c).collect()).collect(),
            };
            for mut set in sets {
                let count = match *target {
                    Target::Unstructured { ratio } => (ratio * set.len() as f64) as usize,
                    Target::NToM { n: k, m } => k * set.len() / m,
                    Target::Structured { .. } => unreachable!(),
                };
                let score = |at: usize| w[at] * w[at] / pivots[at % n];
                set.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
                let edge = match count {
                    0 => 0.0,
                    k if k == set.len() => f64::INFINITY,
                    k => (score(set[k - 1]) + score(set[k])) / 2.0,
                };
                for (place, at) in set.into_iter().enumerate() {
                    goes[at] = place < count;
                    margin[at] = (score(at) - edge).abs() / edge.max(1e-300);
                }
            }
        }
        for r in (0..rows).filter(|r| goes[r * n + j]) {
            let step = w[r * n + j] / pivots[j];
            for b in j..n {
                w[r * n + b] -= step * lefts[j][b];
            }
            w[r * n + j] = 0.0;
        }
    }
    (w, margin)
}

pub(super) fn threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

#[test]
fn the_answer_is_the_definitions() {
    for (n, rows, dead) in [(40, 9, vec![]), (150, 70, vec![3, 140]), (300, 65, vec![])] {
        let gram = gram(n as u64 + 1, n, &dead);
        let weight = noise(77, rows * n);
        for target in TARGETS {
            let (expected, margin) = plain_obs(&weight, &gram, n, 0.01, &target);
            for factor in [factor(&gram, n, 0.01), Factor::new(n, upper::<f64>(&gram, n), 0.01).unwrap()] {
                let found = pruned(&weight, &factor, target);
                for (r, (found, wanted)) in found.chunks(n).zip(expected.chunks(n)).enumerate() {
                    // A near-tie may fall either way, and the row goes its own way from there.
                    let close = margin[r * n..(r + 1) * n].iter().any(|m| *m < 1e-3);
                    let same = found.iter().zip(wanted).all(|(f, w)| (*f == 0.0) == (*w == 0.0));
                    assert!(same || close, "n {n}, {target:?}, row {r}: other zeros");
                    let error: f64 = found.iter().zip(wanted).map(|(f, w)| (f64::from(*f) - w).powi(2)).sum();
                    let size: f64 = wanted.iter().map(|w| w * w).sum();
                    assert!(
                        !same || error <= 1e-6 * size,
                        "n {n}, {target:?}, row {r}: off by {error} of {size}"
                    );
                }
                let agree = found.iter().zip(&expected).filter(|(f, w)| (**f == 0.0) == (**w == 0.0)).count();
                assert!(agree as f64 >= 0.995 * found.len() as f64, "{agree} of {} agree", found.len());
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (n, rows) = (400, 200);
    let gram = gram(9, n, &[7]);
    let weight = noise(2, rows * n);
    for target in TARGETS {
        let work = || {
            let factor = factor(&gram, n, 0.01);
            let after = pruned(&weight, &factor, target);
            let error = relative_error(&weight, &after, &factor).unwrap();
            (after.into_iter().map(f32::to_bits).collect::<Vec<_>>(), error.to_bits())
        };
        assert!(threads(1, work) == threads(2, work), "{target:?}");
    }
}

#[test]
fn what_was_pruned_before_does_not_change_a_bit() {
    let mut obs = Obs::default();
    for (n, rows) in [(700, 200), (40, 300), (600, 9)] {
        let factor = factor(&gram(n as u64, n, &[]), n, 0.01);
        let weight = noise(3, rows * n);
        for target in TARGETS {
            let mut after = weight.clone();
            obs.prune(&mut after, &factor, &target).unwrap();
            assert!(after == pruned(&weight, &factor, target), "{rows} x {n}, {target:?}");
        }
    }
}

#[test]
fn a_row_depends_on_no_other_row_of_its_group() {
    let n = 260;
    let gram = gram(4, n, &[]);
    let factor = factor(&gram, n, 0.01);
    let weight = noise(8, 130 * n);
    let target = Target::NToM { n: 2, m: 4 };
    let whole = pruned(&weight, &factor, target);
    let part = pruned(&weight[67 * n..], &factor, target);
    assert_eq!(whole[67 * n..], part);
}

#[test]
fn a_single_pruned_weight_leaves_the_least_squares_optimum() {
    let n = 96;
    let gram = gram(11, n, &[]);
    let h = damped(&gram, n, 0.01);
    let weight = noise(12, n);
    let after = pruned(&weight, &factor(&gram, n, 0.01), Target::Unstructured { ratio: 1.001 / n as f64 });
    let gone: Vec<usize> = (0..n).filter(|j| after[*j] == 0.0).collect();
    assert_eq!(gone.len(), 1);
    // OBS moves the columns to the right of the pruned one alone: the optimum over those, all others held.
    let free: Vec<usize> = (gone[0] + 1..n).collect();
    let a = free.iter().flat_map(|&i| free.iter().map(move |&j| (i, j))).map(|(i, j)| h[i * n + j]).collect();
    let b = free.iter().map(|&i| h[i * n + gone[0]] * f64::from(weight[gone[0]])).collect();
    let moved = solved(a, b);
    for j in 0..n {
        let step = free.iter().position(|f| *f == j).map_or(0.0, |at| moved[at]);
        let wanted = if j == gone[0] { 0.0 } else { f64::from(weight[j]) + step };
        assert!((f64::from(after[j]) - wanted).abs() < 1e-4, "column {j}: {} {wanted}", after[j]);
    }
}

#[test]
fn the_relative_error_is_the_definitions() {
    let (n, rows) = (270, 140);
    let gram = gram(13, n, &[2]);
    let factor = factor(&gram, n, 0.01);
    let weight = noise(14, rows * n);
    let after = pruned(&weight, &factor, Target::NToM { n: 2, m: 4 });
    let energy = |v: &dyn Fn(usize) -> f64| -> f64 {
        let row = |r: usize| -> f64 {
            (0..n).map(|i| (0..n).map(|j| v(r * n + i) * gram[i * n + j] * v(r * n + j)).sum::<f64>()).sum()
        };
        (0..rows).map(row).sum()
    };
    let change = energy(&|at| f64::from(after[at]) - f64::from(weight[at]));
    let wanted = change / energy(&|at| f64::from(weight[at]));
    let found = relative_error(&weight, &after, &factor).unwrap();
    assert!((found - wanted).abs() < 1e-5 * wanted, "{found} {wanted}");
    assert_eq!(relative_error(&weight, &weight, &factor), Ok(0.0));
}

#[test]
fn obs_errs_less_than_wanda_and_wanda_less_than_magnitude() {
    let (n, rows) = (256, 64);
    let factor = factor(&gram(15, n, &[]), n, 0.01);
    let weight = noise(16, rows * n);
    for target in [Target::Unstructured { ratio: 0.5 }, Target::NToM { n: 2, m: 4 }] {
        let (mut small, mut normed) = (weight.clone(), weight.clone());
        magnitude(&mut small, n, &target).unwrap();
        wanda(&mut normed, factor.diagonal(), &target).unwrap();
        let [a, b, c] = [pruned(&weight, &factor, target), normed, small]
            .map(|after| relative_error(&weight, &after, &factor).unwrap());
        assert!(a < 0.7 * b && b < 0.9 * c, "obs {a}, wanda {b}, magnitude {c}");
    }
}

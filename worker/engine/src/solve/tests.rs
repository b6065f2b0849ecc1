use obsdiff_proto::Target;
use proptest::prelude::*;

use super::*;

/// Values in -1..1 that look random and are the same each time.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The n x n Gram of random rows whose features are correlated and of different sizes; the columns in `dead` see only zeros.
fn gram(seed: u64, n: usize, dead: &[usize]) -> Vec<f64> {
    let tokens = n + 8;
    let mut rows = noise(seed, tokens * n);
    for row in rows.chunks_mut(n) {
        for j in 1..n {
            row[j] += 0.5 * row[j - 1];
        }
        for (j, x) in row.iter_mut().enumerate() {
            *x *= 1.0 + 2.0 * ((j * 7) % 5) as f32;
        }
        dead.iter().for_each(|&j| row[j] = 0.0);
    }
    let mut gram = vec![0.0; n * n];
    for row in rows.chunks(n) {
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] += f64::from(row[i]) * f64::from(row[j]) / tokens as f64;
            }
        }
    }
    gram
}

/// A Gram as a factor takes it: rows [`stride`] apart. What is below the diagonal must not matter.
fn upper<T: factor::Float>(gram: &[f64], n: usize) -> Vec<T> {
    let mut square = vec![T::from_f64(7.0); n * stride(n)];
    for i in 0..n {
        for j in i..n {
            square[i * stride(n) + j] = T::from_f64(gram[i * n + j]);
        }
    }
    square
}

fn factor(gram: &[f64], n: usize, damping: f64) -> Factor {
    Factor::new(n, upper::<f32>(gram, n), damping).unwrap()
}

fn damped(gram: &[f64], n: usize, damping: f64) -> Vec<f64> {
    let live: Vec<f64> = (0..n).map(|j| gram[j * n + j]).filter(|d| *d != 0.0).collect();
    let mean = if live.is_empty() { 1.0 } else { live.iter().sum::<f64>() / live.len() as f64 };
    let mut h = gram.to_vec();
    (0..n).for_each(|j| h[j * n + j] += damping * mean);
    h
}

/// A x = b for a symmetric positive A, by elimination.
fn solved(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for k in 0..n {
        for i in k + 1..n {
            let f = a[i * n + k] / a[k * n + k];
            for j in k..n {
                a[i * n + j] -= f * a[k * n + j];
            }
            b[i] -= f * b[k];
        }
    }
    for k in (0..n).rev() {
        for j in k + 1..n {
            b[k] -= a[k * n + j] * b[j];
        }
        b[k] /= a[k * n + k];
    }
    b
}

/// H^-1, by Gauss and Jordan.
fn inverse(h: &[f64], n: usize) -> Vec<f64> {
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
    };
    for j in 0..n {
        if j % step == 0 {
            let columns = step.min(n - j);
            let sets: Vec<Vec<usize>> = match target {
                Target::Unstructured { .. } => {
                    vec![(0..columns).flat_map(|c| (0..rows).map(move |r| r * n + j + c)).collect()]
                }
                Target::NToM { .. } => {
                    (0..rows).map(|r| (0..columns).map(|c| r * n + j + c).collect()).collect()
                }
            };
            for mut set in sets {
                let count = match *target {
                    Target::Unstructured { ratio } => (ratio * set.len() as f64) as usize,
                    Target::NToM { n: k, m } => k * set.len() / m,
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

fn threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

fn pruned(weight: &[f32], factor: &Factor, target: Target) -> Vec<f32> {
    let mut weight = weight.to_vec();
    obs(&mut weight, factor, &target).unwrap();
    weight
}

fn zeros(weight: &[f32]) -> usize {
    weight.iter().filter(|w| **w == 0.0).count()
}

const TARGETS: [Target; 6] = [
    Target::Unstructured { ratio: 0.5 },
    Target::Unstructured { ratio: 0.13 },
    Target::NToM { n: 2, m: 4 },
    Target::NToM { n: 3, m: 7 },
    Target::NToM { n: 1, m: 2 },
    Target::NToM { n: 90, m: 150 },
];

/// U as a dense f64 matrix.
fn dense_u(factor: &Factor) -> Vec<f64> {
    let n = factor.width();
    (0..n * n).map(|at| if at / n <= at % n { f64::from(factor.u(at / n, at % n)) } else { 0.0 }).collect()
}

#[test]
fn u_is_the_factor_of_the_inverse() {
    for n in [1, 2, 3, 64, 127, 128, 129, 260, 300] {
        let gram = gram(n as u64, n, &[]);
        let h = damped(&gram, n, 0.01);
        let narrow = factor(&gram, n, 0.01);
        let wide = Factor::new(n, upper::<f64>(&gram, n), 0.01).unwrap();
        for (factor, tolerance) in [(narrow, 2e-3), (wide, 1e-4)] {
            assert_eq!(factor.damping_used(), 0.01);
            let u = dense_u(&factor);
            // U H U^T = I says the same of U as U^T U = H^-1, and asks for no other inverse.
            for i in 0..n {
                let uh: Vec<f64> =
                    (0..n).map(|k| (i..n).map(|j| u[i * n + j] * h[j * n + k]).sum()).collect();
                for l in 0..n {
                    let dot: f64 = (l..n).map(|k| uh[k] * u[l * n + k]).sum();
                    let wanted = if i == l { 1.0 } else { 0.0 };
                    assert!((dot - wanted).abs() < tolerance, "n {n} at {i},{l}: {dot}");
                }
            }
        }
    }
}

#[test]
fn factorising_leaves_the_gram_in_place() {
    let n = 301;
    let gram = gram(5, n, &[]);
    let factor = factor(&gram, n, 0.01);
    for i in 0..n {
        assert_eq!(factor.diagonal()[i], f64::from(gram[i * n + i] as f32));
        for j in i + 1..n {
            assert_eq!(factor.square()[i * stride(n) + j], gram[i * n + j] as f32, "{i},{j}");
        }
    }
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
fn exactly_the_share_of_each_block_goes() {
    for n in [5, 128, 200, 300] {
        let gram = gram(3, n, &[]);
        let factor = factor(&gram, n, 0.01);
        let rows = 67;
        let weight = noise(5, rows * n);
        for ratio in [0.0, 0.001, 0.3, 0.5, 0.999, 1.0] {
            let target = Target::Unstructured { ratio };
            let mut small = weight.clone();
            magnitude(&mut small, n, &target).unwrap();
            for after in [pruned(&weight, &factor, target), small] {
                for start in (0..n).step_by(BLOCK) {
                    let end = n.min(start + BLOCK);
                    let gone: usize = after.chunks(n).map(|row| zeros(&row[start..end])).sum();
                    assert_eq!(
                        gone,
                        (ratio * (rows * (end - start)) as f64) as usize,
                        "n {n}, ratio {ratio}"
                    );
                }
            }
            let mut by_row = weight.clone();
            wanda(&mut by_row, factor.diagonal(), &target).unwrap();
            by_row.chunks(n).for_each(|row| assert_eq!(zeros(row), (ratio * n as f64) as usize));
        }
    }
}

#[test]
fn exactly_n_of_every_m_go() {
    let n = 203;
    let gram = gram(3, n, &[]);
    let factor = factor(&gram, n, 0.01);
    let weight = noise(6, 66 * n);
    for (k, m) in [(2, 4), (0, 4), (4, 8), (3, 7), (1, 100), (150, 200), (5, 999)] {
        let target = Target::NToM { n: k, m };
        let (mut small, mut normed) = (weight.clone(), weight.clone());
        magnitude(&mut small, n, &target).unwrap();
        wanda(&mut normed, factor.diagonal(), &target).unwrap();
        for after in [pruned(&weight, &factor, target), small, normed] {
            for group in after.chunks(n).flat_map(|row| row.chunks(m)) {
                assert_eq!(zeros(group), k * group.len() / m, "{k}:{m}");
            }
        }
    }
}

#[test]
fn at_ratio_0_nothing_changes_and_at_1_all_goes() {
    let n = 140;
    let factor = factor(&gram(3, n, &[]), n, 0.01);
    let weight = noise(6, 5 * n);
    assert_eq!(pruned(&weight, &factor, Target::Unstructured { ratio: 0.0 }), weight);
    assert_eq!(pruned(&weight, &factor, Target::NToM { n: 0, m: 4 }), weight);
    assert!(pruned(&weight, &factor, Target::Unstructured { ratio: 1.0 }).iter().all(|w| w.to_bits() == 0));
}

#[test]
fn weights_of_equal_score_go_by_column_then_row() {
    // The identity treats all weights alike, so that nothing but the order decides.
    let (n, rows) = (6, 70);
    let identity: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    let factor = factor(&identity, n, 0.01);
    let weight = vec![1.0; n * rows];
    let mut small = weight.clone();
    let target = Target::Unstructured { ratio: 0.4 };
    magnitude(&mut small, n, &target).unwrap();
    for after in [pruned(&weight, &factor, target), small] {
        for (at, w) in after.iter().enumerate() {
            let place = at % n * rows + at / n;
            assert_eq!(*w == 0.0, place < 168, "row {}, column {}", at / n, at % n);
        }
    }
    for row in pruned(&weight, &factor, Target::NToM { n: 1, m: 3 }).chunks(3) {
        assert!(row[0] == 0.0 && row[1] == 1.0 && row[2] == 1.0, "{row:?}");
    }
}

#[test]
fn dead_columns_go_and_count_as_gone() {
    let (n, rows, dead) = (160, 40, [0, 5, 130, 159]);
    let gram = gram(3, n, &dead);
    let factor = factor(&gram, n, 0.01);
    assert_eq!(factor.dead().collect::<Vec<_>>(), dead);
    let weight = noise(6, rows * n);
    for ratio in [0.0, 0.5] {
        let after = pruned(&weight, &factor, Target::Unstructured { ratio });
        assert!(after.chunks(n).all(|row| dead.iter().all(|&j| row[j] == 0.0)));
        let expected = if ratio == 0.0 { 4 * rows } else { (rows * n) / 2 };
        assert_eq!(zeros(&after), expected);
    }
    // The columns that live are pruned as if the dead were not there.
    let live: Vec<usize> = (0..n).filter(|j| !dead.contains(j)).collect();
    let narrow: Vec<f64> =
        live.iter().flat_map(|&i| live.iter().map(move |&j| (i, j))).map(|(i, j)| gram[i * n + j]).collect();
    let narrow = Factor::new(live.len(), upper::<f32>(&narrow, live.len()), 0.01).unwrap();
    let (wide_u, narrow_u) = (dense_u(&factor), dense_u(&narrow));
    for (a, &i) in live.iter().enumerate() {
        for (b, &j) in live.iter().enumerate() {
            assert!((wide_u[i * n + j] - narrow_u[a * live.len() + b]).abs() < 1e-4);
        }
    }
}

#[test]
fn a_gram_of_zeros_makes_all_weights_zero() {
    let factor = factor(&[0.0; 9], 3, 0.0);
    assert_eq!(pruned(&[1.0; 6], &factor, Target::Unstructured { ratio: 0.0 }), [0.0; 6]);
    assert_eq!(relative_error(&[1.0; 6], &[0.0; 6], &factor), Ok(0.0));
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

#[test]
fn a_pivot_that_fails_in_f32_is_tried_in_f64() {
    // Two features equal but for 1e-4 of one: an eigenvalue of 5e-9 that f32 cannot see beside 2.
    let e = 1e-4f64;
    let gram = [1.0, 1.0, 1.0, 1.0 + e * e];
    let mut rounded = upper::<f64>(&gram, 2);
    let factor = Factor::new(2, rounded.clone(), 1e-12).unwrap();
    assert_eq!(factor.damping_used(), 1e-12);
    assert!((f64::from(factor.u(1, 1)) - 1.0 / gram[3].sqrt()).abs() < 1e-6);
    // As f32 values the matrix is singular; the damping is below f32's reach but not below f64's.
    rounded.iter_mut().for_each(|x| *x = f64::from(*x as f32));
    let narrow = Factor::new(2, rounded.iter().map(|x| *x as f32).collect::<Vec<f32>>(), 1e-9).unwrap();
    assert_eq!(narrow.damping_used(), 1e-9);
    assert!((narrow.u(0, 0) - (1.0f32 / (2e-9f32)).sqrt()).abs() < 10.0, "{}", narrow.u(0, 0));
}

#[test]
fn damping_is_raised_tenfold_until_it_helps() {
    // No Gram has an eigenvalue of -0.02 or -0.1, but sums that were rounded can. The mean of the diagonal is 0.5.
    for (beside, damping, used) in
        [(0.52, 0.01, 0.1), (0.52, 0.05, 0.05), (0.6, 0.01, 1.0), (0.6, 0.05, 0.5), (0.6, 0.0, 1.0)]
    {
        let factor = factor(&[0.5, beside, beside, 0.5], 2, damping);
        assert!(
            (factor.damping_used() - used).abs() < 1e-12,
            "{beside}, {damping}: {}",
            factor.damping_used()
        );
    }
    let hopeless = upper::<f32>(&[0.5, 2.0, 2.0, 0.5], 2);
    assert_eq!(Factor::new(2, hopeless, 0.01).unwrap_err(), SolveError::NotPositive { damping: 1.0 });
}

#[test]
fn a_gram_that_is_not_finite_is_refused() {
    for at in [(0, 0), (0, 2), (1, 1), (1, 2), (2, 2)] {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut gram = gram(1, 3, &[]);
            gram[at.0 * 3 + at.1] = bad;
            assert_eq!(Factor::new(3, upper::<f32>(&gram, 3), 0.01).unwrap_err(), SolveError::GramNotFinite);
            assert_eq!(Factor::new(3, upper::<f64>(&gram, 3), 0.01).unwrap_err(), SolveError::GramNotFinite);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let n = 4;
    let factor = factor(&gram(1, n, &[]), n, 0.01);
    let half = Target::Unstructured { ratio: 0.5 };
    assert_eq!(obs(&mut [1.0; 6], &factor, &half), Err(SolveError::Size { rows: 1, columns: 4, found: 6 }));
    let mut bad = [1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0];
    assert_eq!(obs(&mut bad, &factor, &half), Err(SolveError::WeightNotFinite { row: 1, column: 1 }));
    assert_eq!(wanda(&mut bad, &[1.0; 4], &half), Err(SolveError::WeightNotFinite { row: 1, column: 1 }));
    assert_eq!(wanda(&mut [1.0; 2], &[f64::NAN, f64::INFINITY], &half), Err(SolveError::GramNotFinite));
    for target in [
        Target::Unstructured { ratio: 1.5 },
        Target::Unstructured { ratio: f64::NAN },
        Target::NToM { n: 4, m: 4 },
        Target::NToM { n: 0, m: 0 },
    ] {
        assert!(matches!(obs(&mut [1.0; 4], &factor, &target), Err(SolveError::Target(_))));
        assert!(matches!(magnitude(&mut [1.0; 4], 4, &target), Err(SolveError::Target(_))));
    }
    assert_eq!(
        Factor::new(2, vec![1.0f32; 3], 0.1).unwrap_err(),
        SolveError::Size { rows: 2, columns: 16, found: 3 }
    );
    for damping in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(Factor::new(1, vec![1.0f32; 16], damping), Err(SolveError::Damping { .. })));
    }
    assert!(matches!(relative_error(&[1.0; 8], &[1.0; 4], &factor), Err(SolveError::Size { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_is_pruned_to_its_count(
        n in 1usize..150,
        rows in 1usize..80,
        ratio in 0.0f64..=1.0,
        m in 1usize..12,
        seed in 1u64..1000,
    ) {
        let factor = factor(&gram(seed, n, &[]), n, 0.01);
        let weight = noise(seed + 1, rows * n);
        let after = pruned(&weight, &factor, Target::Unstructured { ratio });
        let expected: usize =
            (0..n).step_by(BLOCK).map(|s| (ratio * (rows * BLOCK.min(n - s)) as f64) as usize).sum();
        prop_assert_eq!(zeros(&after), expected);
        prop_assert!(after.iter().all(|w| w.is_finite()));
        let after = pruned(&weight, &factor, Target::NToM { n: m / 2, m });
        for group in after.chunks(n).flat_map(|row| row.chunks(m)) {
            prop_assert_eq!(zeros(group), m / 2 * group.len() / m);
        }
        prop_assert!(relative_error(&weight, &after, &factor).unwrap() <= 1.0 + 1e-3);
    }
}

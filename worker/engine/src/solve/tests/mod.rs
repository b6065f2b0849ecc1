//! What the tests of pruning share: weights, Grams and plain f64 algebra.

mod admm;
pub(in crate::solve) mod answers;
mod counts;
mod factor;
mod kernels;
mod refine;

use obsdiff_proto::Target;
pub(in crate::solve) use obsdiff_tests::noise;

use super::*;

/// The n x n Gram of random rows whose features are correlated and of different sizes; the columns in `dead` see only zeros.
pub(in crate::solve) fn gram(seed: u64, n: usize, dead: &[usize]) -> Vec<f64> {
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
fn upper<T: Float>(gram: &[f64], n: usize) -> Vec<T> {
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

pub(in crate::solve) fn damped(gram: &[f64], n: usize, damping: f64) -> Vec<f64> {
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

fn pruned(weight: &[f32], factor: &Factor, target: Target) -> Vec<f32> {
    let mut weight = weight.to_vec();
    Obs::default().prune(&mut weight, factor, &target).unwrap();
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

/// C as a dense f64 matrix.
fn dense_c(factor: &Factor) -> Vec<f64> {
    let n = factor.width();
    (0..n * n).map(|at| if at / n <= at % n { f64::from(factor.c(at / n, at % n)) } else { 0.0 }).collect()
}

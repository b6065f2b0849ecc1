//! What the tests of structured pruning share: the published code's answers, and the method by its definition.

mod answers;
mod goldens;

use super::super::tests::answers::inverse as plain_inverse;
use super::super::tests::{damped, gram, noise};
use super::*;

/// A linear and the Gram of what it reads, in f64.
#[derive(Clone)]
struct Case {
    n: usize,
    weight: Vec<f64>,
    gram: Vec<f64>,
}

impl Case {
    fn random(seed: u64, rows: usize, n: usize, dead: &[usize]) -> Self {
        let weight = noise(seed, rows * n).into_iter().map(f64::from).collect();
        Self { n, weight, gram: gram(seed + 1, n, dead) }
    }

    fn layer(&self) -> Layer {
        Layer::new(self.n, self.weight.clone(), &self.gram, 0.01).unwrap()
    }

    /// tr(dW S dW^T) over tr(W S W^T).
    fn error(&self, after: &[f64]) -> f64 {
        let change: Vec<f64> = after.iter().zip(&self.weight).map(|(a, b)| a - b).collect();
        layer::energy(&change, &self.gram, self.n) / layer::energy(&self.weight, &self.gram, self.n)
    }
}

/// The columns of the parts that went, ascending.
fn columns(steps: &[Step], size: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = steps.iter().flat_map(|s| s.part * size..(s.part + 1) * size).collect();
    columns.sort_unstable();
    columns
}

/// ||a - b|| / ||b||.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// The method by its definition: before each removal the matrix of the columns left is inverted anew, and every part's error is
/// formed in full. Returns the parts in the order in which they went, their errors, and the weights.
fn plain(cases: &[Case], size: usize, count: usize) -> (Vec<usize>, Vec<f64>, Vec<Vec<f64>>) {
    let n = cases[0].n;
    let h: Vec<Vec<f64>> = cases.iter().map(|c| damped(&c.gram, n, 0.01)).collect();
    let energies: Vec<f64> = cases.iter().map(|c| layer::energy(&c.weight, &c.gram, n)).collect();
    let mut weights: Vec<Vec<f64>> = cases.iter().map(|c| c.weight.clone()).collect();
    for (case, weight) in cases.iter().zip(&mut weights) {
        for j in (0..n).filter(|j| case.gram[j * n + j] == 0.0) {
            weight.chunks_mut(n).for_each(|row| row[j] = 0.0);
        }
    }
    let mut left: Vec<usize> = (0..n / size).collect();
    let (mut order, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let live: Vec<usize> = left.iter().flat_map(|p| p * size..(p + 1) * size).collect();
        let inverses: Vec<Vec<f64>> = h
            .iter()
            .map(|h| {
                let h: Vec<f64> = live.iter().flat_map(|i| live.iter().map(move |j| h[i * n + j])).collect();
                plain_inverse(&h, live.len())
            })
            .collect();
        // [H^-1_DD]^-1 for the part at `place` among those left.
        let block = |s: usize, place: usize| -> Vec<f64> {
            let at = place * size..(place + 1) * size;
            let m = live.len();
            let block: Vec<f64> = at
                .clone()
                .flat_map(|i| at.clone().map(move |j| (i, j)))
                .map(|(i, j)| inverses[s][i * m + j])
                .collect();
            plain_inverse(&block, size)
        };
        let error = |place: usize| -> f64 {
            (0..cases.len())
                .map(|s| {
                    let block = block(s, place);
                    let d = &live[place * size..(place + 1) * size];
                    let of_row = |row: &[f64]| -> f64 {
                        (0..size)
                            .map(|a| {
                                (0..size).map(|b| row[d[a]] * block[a * size + b] * row[d[b]]).sum::<f64>()
                            })
                            .sum()
                    };
                    weights[s].chunks(n).map(of_row).sum::<f64>() / energies[s]
                })
                .sum()
        };
        let scores: Vec<f64> = (0..left.len()).map(error).collect();
        let place = (0..left.len()).min_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
        for s in 0..cases.len() {
            let (block, m) = (block(s, place), live.len());
            let d: Vec<usize> = live[place * size..(place + 1) * size].to_vec();
            for row in weights[s].chunks_mut(n) {
                let gone: Vec<f64> = d.iter().map(|j| row[*j]).collect();
                let by_block: Vec<f64> =
                    (0..size).map(|b| (0..size).map(|a| gone[a] * block[a * size + b]).sum()).collect();
                for (k, j) in live.iter().enumerate() {
                    let step: f64 =
                        (0..size).map(|b| by_block[b] * inverses[s][(place * size + b) * m + k]).sum();
                    row[*j] -= step;
                }
                d.iter().for_each(|j| row[*j] = 0.0);
            }
        }
        errors.push(scores[place]);
        order.push(left.remove(place));
    }
    (order, errors, weights)
}

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

    fn layer(&self) -> StructuredLinear {
        StructuredLinear::new(self.n, self.weight.clone(), &self.gram, 0.01).unwrap()
    }

    /// tr(dW S dW^T) over tr(W S W^T).
    fn error(&self, after: &[f64]) -> f64 {
        let change: Vec<f64> = after.iter().zip(&self.weight).map(|(a, b)| a - b).collect();
        layer::energy(&change, &self.gram, self.n) / layer::energy(&self.weight, &self.gram, self.n)
    }
}

/// The columns of the parts that went, ascending.
fn columns(steps: &[Removal], size: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = steps.iter().flat_map(|s| s.part * size..(s.part + 1) * size).collect();
    columns.sort_unstable();
    columns
}

/// ||a - b|| / ||b||.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// The method by its definition: before each removal the matrix of the columns left is inverted again, and every part's error is
/// formed in full. Returns the parts in the order in which they went, their errors, and the weights.
fn plain(cases: &[Case], size: usize, count: usize) -> (Vec<usize>, Vec<f64>, Vec<Vec<f64>>) {
    let mut plain = Plain::new(cases);
    let (order, errors) = plain.remove(Columns::all(cases[0].n, size), count);
    (order, errors, plain.weights)
}

/// Linears of n columns each on their way, by the definition.
struct Plain {
    n: usize,
    /// S + damping * mean(diag S) I of each.
    h: Vec<Vec<f64>>,
    energies: Vec<f64>,
    weights: Vec<Vec<f64>>,
    /// The columns that are left.
    live: Vec<usize>,
}

impl Plain {
    fn new(cases: &[Case]) -> Self {
        let n = cases[0].n;
        let mut weights: Vec<Vec<f64>> = cases.iter().map(|c| c.weight.clone()).collect();
        for (case, weight) in cases.iter().zip(&mut weights) {
            for j in (0..n).filter(|j| case.gram[j * n + j] == 0.0) {
                weight.chunks_mut(n).for_each(|row| row[j] = 0.0);
            }
        }
        Self {
            n,
            h: cases.iter().map(|c| damped(&c.gram, n, 0.01)).collect(),
            energies: cases.iter().map(|c| layer::energy(&c.weight, &c.gram, n)).collect(),
            weights,
            live: (0..n).collect(),
        }
    }

    /// Removes `count` of the parts that lie at `columns`; gives their order and errors.
    fn remove(&mut self, columns: Columns, count: usize) -> (Vec<usize>, Vec<f64>) {
        let mut left: Vec<usize> = (0..columns.count).collect();
        let (mut order, mut errors) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let inverses: Vec<Vec<f64>> = self.h.iter().map(|h| self.inverse(h)).collect();
            let parts: Vec<Cut> =
                left.iter().map(|part| self.cut(&columns.of(*part).collect::<Vec<_>>(), &inverses)).collect();
            let lowest = |a: &usize, b: &usize| parts[*a].error.total_cmp(&parts[*b].error);
            let place = (0..left.len()).min_by(lowest).unwrap();
            self.apply(&parts[place], &inverses);
            errors.push(parts[place].error);
            order.push(left.remove(place));
        }
        (order, errors)
    }

    /// The inverse of the part of `h` whose rows and columns are left.
    fn inverse(&self, h: &[f64]) -> Vec<f64> {
        let live = &self.live;
        let left: Vec<f64> = live.iter().flat_map(|i| live.iter().map(move |j| h[i * self.n + j])).collect();
        plain_inverse(&left, live.len())
    }

    fn cut(&self, columns: &[usize], inverses: &[Vec<f64>]) -> Cut {
        let (m, size) = (self.live.len(), columns.len());
        let places: Vec<usize> =
            columns.iter().map(|j| self.live.iter().position(|live| live == j).unwrap()).collect();
        let block = |inverse: &Vec<f64>| -> Vec<f64> {
            let block: Vec<f64> =
                places.iter().flat_map(|i| places.iter().map(move |j| inverse[i * m + j])).collect();
            plain_inverse(&block, size)
        };
        let blocks: Vec<Vec<f64>> = inverses.iter().map(block).collect();
        let of_row = |row: &[f64], block: &[f64]| -> f64 {
            let pairs = (0..size).flat_map(|a| (0..size).map(move |b| (a, b)));
            pairs.map(|(a, b)| row[columns[a]] * block[a * size + b] * row[columns[b]]).sum()
        };
        let errors = self.weights.iter().zip(&blocks).zip(&self.energies).map(|((weight, block), energy)| {
            weight.chunks(self.n).map(|row| of_row(row, block)).sum::<f64>() / energy
        });
        Cut { error: errors.sum(), columns: columns.to_vec(), places, blocks }
    }

    fn apply(&mut self, cut: &Cut, inverses: &[Vec<f64>]) {
        let (m, size) = (self.live.len(), cut.columns.len());
        for ((weight, block), inverse) in self.weights.iter_mut().zip(&cut.blocks).zip(inverses) {
            for row in weight.chunks_mut(self.n) {
                let gone: Vec<f64> = cut.columns.iter().map(|j| row[*j]).collect();
                let by_block: Vec<f64> =
                    (0..size).map(|b| (0..size).map(|a| gone[a] * block[a * size + b]).sum()).collect();
                for (k, j) in self.live.iter().enumerate() {
                    let step: f64 = (0..size).map(|b| by_block[b] * inverse[cut.places[b] * m + k]).sum();
                    row[*j] -= step;
                }
                cut.columns.iter().for_each(|j| row[*j] = 0.0);
            }
        }
        self.live.retain(|j| !cut.columns.contains(j));
    }
}

/// What removing some columns takes by the definition.
struct Cut {
    error: f64,
    columns: Vec<usize>,
    /// Where the columns stand among those that are left.
    places: Vec<usize>,
    /// [H^-1_DD]^-1 of each linear.
    blocks: Vec<Vec<f64>>,
}

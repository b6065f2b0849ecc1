//! Means of what a site sees, and what a linear's bias takes over of them.

/// The second moments of a site's activations about their means, and the means themselves.
///
/// A Gram that was gathered with a feature of constant 1 behind the others holds both: S of the others, their sums beside it, and the
/// mass in the corner. A bias is the weight of that feature. It never goes and is not damped, so that its own update can be
/// left to the end: the other columns are solved with the centred S - m m^T / mass, and the bias takes (W - W') m / mass.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    n: usize,
    /// S, n x n, symmetric.
    gram: Vec<f64>,
    means: Vec<f64>,
}

impl Moments {
    /// From a Gram of n features and the constant: its upper triangle as an (n + 1) x (n + 1) row-major matrix.
    pub fn new(upper: &[f64], n: usize) -> Self {
        let row = n + 1;
        let mut gram = vec![0.0; n * n];
        for i in 0..n {
            for j in i..n {
                gram[i * n + j] = upper[i * row + j];
                gram[j * n + i] = upper[i * row + j];
            }
        }
        let mass = upper[row * row - 1];
        let mean = |i: usize| if mass > 0.0 { upper[i * row + n] / mass } else { 0.0 };
        // Where the constant is 1 in every observation, S is divided by the mass too.
        let scale = if mass > 0.0 { 1.0 / mass } else { 1.0 };
        gram.iter_mut().for_each(|x| *x *= scale);
        Self { n, gram, means: (0..n).map(mean).collect() }
    }

    /// S over its mass, n x n.
    pub fn gram(&self) -> &[f64] {
        &self.gram
    }

    /// S about the means, n x n. A feature that never changes is left with nothing but rounding, and with 0 of it.
    pub fn centred(&self) -> Vec<f64> {
        let n = self.n;
        let mut centred = self.gram.clone();
        for (i, row) in centred.chunks_exact_mut(n).enumerate() {
            row.iter_mut().zip(&self.means).for_each(|(x, mean)| *x -= self.means[i] * mean);
        }
        for i in 0..n {
            if is_constant(centred[i * n + i], self.gram[i * n + i]) {
                (0..n).for_each(|j| centred[i * n + j] = 0.0);
                (0..n).for_each(|j| centred[j * n + i] = 0.0);
            }
        }
        centred
    }

    /// The mean of each feature.
    pub fn means(&self) -> &[f64] {
        &self.means
    }
}

/// Whether a feature of this second moment about its mean, and about 0, never changes but for rounding.
pub(crate) fn is_constant(centred: f64, moment: f64) -> bool {
    centred <= 1e-12 * moment
}

/// The bias after a weight (rows x n) went from `before` to `after`, such that the mean of the outputs stays: b + (W - W') mean.
pub fn folded(bias: &[f64], before: &[f64], after: &[f64], means: &[f64]) -> Vec<f64> {
    let n = means.len();
    let rows = before.chunks_exact(n).zip(after.chunks_exact(n));
    let moved = rows.map(|(before, after)| -> f64 {
        before.iter().zip(after).zip(means).map(|((b, a), mean)| (b - a) * mean).sum()
    });
    bias.iter().zip(moved).map(|(bias, moved)| bias + moved).collect()
}

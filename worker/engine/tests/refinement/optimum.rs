//! The least-squares optimum of a mask, solved exactly.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use obsdiff_engine::solve::{Factor, Obs, ScaledHessian, magnitude, refine, stride, wanda};
use obsdiff_proto::{Method, Target};

/// The damping of every test here, the default of a job.
pub(crate) const DAMPING: f64 = 0.01;

/// A Gram as [`Factor`] takes it, and the damped one that errors are measured by.
pub(crate) struct Problem {
    n: usize,
    upper: Vec<f32>,
    damped: Mat<f64>,
}

/// tr((W - W0) H (W - W0)^T) of a mask's weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Errors {
    /// As the method left them.
    pub(crate) pruned: f64,
    /// Refined.
    pub(crate) refined: f64,
    /// The least that the mask allows.
    pub(crate) optimum: f64,
}

impl Problem {
    pub(crate) fn new(n: usize, upper: Vec<f32>) -> Self {
        let at = |i: usize, j: usize| f64::from(upper[i.min(j) * stride(n) + i.max(j)]);
        let live: Vec<f64> = (0..n).map(|j| at(j, j)).filter(|d| *d != 0.0).collect();
        let added = DAMPING * live.iter().sum::<f64>() / live.len() as f64;
        let damped = Mat::from_fn(n, n, |i, j| at(i, j) + if i == j { added } else { 0.0 });
        Self { n, upper, damped }
    }

    /// Prunes `dense` by a method and refines what is left, by `steps` steps.
    pub(crate) fn errors(&self, dense: &[f32], method: Method, target: Target, steps: u32) -> Errors {
        let n = self.n;
        let factor = Factor::new(n, self.upper.clone(), DAMPING).unwrap();
        assert_eq!(factor.damping_used(), DAMPING);
        let mut pruned = dense.to_vec();
        match method {
            Method::Obs => Obs::default().prune(&mut pruned, &factor, &target).unwrap(),
            Method::Wanda => wanda(&mut pruned, factor.diagonal(), &target).unwrap(),
            Method::Magnitude => magnitude(&mut pruned, n, &target).unwrap(),
            Method::Admm | Method::L1 => panic!("not a method of these problems"),
        }
        let mut refined = pruned.clone();
        refine(&mut refined, dense, &ScaledHessian::new(factor, DAMPING), steps).unwrap();
        assert!(pruned.iter().zip(&refined).all(|(p, r)| (*p == 0.0) == (*r == 0.0)), "the mask moved");
        let mut errors = Errors { pruned: 0.0, refined: 0.0, optimum: 0.0 };
        for ((dense, pruned), refined) in dense.chunks(n).zip(pruned.chunks(n)).zip(refined.chunks(n)) {
            errors.pruned += self.error(dense, |j| f64::from(pruned[j]));
            errors.refined += self.error(dense, |j| f64::from(refined[j]));
            errors.optimum += self.least(dense, pruned);
        }
        errors
    }

    /// The error of a row.
    fn error(&self, dense: &[f32], weight: impl Fn(usize) -> f64) -> f64 {
        let off = Mat::from_fn(self.n, 1, |j, _| weight(j) - f64::from(dense[j]));
        (off.transpose() * &self.damped * &off)[(0, 0)]
    }

    /// The least error of a row whose weights may differ from 0 where those of `mask` do.
    fn least(&self, dense: &[f32], mask: &[f32]) -> f64 {
        let kept: Vec<usize> = (0..self.n).filter(|j| mask[*j] != 0.0).collect();
        let h = Mat::from_fn(kept.len(), kept.len(), |i, j| self.damped[(kept[i], kept[j])]);
        let wanted = &self.damped * Mat::from_fn(self.n, 1, |j, _| f64::from(dense[j]));
        let wanted = Mat::from_fn(kept.len(), 1, |i, _| wanted[(kept[i], 0)]);
        let best = h.llt(Side::Lower).unwrap().solve(&wanted);
        let mut row = vec![0.0; self.n];
        kept.iter().enumerate().for_each(|(i, j)| row[*j] = best[(i, 0)]);
        self.error(dense, |j| row[j])
    }
}

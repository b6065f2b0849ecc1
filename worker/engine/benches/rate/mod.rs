//! The machine's fastest f32 GEMM, and how benches measure and print against it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// How long `work` takes on `input`, or `shortest` if that is less.
pub(crate) fn time<I, R>(shortest: &mut Duration, input: I, work: impl FnOnce(I) -> R) {
    let start = Instant::now();
    let result = work(input);
    *shortest = start.elapsed().min(*shortest);
    drop(black_box(result));
}

/// Values in -1..1 that look random and are the same each time.
pub(crate) fn noise(count: usize) -> Vec<f32> {
    obsdiff_tests::noise(1, count)
}

/// An m x k by k x n product on all cores, by faer's GEMM and by candle's. What it is compared with is run in turn with it, so that
/// other load on the machine meets both.
pub(crate) struct Gemm {
    shape: [usize; 3],
    values: [Vec<f32>; 3],
    tensors: [Tensor; 2],
    faer: Duration,
    candle: Duration,
}

impl Gemm {
    pub(crate) fn new(m: usize, k: usize, n: usize) -> Self {
        let (left, right) = (noise(m * k), noise(k * n));
        let tensor = |values: &[f32], shape| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let tensors = [tensor(&left, (m, k)), tensor(&right, (k, n))];
        let values = [left, right, vec![0.0; m * n]];
        Self { shape: [m, k, n], values, tensors, faer: Duration::MAX, candle: Duration::MAX }
    }

    /// Runs both once more.
    pub(crate) fn run(&mut self) {
        let [m, k, n] = self.shape;
        let [left, right, out] = &mut self.values;
        let [left, right] =
            [MatRef::from_row_major_slice(left, m, k), MatRef::from_row_major_slice(right, k, n)];
        let out = MatMut::from_row_major_slice_mut(out, m, n);
        time(&mut self.faer, out, |out| matmul(out, Accum::Replace, left, right, 1.0, Par::rayon(0)));
        let [left, right] = &self.tensors;
        time(&mut self.candle, (), |()| left.matmul(right).unwrap());
    }

    /// The shortest time of either, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.faer.min(self.candle).as_secs_f64()
    }

    /// Says how fast either is.
    pub(crate) fn print(&self) {
        let [m, k, n] = self.shape;
        let rate = |time: Duration| 2e-9 * (m * k * n) as f64 / time.as_secs_f64();
        let (faer, candle) = (rate(self.faer), rate(self.candle));
        println!("{m} x {k} x {n} GEMM: faer {faer:.0} GF/s, candle {candle:.0} GF/s");
    }
}

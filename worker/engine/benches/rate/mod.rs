//! The machine's fastest f32 GEMM, and how benches measure and print against it.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// The shortest of `times` runs of `work` on fresh `input`.
pub fn shortest<I>(times: usize, mut input: impl FnMut() -> I, mut work: impl FnMut(I)) -> Duration {
    let run = |_| {
        let input = input();
        let start = Instant::now();
        work(input);
        start.elapsed()
    };
    (0..times).map(run).min().unwrap_or(Duration::MAX)
}

/// Values in -1..1 that look random and are the same each time.
pub fn noise(count: usize) -> Vec<f32> {
    let value = |i: u64| {
        let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count as u64).map(value).collect()
}

/// The shortest time of an m x k by k x n product on all cores, by faer's GEMM or by candle's, whichever is faster.
pub fn gemm(m: usize, k: usize, n: usize, times: usize) -> Duration {
    let (left, right) = (noise(m * k), noise(k * n));
    let mut out = vec![0.0; m * n];
    let by_faer = shortest(
        times,
        || (),
        |()| {
            let out = MatMut::from_row_major_slice_mut(&mut out, m, n);
            let left = MatRef::from_row_major_slice(&left, m, k);
            matmul(out, Accum::Replace, left, MatRef::from_row_major_slice(&right, k, n), 1.0, Par::rayon(0));
        },
    );
    let tensor = |values, rows, columns| Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
    let (left, right) = (tensor(left, m, k), tensor(right, k, n));
    let by_candle = shortest(times, || (), |()| drop(left.matmul(&right).unwrap()));
    let rate = |time: Duration| 2e-9 * (m * k * n) as f64 / time.as_secs_f64();
    println!("{m} x {k} x {n} GEMM: faer {:.0} GF/s, candle {:.0} GF/s", rate(by_faer), rate(by_candle));
    by_faer.min(by_candle)
}

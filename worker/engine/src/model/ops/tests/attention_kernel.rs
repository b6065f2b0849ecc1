//! The CUDA kernel that attends without scores in memory holds to sums in f64, at sizes that fill no block and no tile.

use half::{bf16, f16};

use super::*;
use crate::cuda::shim::{Buffer, Device as CudaDevice, Memory, Shape, arguments};

/// A type of 16 bits that the kernel comes for.
trait Half: bytemuck::Pod {
    const NAME: &'static str;
    /// How far what is attended to may be off, relative and in the L2 norm: shares and results are rounded to this type.
    const WITHIN: f64;

    fn of(x: f32) -> Self;
    fn value(self) -> f64;
}

impl Half for bf16 {
    const NAME: &'static str = "bf16";
    const WITHIN: f64 = 3e-3;

    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }

    fn value(self) -> f64 {
        self.to_f64()
    }
}

impl Half for f16 {
    const NAME: &'static str = "f16";
    const WITHIN: f64 = 4e-4;

    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }

    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// Queries, keys and values of some heads, whose features lie side by side.
struct Inputs<T> {
    heads: usize,
    head: usize,
    queries: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
}

impl<T: Half> Inputs<T> {
    /// Random ones; scores get as large as 8.
    fn random(heads: usize, head: usize, rows: usize, count: usize) -> Self {
        let mut random = Random { seed: (head + rows * count) as u64 };
        let mut numbers = |rows: usize, times: f32| -> Vec<T> {
            let tensor = random.tensor(&[rows * heads * head]).to_vec1::<f32>().unwrap();
            tensor.into_iter().map(|x| T::of(x * times)).collect()
        };
        let (queries, keys) = (numbers(rows, 1.5), numbers(count, 1.5));
        Self { heads, head, queries, keys, values: numbers(count, 1.0) }
    }

    /// Launches the kernel into a buffer of NaNs.
    fn launch(&self, device: &mut CudaDevice) -> Buffer {
        let (head, width) = (self.head, self.heads * self.head);
        let (rows, count) = (self.queries.len() / width, self.keys.len() / width);
        let inputs = [&self.queries, &self.keys, &self.values].map(|numbers| device.buffer(numbers));
        let out = device.buffer(&vec![T::of(f32::NAN); self.queries.len()]);
        let [queries, keys, values] = inputs;
        let scale = std::f32::consts::LOG2_E / (head as f32).sqrt();
        let shape = Shape::plane([rows.div_ceil(128), self.heads], [256, 1]);
        let shared = 4 * (64 * (head / 2 + 4) + 32 * (head + 8));
        let arguments = arguments![queries, keys, values, rows, count, width, scale, out];
        device.launch(&format!("attend_{head}_{}", T::NAME), shape.with_shared(shared), arguments);
        out
    }

    /// What every query attends to.
    fn attended(&self) -> Vec<f64> {
        let (head, width) = (self.head, self.heads * self.head);
        let mut attended = vec![0.0; self.queries.len()];
        for (out, query) in attended.chunks_mut(width).zip(self.queries.chunks(width)) {
            for (out, at) in out.chunks_mut(head).zip((0..width).step_by(head)) {
                let score = |key: &[T]| -> f64 {
                    let pairs = key[at..at + head].iter().zip(&query[at..at + head]);
                    pairs.map(|(a, b)| a.value() * b.value()).sum::<f64>() / (head as f64).sqrt()
                };
                let scores: Vec<f64> = self.keys.chunks(width).map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let whole: f64 = shares.iter().sum();
                for (value, share) in self.values.chunks(width).zip(&shares) {
                    out.iter_mut()
                        .zip(&value[at..at + head])
                        .for_each(|(out, v)| *out += share / whole * v.value());
                }
            }
        }
        attended
    }

    /// How far the kernel's result is off, relative and in the L2 norm.
    fn deviation(&self, memory: &Memory, out: Buffer) -> f64 {
        let (found, wanted) = (memory.values::<T>(out), self.attended());
        let off: f64 =
            found.iter().zip(&wanted).map(|(found, wanted)| (found.value() - wanted).powi(2)).sum();
        (off / wanted.iter().map(|x| x * x).sum::<f64>()).sqrt()
    }
}

fn hold<T: Half>() {
    let sizes = [(1, 1, 1), (2, 5, 3), (1, 16, 64), (3, 37, 65), (1, 128, 128), (2, 131, 77), (1, 9, 200)];
    for head in [64, 128] {
        for (heads, rows, count) in sizes {
            let inputs = Inputs::<T>::random(heads, head, rows, count);
            let mut device = CudaDevice::default();
            let out = inputs.launch(&mut device);
            let off = inputs.deviation(&device.run_in_any_order(), out);
            let what = format!("{rows} queries of {heads} heads of {head} on {count} keys in {}", T::NAME);
            assert!(off < T::WITHIN, "{what}: off by {off}");
        }
    }
}

#[test]
fn what_is_attended_to_holds() {
    hold::<bf16>();
    hold::<f16>();
}

/// A later tile with larger scores scales down what those before it gave, down to nothing.
#[test]
fn scores_may_grow_from_tile_to_tile() {
    let mut inputs = Inputs::<bf16>::random(1, 64, 20, 150);
    for (i, key) in inputs.keys.chunks_mut(64).enumerate() {
        let times = if i < 64 { 0.1 } else { i as f32 * 0.2 };
        key.iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * times));
    }
    let mut device = CudaDevice::default();
    let out = inputs.launch(&mut device);
    let off = inputs.deviation(&device.run(0), out);
    assert!(off < bf16::WITHIN, "off by {off}");
}

/// A key that is not a number spoils its own head alone, and a query that is not its own row.
#[test]
fn what_is_not_a_number_shows_where_it_is() {
    let mut inputs = Inputs::<f16>::random(2, 64, 70, 100);
    inputs.keys[80 * 128 + 64 + 3] = f16::NAN;
    inputs.queries[5 * 128] = f16::NAN;
    let mut device = CudaDevice::default();
    let out = inputs.launch(&mut device);
    let found = device.run(0).values::<f16>(out);
    for (row, values) in found.chunks(128).enumerate() {
        assert!(values[..64].iter().all(|x| x.is_nan() == (row == 5)), "the first head of query {row}");
        assert!(values[64..].iter().all(|x| x.is_nan()), "the second head of query {row}");
    }
}

#[test]
fn no_two_threads_race() {
    let inputs = Inputs::<bf16>::random(1, 64, 40, 70);
    let mut device = CudaDevice::default();
    let out = inputs.launch(&mut device);
    let (sanitized, ordered) = (device.run_sanitized(), device.run_in_any_order());
    assert_eq!(sanitized.values::<bf16>(out), ordered.values::<bf16>(out));
}

use faer::Accum;

use super::*;
use crate::cuda::shim::Memory;
use crate::solve::product::multiply;
use crate::solve::tests::{gram, upper};
use crate::solve::{ScaledHessian, refine};

/// Threads of a block: one block takes a row.
const ROW_THREADS: u32 = 256;

/// Values that are summed in f32 before f64 takes over.
const RUN: usize = 1024;

/// The matrices of refinement, on their way between kernels and products.
#[derive(Clone, Default)]
struct Rows {
    n: usize,
    v: Vec<f32>,
    residual: Vec<f32>,
    direction: Vec<f32>,
    product: Vec<f32>,
    squares: Vec<f64>,
    errors: Vec<f64>,
}

/// Their buffers.
struct Buffers {
    v: Buffer,
    residual: Buffer,
    direction: Buffer,
    product: Buffer,
    squares: Buffer,
    errors: Buffer,
}

impl Rows {
    fn new(values: usize, n: usize) -> Self {
        let [v, residual, direction, product] = [(); 4].map(|()| vec![f32::NAN; values]);
        let (squares, errors) = (vec![f64::NAN; values / n], vec![f64::NAN; 2 * values / n]);
        Self { n, v, residual, direction, product, squares, errors }
    }

    fn shape(&self) -> Shape {
        Shape::line(self.squares.len(), ROW_THREADS).with_shared(8 * self.n.div_ceil(RUN))
    }

    fn put(&self, device: &mut Device) -> Buffers {
        Buffers {
            v: device.buffer(&self.v),
            residual: device.buffer(&self.residual),
            direction: device.buffer(&self.direction),
            product: device.buffer(&self.product),
            squares: device.buffer(&self.squares),
            errors: device.buffer(&self.errors),
        }
    }

    fn take(&mut self, memory: &Memory, buffers: &Buffers) {
        self.v = memory.values(buffers.v);
        self.residual = memory.values(buffers.residual);
        self.direction = memory.values(buffers.direction);
        self.squares = memory.values(buffers.squares);
        self.errors = memory.values(buffers.errors);
    }
}

/// Refinement with the products of the processor and everything else by kernels; and the share of the error that is left.
fn refined(weight: &[f32], dense: &[f32], hessian: &ScaledHessian, steps: u32) -> (Vec<f32>, f64) {
    let n = hessian.width();
    let mut rows = Rows::new(weight.len(), n);
    let shape = rows.shape();
    let given = |device: &mut Device| {
        [weight, dense, hessian.scale(), hessian.damped()].map(|values| device.buffer(values))
    };

    let mut device = Device::default();
    let buffers = rows.put(&mut device);
    let [w, w0, scale, _] = given(&mut device);
    device.launch("offset_rows", shape, arguments![buffers.v, buffers.direction, w, w0, scale, n]);
    rows.take(&device.run(1), &buffers);
    multiply(&mut rows.residual, Accum::Replace, &rows.direction, hessian.square(), n, 1.0);

    let mut device = Device::default();
    let buffers = rows.put(&mut device);
    let [.., damping] = given(&mut device);
    let Buffers { v, residual, direction, squares, errors, .. } = buffers;
    let arguments = arguments![direction, residual, v, damping, n, errors, squares];
    device.launch("first_direction", shape, arguments);
    rows.take(&device.run_in_any_order(), &buffers);

    for step in 1..=steps {
        multiply(&mut rows.product, Accum::Replace, &rows.direction, hessian.square(), n, 1.0);
        let mut device = Device::default();
        let buffers = rows.put(&mut device);
        let Buffers { v, residual, direction, product, squares, .. } = buffers;
        let arguments = arguments![v, residual, direction, product, n, squares, u32::from(step < steps)];
        device.launch("advance_rows", shape, arguments);
        rows.take(&device.run_in_any_order(), &buffers);
    }

    let mut device = Device::default();
    let buffers = rows.put(&mut device);
    let [w, w0, scale, damping] = given(&mut device);
    let Buffers { v, residual, errors, .. } = buffers;
    device.launch("finish_rows", shape, arguments![w, w0, v, residual, scale, damping, n, errors]);
    let memory = device.run_in_any_order();
    let errors: Vec<f64> = memory.values(errors);
    let [before, after] = [0, 1].map(|of| errors.iter().skip(of).step_by(2).sum::<f64>());
    (memory.values(w), if before > 0.0 { (after / before).max(0.0) } else { 1.0 })
}

/// A dense weight, and one with zeros in it that is off by more.
fn weights(seed: u64, rows: usize, n: usize) -> [Vec<f32>; 2] {
    let dense = noise(seed, rows * n);
    let off = noise(seed + 1, rows * n);
    let pruned = dense.iter().zip(&off).map(|(w, x)| if w.abs() < 0.5 { 0.0 } else { w + 0.1 * x });
    [pruned.collect(), dense]
}

#[test]
fn refined_weights_are_the_processors_bits() {
    // Sums are formed by 32 lanes in runs of 1024.
    for (rows, n) in [(1, 1), (3, 31), (2, 33), (5, 200), (2, 1024), (3, 1100)] {
        let features = gram(n as u64, n.min(60), &[]);
        let square = |at: usize| {
            let (i, j) = (at / n, at % n);
            // A wide Gram is made of blocks: forming one would take long.
            if i / 60 == j / 60 { features[i % 60 * n.min(60) + j % 60] } else { 0.0 }
        };
        let wide: Vec<f64> = (0..n * n).map(square).collect();
        let hessian = ScaledHessian::of_gram(n, upper::<f32>(&wide, n), 0.01).unwrap();
        let [pruned, dense] = weights(3, rows, n);
        for steps in [0, 1, 4] {
            let mut wanted = pruned.clone();
            let left = refine(&mut wanted, &dense, &hessian, steps).unwrap();
            let (found, found_left) = refined(&pruned, &dense, &hessian, steps);
            assert_eq!(bits(&found), bits(&wanted), "{rows} x {n}, {steps} steps");
            // Errors are summed in another order than the processor's.
            assert!((found_left - left).abs() < 1e-12 * left.max(1e-3), "{found_left} {left}");
        }
    }
}

#[test]
fn rows_without_error_or_weights_stand_still() {
    let n = 40;
    let hessian = ScaledHessian::of_gram(n, upper::<f32>(&gram(9, n, &[3]), n), 0.01).unwrap();
    let [pruned, dense] = weights(5, 3, n);
    // The first row is as it was, the second one has no weights left.
    let mut pruned = pruned;
    pruned[..n].copy_from_slice(&dense[..n]);
    pruned[n..2 * n].fill(0.0);
    let mut wanted = pruned.clone();
    refine(&mut wanted, &dense, &hessian, 3).unwrap();
    let (found, _) = refined(&pruned, &dense, &hessian, 3);
    assert_eq!(found, wanted);
    assert_eq!(found[..2 * n], pruned[..2 * n]);
}

#[test]
fn no_two_threads_race() {
    let (count, n) = (2, 1060);
    let mut rows = Rows::new(count * n, n);
    let [weight, dense] = weights(7, count, n);
    (rows.v, rows.residual, rows.direction, rows.product) =
        (weight.clone(), dense.clone(), noise(8, count * n), noise(9, count * n));
    let mut device = Device::default();
    let buffers = rows.put(&mut device);
    let [w, w0, scale, damping] =
        [weight, dense, vec![0.5; n], vec![0.01; n]].map(|values| device.buffer(&values));
    let Buffers { v, residual, direction, product, squares, errors } = buffers;
    let shape = rows.shape();
    device.launch("offset_rows", shape, arguments![v, direction, w, w0, scale, n]);
    device.launch("first_direction", shape, arguments![direction, residual, v, damping, n, errors, squares]);
    device.launch("advance_rows", shape, arguments![v, residual, direction, product, n, squares, 1u32]);
    device.launch("finish_rows", shape, arguments![w, w0, v, residual, scale, damping, n, errors]);
    let (found, wanted) = (device.run_sanitized(), device.run(0));
    assert_eq!(found.values::<f32>(w), wanted.values::<f32>(w));
    assert_eq!(found.values::<f32>(direction), wanted.values::<f32>(direction));
}

//! The CUDA kernels that make a solver's square of packed sums hold to the processor's numbers.

use super::*;
use crate::cuda::shim::{Buffer, Device, Shape, arguments};
use crate::solve::{ScaledHessian, Scales, stride};

const DAMPING: f64 = 0.02;

/// A Gram whose column `dead` was never touched.
fn gram(n: usize, kind: Accumulate, dead: usize) -> Gram {
    let mut all = observations(n, &[9, 2 * n]);
    all.iter_mut().flat_map(|(rows, _)| rows.chunks_mut(n)).for_each(|row| row[dead] = 0.0);
    gathered(n, kind, &all)
}

/// A Gram's sums, and the name that kernels for their kind end in.
fn sums(device: &mut Device, gram: &Gram) -> (Buffer, &'static str) {
    match gram.sums() {
        GramSums::Exact(sums) => (device.buffer(sums), "exact"),
        GramSums::F32(sums) => (device.buffer(sums), "f32"),
    }
}

/// A grid over columns and rows, fewer than there are.
fn plane(n: usize) -> Shape {
    Shape::plane([n.div_ceil(32), n.min(5)], [32, 1])
}

#[test]
fn diagonals_are_taken_out_of_packed_sums() {
    for n in [1, 2, 31, 100] {
        for kind in [Accumulate::Exact, Accumulate::F32] {
            let gram = gram(n, kind, 0);
            let mut device = Device::default();
            let (sums, kind) = sums(&mut device, &gram);
            let out = device.buffer(&vec![-1i64; n]);
            let shape = Shape::line(n.div_ceil(32), 32);
            device.launch(&format!("diagonal_{kind}"), shape, arguments![sums, n, out]);
            let memory = device.run_in_any_order();
            match gram.diagonal_units() {
                Some(wanted) => assert_eq!(memory.values::<i64>(out), wanted),
                None => {
                    let found = memory.values::<f32>(out).into_iter().take(n).map(f64::from);
                    assert!(found.eq(gram.diagonal()), "{n}");
                }
            }
        }
    }
}

#[test]
fn packed_sums_become_the_square_that_the_processor_makes_of_them() {
    for n in [1, 7, 32, 45, 130] {
        for kind in [Accumulate::Exact, Accumulate::F32] {
            let gram = gram(n, kind, n / 2);
            let wanted = gram.to_upper::<f32>(n);
            let mut device = Device::default();
            let (sums, kind) = sums(&mut device, &gram);
            let [upper, scaled] = [(); 2].map(|()| device.buffer(&vec![f32::NAN; n * n]));
            let spoilt = device.buffer(&[0u32]);
            let scale = gram.value_of_entry();
            for square in [upper, scaled] {
                let arguments = arguments![sums, n, scale, square, spoilt];
                device.launch(&format!("unpack_{kind}"), plane(n), arguments);
            }
            let diagonal: Vec<f64> = (0..n).map(|j| f64::from(wanted[j * n + j])).collect();
            let scales = Scales::new(&diagonal, DAMPING).unwrap();
            let reciprocals = device.buffer(&scales.reciprocals);
            device.launch("scale_square", plane(n), arguments![scaled, reciprocals, n]);
            let tiles = Shape::plane([n.div_ceil(32), n.div_ceil(32)], [32, 8]);
            device.launch("mirror_upper", tiles, arguments![scaled, n]);
            let memory = device.run_in_any_order();
            assert_eq!(memory.values::<u32>(spoilt), [0]);
            let [upper, scaled] = [upper, scaled].map(|square| memory.values::<f32>(square));
            let above = (0..n * n).filter(|at| at / n <= at % n);
            assert!(above.clone().all(|at| upper[at].to_bits() == wanted[at].to_bits()), "{n}, {kind}");
            assert!((0..n * n).filter(|at| at / n > at % n).all(|at| upper[at].is_nan()));
            let row = stride(n);
            let hessian = ScaledHessian::of_gram(n, gram.to_upper(row), DAMPING).unwrap();
            let wanted = |at: usize| hessian.square()[at / n * row + at % n];
            assert!((0..n * n).all(|at| scaled[at].to_bits() == wanted(at).to_bits()), "{n}, {kind}");
        }
    }
}

#[test]
fn sums_that_are_not_finite_are_counted() {
    let mut device = Device::default();
    let sums = device.buffer(&[1.0, f32::NAN, f32::INFINITY, 3e38, 2.0, f32::NEG_INFINITY]);
    let (square, spoilt) = (device.buffer(&[0f32; 9]), device.buffer(&[0u32]));
    device.launch("unpack_f32", plane(3), arguments![sums, 3usize, 10.0, square, spoilt]);
    // 3e38 is within f32, ten times that is not.
    assert_eq!(device.run_in_any_order().values::<u32>(spoilt), [4]);
}

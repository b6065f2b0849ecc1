//! The CUDA kernels that make a solver's square of packed sums hold to the processor's numbers.

use super::*;
use crate::cuda::shim::{Argument, Buffer, Device, Shape, arguments};
use crate::solve::structured::Moments;
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
            device.launch("mirror_upper_f32", tiles, arguments![scaled, n]);
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

#[test]
fn moments_are_those_that_the_processor_makes() {
    for n in [1, 8, 33, 70] {
        for kind in [Accumulate::Exact, Accumulate::F32] {
            let constant = n / 2;
            let mut all = observations(n + 1, &[9, 2 * n]);
            for (rows, alpha) in &mut all {
                // Sums of what never changes are exact.
                *alpha = 0.75;
                rows.chunks_mut(n + 1).for_each(|row| (row[constant], row[n]) = (2.0, 1.0));
            }
            let gram = gathered(n + 1, kind, &all);
            let moments = Moments::new(&gram.to_upper::<f64>(n + 1), n);
            let (mass, unit) = (gram.to_upper::<f64>(n + 1)[(n + 1) * (n + 1) - 1], gram.value_of_entry());
            let flags: Vec<u8> = (0..n).map(|j| u8::from(moments.centred()[j * (n + 1)] == 0.0)).collect();
            assert_eq!(flags[constant], 1);
            let mut device = Device::default();
            let (sums, kind) = sums(&mut device, &gram);
            let column = device.buffer(&vec![-1i64; n + 1]);
            let lines = Shape::line((n + 1).div_ceil(32), 32);
            device.launch(&format!("last_column_{kind}"), lines, arguments![sums, n + 1, column]);
            let [whole, centred, tripled] = [(); 3].map(|()| device.buffer(&vec![f64::NAN; n * n]));
            let (means, flags) = (device.buffer(moments.means()), device.buffer(&flags));
            let none = [Argument::None, Argument::None];
            let about_means = [means.into(), flags.into()];
            for (square, about, scale) in
                [(whole, none, 1.0 / mass), (centred, about_means, 1.0 / mass), (tripled, none, 3.0 / mass)]
            {
                let numbers: &[Argument] = arguments![sums, n, unit, scale];
                let arguments = [numbers, &about, arguments![square]].concat();
                device.launch(&format!("unpack_moments_{kind}"), plane(n), &arguments);
            }
            let memory = device.run_in_any_order();
            let bits = |numbers: &[f64]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&memory.values(whole)), bits(moments.gram()), "{n}, {kind}");
            assert_eq!(bits(&memory.values(centred)), bits(&moments.centred()), "{n}, {kind}");
            let near = |(found, x): (&f64, &f64)| (found - 3.0 * x).abs() <= 4.0 * f64::EPSILON * x.abs();
            let found: Vec<f64> = memory.values(tripled);
            assert!(found.iter().zip(moments.gram()).all(near), "{n}, {kind}");
            let column: Vec<f64> = match gram.sums() {
                GramSums::Exact(_) => {
                    memory.values::<i64>(column).into_iter().map(|sum| sum as f64).collect()
                }
                GramSums::F32(_) => {
                    memory.values::<f32>(column).into_iter().take(n + 1).map(f64::from).collect()
                }
            };
            let mean = |sum: &f64| sum * unit / mass;
            assert_eq!(column[..n].iter().map(mean).collect::<Vec<_>>(), moments.means());
            assert_eq!(column[n] * unit, mass);
        }
    }
}

#[test]
fn an_upper_triangle_is_damped_and_mirrored_and_what_is_not_finite_in_it_is_counted() {
    for (n, largest, wanted) in [(1, 2.0, 0), (40, 3.0, 0), (40, f64::INFINITY, 1)] {
        let mut before: Vec<f64> = noise(4, n * n).into_iter().map(f64::from).collect();
        // What lies below is not looked at.
        (0..n * n).filter(|at| at / n > at % n).for_each(|at| before[at] = f64::NAN);
        before[n - 1] = largest;
        let mut device = Device::default();
        let (square, spoilt) = (device.buffer(&before), device.buffer(&[0u32]));
        device.launch("damp_upper", plane(n), arguments![square, n, 0.25, spoilt]);
        let tiles = Shape::plane([n.div_ceil(32), n.div_ceil(32)], [32, 8]);
        device.launch("mirror_upper_f64", tiles, arguments![square, n]);
        let memory = device.run_in_any_order();
        let expected = |at: usize| {
            let (row, column) = (at / n, at % n);
            let damping = if row == column { 0.25 } else { 0.0 };
            before[row.min(column) * n + row.max(column)] + damping
        };
        assert_eq!(memory.values::<f64>(square), (0..n * n).map(expected).collect::<Vec<_>>());
        assert_eq!(memory.values::<u32>(spoilt), [wanted]);
    }
}

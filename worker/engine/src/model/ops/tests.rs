mod attention_kernel;
mod device;
mod kernels;
mod parts;
mod picture_kernels;

use candle_core::DType;
use proptest::prelude::*;

use super::simd::{Kernel, exp, gelu, vectorized};
use super::*;
use crate::pipeline::noise;

/// Normal numbers, drawn from seeds that follow each other: each tensor of a test has its own.
#[derive(Default)]
struct Random {
    seed: u64,
}

impl Random {
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        self.seed += 1;
        noise(self.seed, shape).unwrap()
    }

    fn layer(&mut self, n: usize, out: usize) -> LinearTensors {
        LinearTensors::new((self.tensor(&[out, n]) * 0.1).unwrap(), self.tensor(&[out]))
    }
}

fn ops() -> CpuOps {
    CpuOps::default()
}

/// The largest difference between two tensors, over the largest number of the second.
fn deviation(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let largest =
        |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    largest((found - expected).unwrap()) / largest(expected.clone())
}

/// A number's functions, as kernels compute them.
struct Each<'a>(&'a [f32], &'a mut [f32], fn(f32) -> f32);

impl Kernel for Each<'_> {
    #[inline(always)]
    fn run(self) {
        for (y, x) in self.1.iter_mut().zip(self.0) {
            *y = (self.2)(*x);
        }
    }
}

fn each(x: &[f32], of: fn(f32) -> f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    vectorized(Each(x, &mut y, of));
    y
}

#[test]
fn exp_is_within_2e_7() {
    let x: Vec<f32> = (-87_000..88_000).map(|i| i as f32 / 1000.0).collect();
    for (x, y) in x.iter().zip(each(&x, exp)) {
        let expected = f64::from(*x).exp();
        assert!((f64::from(y) / expected - 1.0).abs() < 2e-7, "e^{x} is {expected}, not {y}");
    }
    let ends = each(&[f32::NEG_INFINITY, -1000.0, f32::INFINITY, f32::NAN], exp);
    assert!(ends[0] < 2e-38 && ends[1] < 2e-38 && ends[2] > 1e38 && ends[3].is_nan(), "{ends:?}");
}

#[test]
fn gelu_is_that_of_the_tanh() {
    let x: Vec<f32> = (-20_000..20_000).map(|i| i as f32 / 1000.0).collect();
    for (x, y) in x.iter().zip(each(&x, gelu)) {
        let x = f64::from(*x);
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        let expected = x / 2.0 * (1.0 + u.tanh());
        assert!((f64::from(y) - expected).abs() < 1e-6 * x.abs().max(1.0), "of {x} is {expected}, not {y}");
    }
    assert!(each(&[f32::NAN], gelu)[0].is_nan());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Sizes on both sides of a tile's and a vector's.
    #[test]
    fn linears_equal_their_composition(rows in 1usize..300, heads in 1usize..9, n in 1usize..300, batch in 1usize..4) {
        let mut random = Random::default();
        let (rows, head) = (rows * batch, 20);
        let (x, layer, norm) = (random.tensor(&[rows, n]), random.layer(n, heads * head), random.tensor(&[head]));
        let plain = composed::linear(&x, &layer).unwrap();
        prop_assert!(deviation(&ops().linear(&x, &layer).unwrap(), &plain) < 1e-5);
        prop_assert!(deviation(&ops().linear_gelu(&x, &layer).unwrap(), &plain.gelu().unwrap()) < 1e-5);
        let normed = composed::head_norm(&plain, &norm).unwrap();
        prop_assert!(deviation(&ops().linear_head_norm(&x, &layer, Some(&norm)).unwrap(), &normed) < 1e-4);
        let by = Modulation { values: random.tensor(&[batch, 3 * heads * head]), width: heads * head };
        let residual = random.tensor(&[rows, heads * head]);
        let expected = composed::add_gated(&residual, &plain, &by, 2).unwrap();
        let found = ops().add_gated_linear(residual, &x, &layer, &by, 2).unwrap();
        prop_assert!(deviation(&found, &expected) < 1e-5);
    }

    #[test]
    fn norms_equal_their_composition(tokens in 1usize..200, batch in 1usize..4, width in 2usize..200) {
        let mut random = Random::default();
        let x = ((random.tensor(&[batch * tokens, width]) * 3.0).unwrap() + 5.0).unwrap();
        let by = Modulation { values: random.tensor(&[batch, 4 * width]), width };
        let expected = composed::norm_modulate(&x, &by, 1, 3).unwrap();
        prop_assert!(deviation(&ops().norm_modulate(&x, &by, 1, 3).unwrap(), &expected) < 1e-4);
    }

    #[test]
    fn rotations_equal_their_composition(
        batch in 1usize..4, still in 0usize..40, turned in 1usize..200, heads in 1usize..4, pairs in 1usize..40,
    ) {
        let mut random = Random::default();
        let x = random.tensor(&[batch * (still + turned), heads * 2 * pairs]);
        let angles: Vec<f64> = (0..turned * pairs).map(|i| i as f64 * 0.37).collect();
        let by = Rotary::new(&angles, pairs).unwrap();
        let expected = rotary::composed(&x, &by, batch).unwrap();
        let found = ops().rotate(x.copy().unwrap(), &by, batch).unwrap();
        prop_assert!(deviation(&found, &expected) < 1e-6);
        // The first tokens of an item stay, and a rotation changes no length.
        let rows = |t: &Tensor| t.narrow(0, 0, still).unwrap().to_vec2::<f32>().unwrap();
        prop_assert_eq!(rows(&found), rows(&x));
        let lengths = |t: &Tensor| t.sqr().unwrap().sum(1).unwrap();
        prop_assert!(deviation(&lengths(&found), &lengths(&x)) < 1e-5);
    }

    #[test]
    fn attention_equals_its_composition(
        batch in 1usize..3, heads in 1usize..4, head in 1usize..70, image in 1usize..220, text in 1usize..40, last: bool,
    ) {
        let mut random = Random::default();
        let [q, k, v] = [0, 1, 2].map(|_| random.tensor(&[batch * image, heads * head]));
        let [tq, tk, tv] = [0, 1, 2].map(|_| random.tensor(&[batch * text, heads * head]));
        let of_image = Projected { queries: Some(&q), keys: &k, values: &v };
        let of_text = Projected { queries: (!last).then_some(&tq), keys: &tk, values: &tv };
        let streams = [of_image, of_text];
        let found = ops().attention(&streams, batch, heads).unwrap();
        let expected = composed::attention(&streams, batch, heads).unwrap();
        prop_assert_eq!(found.len(), if last { 1 } else { 2 });
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!(deviation(found, expected) < 1e-5);
        }
    }
}

/// The last sizes take several steps along the inputs.
#[test]
fn every_number_of_a_product_is_summed_in_the_order_of_the_inputs() {
    let mut random = Random::default();
    for (rows, n, out) in [(1, 7, 5), (13, 100, 70), (129, 17, 200), (300, 800, 150)] {
        let (x, layer) = (random.tensor(&[rows, n]), random.layer(n, out));
        let found = ops().linear(&x, &layer).unwrap().to_vec2::<f32>().unwrap();
        let (x, weight) = (x.to_vec2::<f32>().unwrap(), layer.weight.to_vec2::<f32>().unwrap());
        let bias = layer.bias.to_vec1::<f32>().unwrap();
        for (found, x) in found.iter().zip(&x) {
            for (found, (weight, bias)) in found.iter().zip(weight.iter().zip(&bias)) {
                let sum = x.iter().zip(weight).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum));
                assert_eq!(found.to_bits(), (sum + bias).to_bits());
            }
        }
    }
}

/// Products of several pieces; a pool of one thread and one of three.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::default();
    let (x, layer) = (random.tensor(&[1100, 300]), random.layer(300, 640));
    let [q, k, v] = [0, 1, 2].map(|_| random.tensor(&[2 * 333, 4 * 32]));
    let results = [1, 3].map(|threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let hidden = ops().linear_gelu(&x, &layer).unwrap().to_vec2::<f32>().unwrap();
            let streams = [Projected { queries: Some(&q), keys: &k, values: &v }];
            let attended = ops().attention(&streams, 2, 4).unwrap().remove(0).to_vec2::<f32>().unwrap();
            (hidden, attended)
        })
    });
    assert!(results[0] == results[1]);
}

#[test]
fn a_nan_stays_in_sight() {
    let mut random = Random::default();
    let spoilt = |rows: usize, n: usize| {
        let mut numbers = vec![0.5f32; rows * n];
        numbers[n + 1] = f32::NAN;
        Tensor::from_vec(numbers, (rows, n), &crate::HOST).unwrap()
    };
    let second_row_is_nan = |t: Tensor| {
        let rows = t.to_vec2::<f32>().unwrap();
        rows[1].iter().all(|x| x.is_nan()) && rows[0].iter().all(|x| !x.is_nan())
    };
    let (x, layer) = (spoilt(3, 32), random.layer(32, 32));
    assert!(second_row_is_nan(ops().linear_gelu(&x, &layer).unwrap()));
    let by = Modulation { values: random.tensor(&[1, 64]), width: 32 };
    assert!(second_row_is_nan(ops().norm_modulate(&x, &by, 0, 1).unwrap()));
    let (k, v) = (random.tensor(&[3, 32]), random.tensor(&[3, 32]));
    let streams = [Projected { queries: Some(&x), keys: &k, values: &v }];
    assert!(second_row_is_nan(ops().attention(&streams, 1, 1).unwrap().remove(0)));
}

#[test]
fn a_buffer_given_back_is_used_again() {
    let mut random = Random::default();
    let (ops, x, layer) = (ops(), random.tensor(&[64, 32]), random.layer(32, 32));
    let first = ops.linear(&x, &layer).unwrap();
    let place = |t: &Tensor| TensorSlice::of(t).numbers().unwrap().as_ptr() as usize;
    let (held, at) = (first.to_vec2::<f32>().unwrap(), place(&first));
    ops.give(first).unwrap();
    let second = ops.linear(&x, &layer).unwrap();
    assert_eq!(place(&second), at);
    assert_eq!(second.to_vec2::<f32>().unwrap(), held);
}

#[test]
fn other_types_are_composed() {
    let mut random = Random::default();
    let (x, layer) = (random.tensor(&[40, 64]), random.layer(64, 48));
    let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
    let small = LinearTensors::new(half(&layer.weight), half(&layer.bias));
    let found = ops().linear_gelu(&half(&x), &small).unwrap();
    assert_eq!(found.dtype(), DType::BF16);
    let expected = ops().linear_gelu(&x, &layer).unwrap();
    assert!(deviation(&found.to_dtype(DType::F32).unwrap(), &expected) < 0.02);
}

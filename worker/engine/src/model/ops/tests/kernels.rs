//! The CUDA kernels of a block hold to the operations on the processor, to the bit.

use half::{bf16, f16};

use super::super::simd::{exp_and_sum, max};
use super::*;
use crate::cuda::shim::{Buffer, Device as CudaDevice, Shape, arguments};

/// Threads of a row or head.
const SUM_LANES: usize = 16;

/// The types of activations: kernels' names end with them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Type {
    F32,
    Bf16,
    F16,
}

impl Type {
    pub(super) const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    pub(super) fn kernel(self, name: &str) -> String {
        match self {
            Self::F32 => format!("{name}_f32"),
            Self::Bf16 => format!("{name}_bf16"),
            Self::F16 => format!("{name}_f16"),
        }
    }

    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// A tensor as this type has it, in f32.
    pub(super) fn rounded(self, tensor: &Tensor) -> Tensor {
        match self {
            Self::F32 => tensor.clone(),
            Self::Bf16 => tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap(),
            Self::F16 => tensor.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap(),
        }
    }

    /// A buffer of a tensor that this type has rounded.
    pub(super) fn buffer(self, device: &mut CudaDevice, tensor: &Tensor) -> Buffer {
        let values = values(tensor);
        match self {
            Self::F32 => device.buffer(&values),
            Self::Bf16 => device.buffer(&values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>()),
            Self::F16 => device.buffer(&values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>()),
        }
    }

    /// Runs the launches; a buffer must hold what the processor made, rounded to this type.
    pub(super) fn hold(self, device: &CudaDevice, buffer: Buffer, wanted: &Tensor, what: &str) {
        let memory = device.run_in_any_order();
        let wanted = values(wanted);
        match self {
            Self::F32 => assert_eq!(memory.values::<f32>(buffer), wanted, "{what}"),
            Self::Bf16 => {
                let wanted: Vec<bf16> = wanted.iter().map(|x| bf16::from_f32(*x)).collect();
                assert_eq!(memory.values::<bf16>(buffer), wanted, "{what}");
            }
            Self::F16 => {
                let wanted: Vec<f16> = wanted.iter().map(|x| f16::from_f32(*x)).collect();
                assert_eq!(memory.values::<f16>(buffer), wanted, "{what}");
            }
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A linear that gives x + bias.
fn only_bias(bias: &Tensor) -> LinearTensors {
    let one = Tensor::eye(bias.dim(0).unwrap(), DType::F32, &crate::HOST).unwrap();
    LinearTensors::new(one, bias.clone())
}

/// Blocks of three warps for so many rows or heads.
pub(super) fn by_rows(rows: usize) -> Shape {
    Shape::line(rows.div_ceil(96 / SUM_LANES), 96)
}

/// Blocks and threads in a plane, which take parts of rows. They are few: each takes several.
pub(super) fn parts() -> Shape {
    Shape::plane([2, 2], [2, 4])
}

/// Batch items, their tokens, and features.
const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [1, 3, 5], [2, 7, 16], [3, 2, 49], [2, 5, 200]];

#[test]
fn norms_with_scale_and_shift_are_the_processors_bits() {
    for (seed, [batch, tokens, width]) in SIZES.into_iter().enumerate() {
        for of in Type::ALL {
            let mut random = Random { seed: 10 * seed as u64 };
            let x = of.rounded(&random.tensor(&[batch * tokens, width]));
            let modulation = of.rounded(&random.tensor(&[batch, 3 * width]));
            let mut device = CudaDevice::default();
            let [from, values] = [&x, &modulation].map(|tensor| of.buffer(&mut device, tensor));
            let out = of.buffer(&mut device, &x);
            let (rows, stride, scale, shift) = (batch * tokens, 3 * width, width, 2 * width);
            let arguments = arguments![from, values, rows, width, tokens, stride, scale, shift, out];
            device.launch(&of.kernel("norm_modulate"), by_rows(rows), arguments);
            let by = Modulation { values: modulation, width };
            let wanted = ops().norm_modulate(&x, &by, 2, 1).unwrap();
            of.hold(&device, out, &wanted, &format!("{batch} x {tokens} x {width}, {of:?}"));
        }
    }
}

#[test]
fn norms_of_heads_are_the_processors_bits() {
    for (rows, heads, head) in [(1, 1, 1), (3, 2, 8), (2, 3, 17), (5, 1, 64), (4, 3, 48)] {
        for of in Type::ALL {
            let mut random = Random { seed: head as u64 };
            let [x, bias, norm] = [&[rows, heads * head][..], &[heads * head], &[head]]
                .map(|shape| of.rounded(&random.tensor(shape)));
            let mut device = CudaDevice::default();
            let [out, of_bias, weight] = [&x, &bias, &norm].map(|tensor| of.buffer(&mut device, tensor));
            let arguments = arguments![out, of_bias, weight, rows, heads, head];
            device.launch(&of.kernel("head_norm"), by_rows(rows * heads), arguments);
            let wanted = ops().linear_head_norm(&x, &only_bias(&bias), Some(&norm)).unwrap();
            of.hold(&device, out, &wanted, &format!("{rows} x {heads} x {head}, {of:?}"));
        }
    }
}

#[test]
fn the_last_tokens_are_turned_to_the_processors_bits() {
    for (batch, tokens, turned, heads, pairs) in
        [(1, 1, 1, 1, 1), (2, 5, 3, 2, 4), (1, 4, 0, 1, 2), (3, 7, 7, 3, 9), (2, 9, 6, 5, 16)]
    {
        for of in Type::ALL {
            let mut random = Random { seed: tokens as u64 };
            let width = 2 * heads * pairs;
            let x = of.rounded(&random.tensor(&[batch * tokens, width]));
            let angles: Vec<f64> = (0..turned * pairs).map(|i| (i * i) as f64 * 0.37).collect();
            let rotary = Rotary::new(&angles, pairs).unwrap();
            let mut device = CudaDevice::default();
            let out = of.buffer(&mut device, &x);
            let [cosines, sines] =
                [&rotary.cosines, &rotary.sines].map(|table| device.buffer(&values(table)));
            let arguments = arguments![out, cosines, sines, batch, tokens, turned, width, pairs];
            device.launch(&of.kernel("rotate"), parts(), arguments);
            let wanted = ops().rotate(x.copy().unwrap(), &rotary, batch).unwrap();
            of.hold(&device, out, &wanted, &format!("{turned} of {tokens} tokens, {of:?}"));
        }
    }
}

#[test]
fn gelu_of_a_biased_product_is_the_processors_bits() {
    for (rows, width) in [(1, 1), (3, 7), (20, 33), (5, 40), (9, 64), (2, 68)] {
        for of in Type::ALL {
            let mut random = Random { seed: width as u64 };
            // Large ones, too: there the exponential is cut off.
            let x = of.rounded(&(random.tensor(&[rows, width]) * 6.0).unwrap());
            let bias = of.rounded(&random.tensor(&[width]));
            let mut device = CudaDevice::default();
            let [out, of_bias] = [&x, &bias].map(|tensor| of.buffer(&mut device, tensor));
            device.launch(&of.kernel("gelu"), parts(), arguments![out, of_bias, rows, width]);
            let wanted = ops().linear_gelu(&x, &only_bias(&bias)).unwrap();
            of.hold(&device, out, &wanted, &format!("{rows} x {width}, {of:?}"));
        }
    }
}

#[test]
fn gated_residuals_are_the_processors_bits() {
    for (seed, [batch, tokens, width]) in SIZES.into_iter().enumerate() {
        for of in Type::ALL {
            let mut random = Random { seed: 10 * seed as u64 };
            let rows = batch * tokens;
            let [residual, x, bias, modulation] =
                [&[rows, width][..], &[rows, width], &[width], &[batch, 2 * width]]
                    .map(|shape| of.rounded(&random.tensor(shape)));
            let mut device = CudaDevice::default();
            let [out, product, of_bias, values] =
                [&residual, &x, &bias, &modulation].map(|tensor| of.buffer(&mut device, tensor));
            let (stride, gate) = (2 * width, width);
            let arguments = arguments![out, product, of_bias, values, rows, width, tokens, stride, gate];
            device.launch(&of.kernel("add_gated"), parts(), arguments);
            let by = Modulation { values: modulation, width };
            let wanted =
                ops().add_gated_linear(residual.copy().unwrap(), &x, &only_bias(&bias), &by, 1).unwrap();
            of.hold(&device, out, &wanted, &format!("{batch} x {tokens} x {width}, {of:?}"));
        }
    }
}

#[test]
fn biased_products_are_the_processors_bits() {
    for (rows, width) in [(1, 1), (3, 7), (20, 33), (5, 40), (9, 64), (2, 68)] {
        for of in Type::ALL {
            let mut random = Random { seed: width as u64 };
            let [x, bias] = [&[rows, width][..], &[width]].map(|shape| of.rounded(&random.tensor(shape)));
            let mut device = CudaDevice::default();
            let [out, of_bias] = [&x, &bias].map(|tensor| of.buffer(&mut device, tensor));
            device.launch(&of.kernel("add_bias"), parts(), arguments![out, of_bias, rows, width]);
            let wanted = ops().linear(&x, &only_bias(&bias)).unwrap();
            of.hold(&device, out, &wanted, &format!("{rows} x {width}, {of:?}"));
        }
    }
}

#[test]
fn numbers_are_limited_as_by_the_processor() {
    for (of, width) in Type::ALL.into_iter().flat_map(|of| [(of, 50), (of, 48)]) {
        let x = of.rounded(&(Random { seed: 7 }.tensor(&[3, width]) * 2.0).unwrap());
        let mut device = CudaDevice::default();
        let out = of.buffer(&mut device, &x);
        device.launch(&of.kernel("limit"), parts(), arguments![out, 3u32, width, 0.75f32]);
        of.hold(&device, out, &x.clamp(-0.75, 0.75).unwrap(), &format!("{of:?}"));
    }
}

#[test]
fn silu_is_near_that_of_the_processor() {
    for (of, width) in Type::ALL.into_iter().flat_map(|of| [(of, 50), (of, 48)]) {
        let x = of.rounded(&(Random { seed: 11 }.tensor(&[3, width]) * 20.0).unwrap());
        let mut device = CudaDevice::default();
        let out = of.buffer(&mut device, &x);
        device.launch(&of.kernel("silu"), parts(), arguments![out, 3u32, width]);
        let memory = device.run_in_any_order();
        let found: Vec<f32> = match of {
            Type::F32 => memory.values::<f32>(out),
            Type::Bf16 => memory.values::<bf16>(out).iter().map(|x| x.to_f32()).collect(),
            Type::F16 => memory.values::<f16>(out).iter().map(|x| x.to_f32()).collect(),
        };
        let within = match of {
            Type::F32 => 1e-6,
            Type::Bf16 => 4e-3,
            Type::F16 => 5e-4,
        };
        for (found, x) in found.iter().zip(values(&x)) {
            let wanted = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let off = (f64::from(*found) - wanted).abs();
            assert!(off <= within * wanted.abs().max(1e-3), "SiLU of {x} in {of:?}: {found}, not {wanted}");
        }
    }
}

#[test]
fn rows_are_added_to_each_item() {
    for (times, rows, width) in [(1, 1, 1), (3, 2, 7), (2, 5, 33), (3, 9, 40)] {
        for of in Type::ALL {
            let mut random = Random { seed: 5 };
            let [x, added] =
                [&[times * rows, width][..], &[rows, width]].map(|shape| of.rounded(&random.tensor(shape)));
            let mut device = CudaDevice::default();
            let [out, of_added] = [&x, &added].map(|tensor| of.buffer(&mut device, tensor));
            let arguments = arguments![out, of_added, times, rows, width];
            device.launch(&of.kernel("add_rows"), parts(), arguments);
            let items = x.reshape((times, rows, width)).unwrap();
            let wanted = items.broadcast_add(&added.unsqueeze(0).unwrap()).unwrap().flatten(0, 1).unwrap();
            of.hold(&device, out, &wanted, &format!("{times} x {rows} x {width}, {of:?}"));
        }
    }
}

#[test]
fn features_stand_side_by_side() {
    for (rows, a, b) in [(1, 1, 1), (4, 7, 3), (5, 16, 33), (9, 16, 40)] {
        for of in Type::ALL {
            let mut random = Random { seed: 3 };
            let [x, y] = [&[rows, a][..], &[rows, b]].map(|shape| of.rounded(&random.tensor(shape)));
            let mut device = CudaDevice::default();
            let [left, right] = [&x, &y].map(|tensor| of.buffer(&mut device, tensor));
            let out = of.buffer(&mut device, &random.tensor(&[rows, a + b]));
            let arguments = arguments![left, right, rows, a, b, out];
            device.launch(&of.kernel("join_columns"), parts(), arguments);
            of.hold(&device, out, &ops().joined(&x, &y).unwrap(), &format!("{rows} x {a} + {b}, {of:?}"));
        }
    }
}

/// Turns a row of scores into its softmax.
struct Shares<'a> {
    row: &'a mut [f32],
    scale: f32,
}

impl Kernel for Shares<'_> {
    #[inline(always)]
    fn run(self) {
        let offset = -self.scale * max(self.row);
        let factor = 1.0 / exp_and_sum(self.row, self.scale, offset);
        self.row.iter_mut().for_each(|x| *x *= factor);
    }
}

#[test]
fn shares_of_an_attention_are_the_processors_bits() {
    // Rows of scores end in numbers that nobody has set: they stay.
    for (rows, keys, stride) in [(1, 1, 8), (3, 15, 16), (5, 16, 16), (2, 77, 80), (7, 300, 304)] {
        for of in Type::ALL {
            let scores = (Random { seed: keys as u64 }.tensor(&[rows, stride]) * 9.0).unwrap();
            let mut device = CudaDevice::default();
            let of_scores = device.buffer(&values(&scores));
            let before = of.rounded(&Random { seed: 1 }.tensor(&[rows, stride]));
            let out = of.buffer(&mut device, &before);
            let arguments = arguments![of_scores, rows, keys, stride, 0.37f32, out];
            device.launch(&of.kernel("softmax"), by_rows(rows), arguments);
            let (mut wanted, scores) = (values(&before), values(&scores));
            for (wanted, scores) in wanted.chunks_mut(stride).zip(scores.chunks(stride)) {
                wanted[..keys].copy_from_slice(&scores[..keys]);
                vectorized(Shares { row: &mut wanted[..keys], scale: 0.37 });
            }
            let wanted = Tensor::from_vec(wanted, (rows, stride), &crate::HOST).unwrap();
            of.hold(&device, out, &wanted, &format!("{rows} x {keys}, {of:?}"));
        }
    }
}

/// A bias of zeros leaves every f16 as it is; the shares of two keys are any f32 from 0 to 1, subnormal f16 ones too.
#[test]
fn f16_is_widened_and_rounded_as_by_the_processor() {
    let every: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| !x.is_nan()).collect();
    let mut device = CudaDevice::default();
    let [x, zeros] = [device.buffer(&every), device.buffer(&vec![f16::ZERO; every.len()])];
    device.launch("add_bias_f16", parts(), arguments![x, zeros, 1u32, every.len()]);
    let mut scores: Vec<f32> = every.iter().step_by(7).flat_map(|x| [x.to_f32().min(30.0), 0.0]).collect();
    let rows = scores.len() / 2;
    let [of_scores, out] = [device.buffer(&scores), device.buffer(&vec![0f32; rows])];
    device.launch("softmax_f16", by_rows(rows), arguments![of_scores, rows, 2u32, 2u32, 1.0f32, out]);
    let memory = device.run(0);
    assert_eq!(memory.values::<f16>(x), every);
    scores.chunks_mut(2).for_each(|row| vectorized(Shares { row, scale: 1.0 }));
    assert_eq!(memory.values::<f16>(out), scores.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>());
}

#[test]
fn no_two_threads_race() {
    let mut random = Random::default();
    let mut device = CudaDevice::default();
    let [x, bias, modulation, table] = [&[6, 40][..], &[40], &[2, 120], &[3, 10]]
        .map(|shape| Type::F32.buffer(&mut device, &random.tensor(shape)));
    let out = device.buffer(&[0.0f32; 240]);
    let arguments = arguments![x, modulation, 6u32, 40u32, 3u32, 120u32, 40u32, 80u32, out];
    device.launch("norm_modulate_f32", by_rows(6), arguments);
    device.launch("head_norm_f32", by_rows(12), arguments![out, bias, bias, 6u32, 2u32, 20u32]);
    device.launch("rotate_f32", parts(), arguments![out, table, table, 2u32, 3u32, 3u32, 40u32, 10u32]);
    device.launch("gelu_f32", parts(), arguments![out, bias, 6u32, 40u32]);
    let arguments = arguments![x, out, bias, modulation, 6u32, 40u32, 3u32, 120u32, 0u32];
    device.launch("add_gated_f32", parts(), arguments);
    let bias = device.buffer(&[0.5f32; 36]);
    let shares = device.buffer(&[0.0f32; 36]);
    device.launch("rms_norm_f32", by_rows(6), arguments![x, bias, 6u32, 36u32, 1e-5f32, out]);
    device.launch("layer_norm_f32", by_rows(6), arguments![out, bias, bias, 6u32, 36u32, 1e-5f32, x]);
    let arguments = arguments![x, bias, 6u32, 6u32, 6u32, 6u32, 1.0f32, shares];
    device.launch("biased_softmax_f32", by_rows(6), arguments);
    let arguments = arguments![x, bias, out, 6u32, 6u32, 2u32, shares];
    device.launch("finish_product_f32", parts(), arguments);
    let (sanitized, ordered) = (device.run_sanitized(), device.run_in_any_order());
    for buffer in [x, shares] {
        assert_eq!(sanitized.values::<f32>(buffer), ordered.values::<f32>(buffer));
    }
}

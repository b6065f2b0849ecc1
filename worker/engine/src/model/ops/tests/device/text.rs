//! The operations of text encoders.

use std::collections::HashMap;
use std::fs;

use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::checkpoint::Weights;

/// Types that products are computed in, with how far results may be off.
fn each_product_type(test: impl Fn(&dyn TextOps, DType, f32, &mut Random)) {
    let device = device();
    for (dtype, within) in [(DType::F32, 2e-5), (DType::BF16, 0.02)] {
        let mut ops = ModelOps::default();
        ops.move_blocks(&device, dtype);
        test(ops.text(), dtype, within, &mut Random::default());
    }
}

/// Weights in a file, with the folder that it lies in.
pub(super) struct Stored {
    pub(super) weights: Weights,
    _folder: tempfile::TempDir,
}

impl Stored {
    pub(super) fn new(tensors: &[(&str, &Tensor)]) -> Self {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, tensor)| {
                let mut bytes = Vec::new();
                tensor.write_bytes(&mut bytes).unwrap();
                bytes
            })
            .collect();
        let view = |(i, (name, tensor)): (usize, &(&str, &Tensor))| {
            let dtype = match tensor.dtype() {
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                DType::F64 => Dtype::F64,
                _ => Dtype::F32,
            };
            ((*name).to_owned(), TensorView::new(dtype, tensor.dims().to_vec(), &bytes[i]).unwrap())
        };
        let views: HashMap<String, TensorView<'_>> = tensors.iter().enumerate().map(view).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        Self { weights: Weights::open_file(&path).unwrap(), _folder: folder }
    }
}

/// A linear with these tensors, read by the operations of a device.
fn linear(ops: &dyn TextOps, weight: &Tensor, bias: Option<&Tensor>) -> TextLinear {
    let named: Vec<_> = [Some(("w", weight)), bias.map(|bias| ("b", bias))].into_iter().flatten().collect();
    let stored = Stored::new(&named);
    let (out, n) = weight.dims2().unwrap();
    TextLinear {
        weight: ops.weight(&stored.weights, "w", [out, n]).unwrap(),
        bias: bias.map(|_| ops.vector(&stored.weights, "b", out).unwrap()),
    }
}

fn hold(found: &Tensor, wanted: &Matrix, within: f32, what: &str) {
    assert_eq!(found.dtype(), DType::F32, "{what}");
    let wanted = wanted.host().unwrap();
    let sum = |tensor: &Tensor| tensor.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    if sum(wanted) == 0.0 {
        // What a rectifier leaves of negative numbers.
        assert_eq!(sum(found), 0.0, "{what}");
        return;
    }
    let off = deviation(found, wanted);
    assert!(off < within, "{what} is off by {off}, not {within}");
}

/// What lies on a device, in f32, whatever its type there.
fn wide(found: &Matrix) -> Tensor {
    found.to_host().unwrap().to_dtype(DType::F32).unwrap()
}

/// Rows of odd sizes: tokens and width.
const SIZES: [[usize; 2]; 5] = [[1, 1], [1, 5], [7, 16], [3, 49], [5, 200]];

const FUNCTIONS: [ActivationFunction; 5] = [
    ActivationFunction::QuickGelu,
    ActivationFunction::Gelu,
    ActivationFunction::GeluTanh,
    ActivationFunction::Relu,
    ActivationFunction::Silu,
];

#[test]
fn norms_of_text_hold() {
    each_product_type(|ops, _, within, random| {
        for [tokens, width] in SIZES {
            let x = ((random.tensor(&[tokens, width]) * 3.0).unwrap() + 1.0).unwrap();
            let [weight, bias] = [0, 1].map(|_| random.tensor(&[width]));
            let stored = Stored::new(&[("w", &weight), ("b", &bias)]);
            for with_bias in [true, false] {
                let norm = |ops: &dyn TextOps| {
                    let [weight, bias] =
                        ["w", "b"].map(|name| ops.vector(&stored.weights, name, width).unwrap());
                    TextNorm { weight, bias: with_bias.then_some(bias), epsilon: 1e-3 }
                };
                let host = super::super::ops();
                let of_host = TextOps::norm(&host, &x.clone().into(), &norm(&host), WrittenIn::F32).unwrap();
                let on_device = ops.import_rows(x.clone()).unwrap();
                let exact = ops.norm(&on_device, &norm(ops), WrittenIn::F32).unwrap();
                let what = format!("a norm of {tokens} x {width}, bias {with_bias}");
                hold(&ops.export(&exact).unwrap(), &of_host, 2e-5, &what);
                let rounded = ops.norm(&on_device, &norm(ops), WrittenIn::ProductType).unwrap();
                hold(&wide(&rounded), &of_host, within, &what);
            }
        }
    });
}

#[test]
fn linears_of_text_hold() {
    each_product_type(|ops, dtype, within, random| {
        for ([tokens, n], out) in SIZES.into_iter().zip([1, 3, 24, 17, 96]) {
            // Both devices read the same numbers, which the file may have in any type.
            let rounded = |tensor: Tensor| tensor.to_dtype(DType::BF16).unwrap();
            let x = rounded(random.tensor(&[tokens, n])).to_dtype(DType::F32).unwrap();
            let [weight, gate] = [0, 1].map(|_| rounded((random.tensor(&[out, n]) * 0.3).unwrap()));
            let (bias, residual) = (random.tensor(&[out]), random.tensor(&[tokens, out]));
            let host = super::super::ops();
            let of_host: Matrix = x.clone().into();
            for stored in [DType::BF16, DType::F16, DType::F32, DType::F64] {
                let weight = weight.to_dtype(stored).unwrap();
                for bias in [None, Some(&bias)] {
                    let [layer, wanted] = [ops, &host].map(|ops| linear(ops, &weight, bias));
                    let gates = [ops, &host].map(|ops| linear(ops, &gate, None));
                    let operand = operand(ops, &x, dtype);
                    let what = format!("a linear of {tokens} x {n} to {out}, stored in {stored:?}");
                    let expected = TextOps::linear(&host, &of_host, &wanted, WrittenIn::F32).unwrap();
                    let found = ops.linear(&operand, &layer, WrittenIn::F32).unwrap();
                    hold(&ops.export(&found).unwrap(), &expected, 2e-5, &what);
                    let found = ops.linear(&operand, &layer, WrittenIn::ProductType).unwrap();
                    hold(&wide(&found), &expected, within, &what);
                    let expected = host.add_linear(residual.clone().into(), &of_host, &wanted).unwrap();
                    let on_device = ops.import_rows(residual.clone()).unwrap();
                    let held = on_device.clone();
                    let found = ops.add_linear(on_device, &operand, &layer).unwrap();
                    hold(&ops.export(&found).unwrap(), &expected, 2e-5, &what);
                    // A residual that somebody else holds is not changed.
                    hold(&ops.export(&held).unwrap(), &residual.clone().into(), 1e-9, &what);
                    for function in FUNCTIONS {
                        for gated in [false, true] {
                            let [gate, of_host_gate] = gates.each_ref().map(|gate| gated.then_some(gate));
                            let found = ops.activated(&operand, &layer, gate, function).unwrap();
                            let expected = host.activated(&of_host, &wanted, of_host_gate, function).unwrap();
                            hold(&wide(&found), &expected, within, &format!("{function:?} of {what}"));
                        }
                    }
                }
            }
        }
    });
}

/// An input of products that holds these numbers: on a GPU a linear of the unit matrix gives it.
fn operand(ops: &dyn TextOps, x: &Tensor, dtype: DType) -> Matrix {
    let imported = ops.import_rows(x.clone()).unwrap();
    if imported.host().is_ok() {
        return imported;
    }
    let (tokens, n) = x.dims2().unwrap();
    let rows = Tensor::eye(tokens, dtype, &crate::HOST).unwrap();
    // x = 1 (x^T)^T: the rows of a linear's weight are the columns of x.
    let stored = Stored::new(&[("one", &rows), ("x", &x.t().unwrap().contiguous().unwrap())]);
    let one = ops.weight(&stored.weights, "one", [tokens, tokens]).unwrap();
    let layer = TextLinear { weight: ops.weight(&stored.weights, "x", [n, tokens]).unwrap(), bias: None };
    ops.linear(&one, &layer, WrittenIn::ProductType).unwrap()
}

#[test]
fn attention_with_a_bias_holds() {
    each_product_type(|ops, dtype, within, random| {
        for (tokens, heads, head) in [(1, 1, 1), (7, 3, 5), (33, 2, 16), (9, 1, 24), (24, 6, 16)] {
            let x = [0, 1, 2].map(|_| {
                let tensor = random.tensor(&[tokens, heads * head]).to_dtype(DType::BF16).unwrap();
                tensor.to_dtype(DType::F32).unwrap()
            });
            let look = |i: usize| if i % tokens > i / tokens % tokens { f32::NEG_INFINITY } else { 0.0 };
            let mask: Vec<f32> = (0..tokens * tokens).map(look).collect();
            let mask = Tensor::from_vec(mask, (tokens, tokens), &crate::HOST).unwrap();
            let own = (random.tensor(&[heads * tokens, tokens]) * 3.0).unwrap();
            for (bias, scale, what) in [(mask, 0.25, "a mask"), (own, 1.0, "biases of heads")] {
                let host = super::super::ops();
                let of_host: [Matrix; 3] = x.clone().map(Matrix::from);
                let expected =
                    host.biased_attention(of_host.each_ref(), &bias.clone().into(), heads, scale).unwrap();
                let projected = x.each_ref().map(|x| operand(ops, x, dtype));
                let bias = ops.import_rows(bias).unwrap();
                let found = ops.biased_attention(projected.each_ref(), &bias, heads, scale).unwrap();
                hold(&wide(&found), &expected, within, &format!("{what}, {tokens} x {heads} x {head}"));
            }
        }
    });
}

#[test]
fn a_row_is_taken_from_a_matrix() {
    each_product_type(|ops, _, _, random| {
        let x = random.tensor(&[5, 13]);
        let on_device = ops.import_rows(x.clone()).unwrap();
        for row in [0, 3, 4] {
            let found = ops.export(&ops.row(&on_device, row).unwrap()).unwrap();
            assert_eq!(
                found.to_vec2::<f32>().unwrap(),
                x.narrow(0, row, 1).unwrap().to_vec2::<f32>().unwrap()
            );
        }
        assert!(ops.row(&on_device, 5).is_err());
    });
}

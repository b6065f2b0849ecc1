//! The operations of the device that `OBSDIFF_DEVICE` names hold to the processor's, in every type and at odd sizes. Without that variable it
//! is the processor itself; once more they run with libraries that do a GPU's work in host memory.

mod picture;
mod text;

use std::env;

use super::*;
use crate::device::ComputeDevice;
use crate::model::Matrix;

fn device() -> ComputeDevice {
    let name = env::var("OBSDIFF_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    ComputeDevice::open(name.parse().unwrap()).unwrap()
}

/// A type that blocks are computed in.
struct Computed {
    dtype: DType,
    ops: ModelOps,
    /// How far results may be off, over the largest number.
    within: f32,
}

impl Computed {
    fn each(test: impl Fn(&Self, &mut Random)) {
        let device = device();
        for (dtype, within) in [(DType::F32, 2e-5), (DType::BF16, 0.02), (DType::F16, 0.003)] {
            let mut ops = ModelOps::default();
            ops.move_blocks(&device, dtype);
            test(&Self { dtype, ops, within }, &mut Random::default());
        }
    }

    fn ops(&self) -> &dyn BlockOps {
        self.ops.device()
    }

    /// Random numbers as this type has them: on the device, and in f32 on the processor.
    fn tensor(&self, random: &mut Random, shape: &[usize]) -> (Matrix, Tensor) {
        let (typed, wide) = self.rounded(&random.tensor(shape));
        (self.ops().import(typed.into()).unwrap(), wide)
    }

    fn rounded(&self, tensor: &Tensor) -> (Tensor, Tensor) {
        let typed = tensor.to_dtype(self.dtype).unwrap();
        let wide = typed.to_dtype(DType::F32).unwrap();
        (typed, wide)
    }

    fn layer(&self, random: &mut Random, n: usize, out: usize) -> (LinearTensors, LinearTensors) {
        let layer = random.layer(n, out);
        let [weight, bias] = [&layer.weight, &layer.bias].map(|tensor| self.rounded(tensor));
        (LinearTensors::new(weight.0, bias.0), LinearTensors::new(weight.1, bias.1))
    }

    fn hold(&self, found: &Matrix, wanted: &Tensor, what: &str) {
        let found = found.to_host().unwrap();
        assert_eq!(found.dtype(), self.dtype, "{what}");
        let off = deviation(&found.to_dtype(DType::F32).unwrap(), wanted);
        assert!(off < self.within, "{what} in {:?} is off by {off}", self.dtype);
    }
}

#[test]
fn linears_hold() {
    Computed::each(|of, random| {
        for (batch, tokens, n, heads, head) in [(1, 1, 1, 1, 1), (2, 3, 7, 3, 5), (1, 33, 50, 2, 24)] {
            let (rows, out) = (batch * tokens, heads * head);
            let (x, wide_x) = of.tensor(random, &[rows, n]);
            let (layer, wide) = of.layer(random, n, out);
            let ops = of.ops();
            of.hold(
                &ops.linear(&x, &layer).unwrap(),
                &ops_of(&wide_x, |x, o| o.linear(x, &wide)),
                "a linear",
            );
            let gelu = ops.linear_gelu(&x, &layer).unwrap();
            of.hold(&gelu, &ops_of(&wide_x, |x, o| o.linear_gelu(x, &wide)), "GELU");
            let (norm, wide_norm) = of.rounded(&random.tensor(&[head]));
            let normed = ops.linear_head_norm(&x, &layer, Some(&norm.into())).unwrap();
            let wanted = ops_of(&wide_x, |x, o| o.linear_head_norm(x, &wide, Some(&wide_norm)));
            if head > 1 {
                of.hold(&normed, &wanted, "a norm of heads");
            }
            let (residual, wide_residual) = of.tensor(random, &[rows, out]);
            let (values, wide_values) = of.tensor(random, &[batch, 3 * out]);
            let by = Modulation { values, width: out };
            let wide_by = Modulation { values: wide_values, width: out };
            let found = ops.add_gated_linear(residual.copy().unwrap(), &x, &layer, &by, 2).unwrap();
            let wanted = ops_of(&wide_x, |x, o| {
                o.add_gated_linear(wide_residual.copy().unwrap(), x, &wide, &wide_by, 2)
            });
            of.hold(&found, &wanted, "a gated sum");
            // One that somebody else holds is not changed.
            let held = residual.clone();
            ops.limited(held, 0.01).map(drop).unwrap();
            of.hold(&residual, &wide_residual, "what is held");
        }
    });
}

/// The processor's result for x.
fn ops_of(x: &Tensor, result: impl Fn(&Tensor, &CpuOps) -> Result<Tensor>) -> Tensor {
    result(x, &ops()).unwrap()
}

#[test]
fn streams_hold() {
    Computed::each(|of, random| {
        for (batch, tokens, width) in [(1, 2, 4), (2, 5, 12), (3, 7, 50)] {
            let (ops, rows) = (of.ops(), batch * tokens);
            let (x, wide_x) = of.tensor(random, &[rows, width]);
            let (values, wide_values) = of.tensor(random, &[batch, 4 * width]);
            let by = Modulation { values, width };
            let wide_by = Modulation { values: wide_values, width };
            let found = ops.norm_modulate(&x, &by, 1, 3).unwrap();
            of.hold(&found, &ops_of(&wide_x, |x, o| o.norm_modulate(x, &wide_by, 1, 3)), "a norm");

            let (y, wide_y) = of.tensor(random, &[rows, 3]);
            let found = ops.joined(&x, &y).unwrap();
            of.hold(&found, &ops_of(&wide_x, |x, o| o.joined(x, &wide_y)), "features side by side");
            let (text, wide_text) = of.tensor(random, &[batch * 3, width]);
            let found = ops.sequence(&text, &x, batch).unwrap();
            let wanted = ops_of(&wide_x, |x, o| {
                BlockOps::sequence(o, &wide_text.clone().into(), &x.clone().into(), batch)?.into_host()
            });
            of.hold(&found, &wanted, "a sequence");
            let found = ops.limited(x.copy().unwrap(), 0.5).unwrap();
            of.hold(&found, &wide_x.clamp(-0.5, 0.5).unwrap(), "limited numbers");

            let (pairs, turned) = (width / 2, tokens - 1);
            let angles: Vec<f64> = (0..turned * pairs).map(|i| i as f64 * 0.37).collect();
            let wide = Rotary::new(&angles, pairs).unwrap();
            let [cosines, sines] =
                [&wide.cosines, &wide.sines].map(|t| ops.import(t.clone().into()).unwrap());
            let found = ops.rotate(x.copy().unwrap(), &Rotary { cosines, sines }, batch).unwrap();
            of.hold(&found, &ops_of(&wide_x, |x, o| o.rotate(x.copy()?, &wide, batch)), "turned heads");
        }
    });
}

#[test]
fn attention_holds() {
    Computed::each(|of, random| {
        for (batch, heads, head, image, text, last) in [
            (1, 1, 1, 1, 1, false),
            (2, 3, 5, 7, 4, true),
            (1, 2, 16, 33, 6, false),
            (2, 1, 24, 9, 20, false),
            (2, 2, 64, 70, 9, true),
            (1, 1, 128, 131, 6, false),
        ] {
            let ops = of.ops();
            let of_image = [0, 1, 2].map(|_| of.tensor(random, &[batch * image, heads * head]));
            let of_text = [0, 1, 2].map(|_| of.tensor(random, &[batch * text, heads * head]));
            let [(q, wide_q), (k, wide_k), (v, wide_v)] = &of_image;
            let [(tq, wide_tq), (tk, wide_tk), (tv, wide_tv)] = &of_text;
            let streams = [
                Projected { queries: Some(q), keys: k, values: v },
                Projected { queries: (!last).then_some(tq), keys: tk, values: tv },
            ];
            let wide = [
                Projected { queries: Some(wide_q), keys: wide_k, values: wide_v },
                Projected { queries: (!last).then_some(wide_tq), keys: wide_tk, values: wide_tv },
            ];
            let found = ops.attention(&streams, batch, heads).unwrap();
            let wanted = super::ops().attention(&wide, batch, heads).unwrap();
            assert_eq!(found.len(), wanted.len());
            found.iter().zip(&wanted).for_each(|(found, wanted)| of.hold(found, wanted, "attention"));
            let own = ops.attention(&streams[..1], batch, heads).unwrap();
            of.hold(&own[0], &super::ops().attention(&wide[..1], batch, heads).unwrap()[0], "one stream");
        }
    });
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::process::Command;

    use super::*;
    use crate::cuda::CudaOps;
    use crate::export::output_of;

    #[test]
    fn the_operations_hold_on_a_gpu_in_host_memory() {
        if env::var_os("OBSDIFF_DEVICE").is_some() {
            // These are the operations of some device.
            return;
        }
        let mut child = Command::new(env::current_exe().unwrap());
        child.env("LD_LIBRARY_PATH", obsdiff_tests::fake_cuda()).env("OBSDIFF_DEVICE", "cuda");
        let output = output_of(child.args(["ops::tests::device", "--test-threads", "2"])).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        for test in
            ["attention_holds", "picture::what_pixels_attend_to_holds", "text::attention_with_a_bias_holds"]
        {
            assert!(said.contains(&format!("{test} ... ok")), "{said}");
        }
    }

    #[test]
    fn queries_in_parts_attend_as_all_at_once() {
        let ComputeDevice::Cuda(gpu) = device() else { return };
        let [whole, parts] = [usize::MAX, 100].map(|scores| {
            let ops = CudaOps::new(&gpu, DType::BF16).unwrap().with_scores(scores);
            let mut random = Random::default();
            let mut matrix = || {
                let tensor = random.tensor(&[2 * 37, 2 * 16]).to_dtype(DType::BF16).unwrap();
                ops.import(tensor.into()).unwrap()
            };
            let (q, k, v) = (matrix(), matrix(), matrix());
            let streams = [Projected { queries: Some(&q), keys: &k, values: &v }];
            let attended = ops.attention(&streams, 2, 2).unwrap().remove(0).to_host().unwrap();
            attended.to_dtype(DType::F32).unwrap()
        });
        // cuBLAS may sum in another order where a product has other rows.
        let off = deviation(&parts, &whole);
        assert!(off < 0.02, "{off}");
    }
}

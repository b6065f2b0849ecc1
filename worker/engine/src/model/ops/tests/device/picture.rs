//! The operations of decoders.

use super::text::Stored;
use super::*;

/// Height, width, and channels that come in and go out.
const SIZES: [[usize; 4]; 5] = [[1, 1, 2, 1], [1, 5, 4, 6], [3, 2, 6, 3], [7, 5, 10, 10], [16, 9, 4, 8]];

fn picture_ops() -> ModelOps {
    let mut ops = ModelOps::default();
    ops.move_blocks(&device(), DType::F32);
    ops
}

/// A picture on the processor, and on a device.
fn picture(ops: &dyn PictureOps, random: &mut Random, [height, width, channels]: [usize; 3]) -> [Pixels; 2] {
    let x = (random.tensor(&[1, channels, height, width]) + 0.5).unwrap();
    [CpuOps::import_pixels(&super::super::ops(), &x).unwrap(), ops.import_pixels(&x).unwrap()]
}

fn hold(ops: &dyn PictureOps, found: &Pixels, wanted: &Pixels, what: &str) {
    assert_eq!((found.height, found.width), (wanted.height, wanted.width), "{what}");
    let (found, wanted) = (ops.export_pixels(found).unwrap(), wanted.values.host().unwrap());
    assert_eq!(found.dims(), wanted.dims(), "{what}");
    let off = deviation(&found, wanted);
    assert!(off < 2e-5, "{what} is off by {off}");
}

/// A convolution of these sizes, as the processor and a device read it.
fn convolution(
    ops: &dyn PictureOps,
    random: &mut Random,
    [outputs, inputs, side]: [usize; 3],
) -> [Convolution; 2] {
    let [weight, bias] = [random.tensor(&[outputs, inputs, side, side]), random.tensor(&[outputs])];
    let stored = Stored::new(&[("c.weight", &weight), ("c.bias", &bias)]);
    let host = super::super::ops();
    [&host as &dyn PictureOps, ops]
        .map(|ops| ops.convolution(&stored.weights, "c", [outputs, inputs, side]).unwrap())
}

fn norm(ops: &dyn PictureOps, random: &mut Random, channels: usize, groups: usize) -> [GroupNorm; 2] {
    let [weight, bias] = [0, 1].map(|_| random.tensor(&[channels]));
    let stored = Stored::new(&[("weight", &weight), ("bias", &bias)]);
    let host = super::super::ops();
    [&host as &dyn PictureOps, ops].map(|ops| {
        let vector = |name| ops.vector(&stored.weights, name, channels).unwrap();
        GroupNorm { weight: vector("weight"), bias: vector("bias"), groups }
    })
}

#[test]
fn convolutions_hold() {
    let (ops, host, mut random) = (picture_ops(), super::super::ops(), Random::default());
    let (ops, random) = (ops.picture(), &mut random);
    for [height, width, inputs, outputs] in SIZES {
        let [of_host, on_device] = picture(ops, random, [height, width, inputs]);
        for side in [1, 3] {
            let [by_host, by_device] = convolution(ops, random, [outputs, inputs, side]);
            let what =
                format!("a convolution of {side} x {side}, {inputs} to {outputs}, of {height} x {width}");
            let wanted = host.convolved(&of_host, &by_host).unwrap();
            let found = ops.convolved(&on_device, &by_device).unwrap();
            hold(ops, &found, &wanted, &what);
            // One that somebody else holds is not changed.
            let held = found.clone();
            let wanted_sum = host.add_convolved(wanted.clone(), &of_host, &by_host).unwrap();
            let sum = ops.add_convolved(held, &on_device, &by_device).unwrap();
            hold(ops, &sum, &wanted_sum, &format!("{what}, added"));
            hold(ops, &found, &wanted, &format!("{what}, held"));
            if side == 3 {
                let wanted = host.enlarged(&of_host, &by_host).unwrap();
                hold(
                    ops,
                    &ops.enlarged(&on_device, &by_device).unwrap(),
                    &wanted,
                    &format!("{what}, enlarged"),
                );
            }
        }
    }
}

#[test]
fn norms_of_groups_hold() {
    let (ops, host, mut random) = (picture_ops(), super::super::ops(), Random::default());
    let (ops, random) = (ops.picture(), &mut random);
    // The last ones have more pixels than one thread sums.
    for ([height, width, channels, _], groups) in
        SIZES.into_iter().zip([1, 4, 3, 5, 2]).chain([([45, 41, 6, 0], 2)])
    {
        let [of_host, on_device] = picture(ops, random, [height, width, channels]);
        let [by_host, by_device] = norm(ops, random, channels, groups);
        let wanted = host.normed_silu(&of_host, &by_host).unwrap();
        let found = ops.normed_silu(&on_device, &by_device).unwrap();
        hold(ops, &found, &wanted, &format!("{groups} groups of {channels} channels of {height} x {width}"));
    }
}

/// Attention with its norm, and linears of random weights.
fn attention(ops: &dyn PictureOps, random: &mut Random, channels: usize) -> [PixelAttention; 2] {
    let norms = norm(ops, random, channels, 2);
    let parts = [0; 4].map(|_| (random.tensor(&[channels, channels]), random.tensor(&[channels])));
    let host = super::super::ops();
    let mut of = [&host as &dyn PictureOps, ops].into_iter().zip(norms).map(|(ops, norm)| {
        let [q, k, v, out] = parts.each_ref().map(|(weight, bias)| {
            let stored = Stored::new(&[("w", weight), ("b", bias)]);
            TextLinear {
                weight: ops.weight(&stored.weights, "w", [channels; 2]).unwrap(),
                bias: Some(ops.vector(&stored.weights, "b", channels).unwrap()),
            }
        });
        PixelAttention { norm, q, k, v, out }
    });
    [of.next().unwrap(), of.next().unwrap()]
}

#[test]
fn what_pixels_attend_to_holds() {
    let (ops, host, mut random) = (picture_ops(), super::super::ops(), Random::default());
    let (ops, random) = (ops.picture(), &mut random);
    for [height, width, channels] in [[1, 1, 2], [3, 5, 6], [7, 4, 10]] {
        let [of_host, on_device] = picture(ops, random, [height, width, channels]);
        let [by_host, by_device] = attention(ops, random, channels);
        let wanted = host.attended(of_host, &by_host).unwrap();
        let held = on_device.clone();
        let found = ops.attended(on_device, &by_device).unwrap();
        let what = format!("attention among {height} x {width} of {channels}");
        hold(ops, &found, &wanted, &what);
        // The picture itself is as it was for whoever holds it.
        let again = ops.attended(held, &by_device).unwrap();
        hold(ops, &again, &wanted, &what);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn pixels_laid_out_in_parts_give_the_same_numbers() {
    use crate::cuda::CudaOps;

    let ComputeDevice::Cuda(gpu) = device() else { return };
    let mut random = Random::default();
    // All pixels together, one at a time, and seven of fifteen.
    for patches in [usize::MAX, 1, 7 * 9 * 4] {
        let ops = CudaOps::new(&gpu, DType::F32).unwrap().with_patches(patches);
        let [of_host, on_device] = picture(&ops, &mut random, [3, 5, 4]);
        let [by_host, by_device] = convolution(&ops, &mut random, [3, 4, 3]);
        let host = super::super::ops();
        let what = format!("{patches} numbers at a time");
        let found = ops.convolved(&on_device, &by_device).unwrap();
        hold(&ops, &found, &host.convolved(&of_host, &by_host).unwrap(), &what);
        let found = ops.enlarged(&on_device, &by_device).unwrap();
        hold(&ops, &found, &host.enlarged(&of_host, &by_host).unwrap(), &what);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn pictures_that_do_not_fit_are_refused() {
    use crate::cuda::CudaOps;

    let ComputeDevice::Cuda(gpu) = device() else { return };
    let (ops, mut random) = (CudaOps::new(&gpu, DType::F32).unwrap(), Random::default());
    let [_, x] = picture(&ops, &mut random, [3, 5, 4]);
    let [_, other] = picture(&ops, &mut random, [5, 3, 4]);
    let [_, by] = convolution(&ops, &mut random, [4, 6, 3]);
    let said = ops.convolved(&x, &by).unwrap_err().to_string();
    assert!(said.contains("4 channels, 1 x 1 times, are no input of a convolution of 4 x 54"), "{said}");
    let [_, by] = convolution(&ops, &mut random, [4, 4, 1]);
    let said = ops.enlarged(&x, &by).unwrap_err().to_string();
    assert!(said.contains("4 channels, 2 x 2 times, are no input of a convolution of 4 x 4"), "{said}");
    let [_, by] = convolution(&ops, &mut random, [4, 4, 3]);
    let said = ops.add_convolved(x.clone(), &other, &by).unwrap_err().to_string();
    assert!(said.contains("5 x 3 pixels are not added to 3 x 5"), "{said}");
    let [_, by] = norm(&ops, &mut random, 4, 3);
    let said = ops.normed_silu(&x, &by).unwrap_err().to_string();
    assert!(said.contains("4 channels are not normed in 3 groups"), "{said}");
}

//! The CUDA kernels of decoders hold to their formulas.

use super::*;
use crate::cuda::shim::{Device as CudaDevice, Shape, arguments};
use crate::device::memory::PIXELS_OF_PART;

/// Height, width and channels.
const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [1, 4, 3], [3, 2, 5], [5, 7, 2], [4, 3, 70]];

fn values(random: &mut Random, count: usize) -> Vec<f32> {
    random.tensor(&[count]).to_vec1().unwrap()
}

#[test]
fn each_pixel_is_laid_out_with_those_around_it() {
    let mut random = Random::default();
    for ([height, width, channels], scale) in SIZES.into_iter().flat_map(|size| [(size, 1), (size, 2)]) {
        let x = values(&mut random, height * width * channels);
        let (rows, columns) = (height * scale, width * scale);
        // All but the first one and the last one, where there are more.
        let (first, count) = if rows * columns > 2 { (1, rows * columns - 2) } else { (0, rows * columns) };
        let mut device = CudaDevice::default();
        let from = device.buffer(&x);
        let out = device.buffer(&vec![f32::NAN; count * 9 * channels]);
        let arguments = arguments![from, height, width, channels, scale, first, count, out];
        device.launch("gather_patches", Shape::line(2, 64), arguments);
        let found = device.run_in_any_order().values::<f32>(out);
        for (i, found) in found.iter().enumerate() {
            let (pixel, part, channel) = (first + i / channels / 9, i / channels % 9, i % channels);
            let row = (pixel / columns + part / 3).checked_sub(1).filter(|row| *row < rows);
            let column = (pixel % columns + part % 3).checked_sub(1).filter(|column| *column < columns);
            let wanted = row
                .zip(column)
                .map_or(0.0, |(row, column)| x[(row / scale * width + column / scale) * channels + channel]);
            assert_eq!(*found, wanted, "pixel {pixel}, part {part}, channel {channel} of {height} x {width}");
        }
    }
}

#[test]
fn groups_are_normed_by_all_their_pixels() {
    let mut random = Random::default();
    let sizes = [(1, 2, 1), (35, 6, 3), (12, 70, 7), (PIXELS_OF_PART, 4, 2), (2 * PIXELS_OF_PART + 5, 2, 1)];
    for (pixels, channels, groups) in sizes {
        let x: Vec<f32> = values(&mut random, pixels * channels).iter().map(|x| 2.0 * x + 3.0).collect();
        let [weight, bias] = [0, 1].map(|_| values(&mut random, channels));
        let parts = pixels.div_ceil(PIXELS_OF_PART);
        let mut device = CudaDevice::default();
        let from = device.buffer(&x);
        let [of_weight, of_bias] = [&weight, &bias].map(|vector| device.buffer(vector));
        let sums = device.buffer(&vec![f64::NAN; 2 * parts * channels]);
        let statistics = device.buffer(&vec![f32::NAN; 2 * groups]);
        let [plain, silu] = [0, 1].map(|_| device.buffer(&vec![f32::NAN; pixels * channels]));
        let blocks = Shape::plane([channels.div_ceil(64), parts], [64, 1]);
        device.launch("channel_sums", blocks, arguments![from, pixels, channels, sums]);
        let arguments = arguments![sums, parts, channels, pixels, 1e-6f32, statistics];
        device.launch("group_statistics", Shape::line(groups, 256), arguments);
        for (activated, out) in [(0u32, plain), (1u32, silu)] {
            let arguments =
                arguments![from, statistics, of_weight, of_bias, pixels, channels, groups, activated, out];
            device.launch("norm_groups", Shape::line(2, 64), arguments);
        }
        let memory = device.run_in_any_order();
        let of_group = channels / groups;
        for group in 0..groups {
            let is_of = |i: &usize| i % channels / of_group == group;
            let members = || (0..x.len()).filter(is_of).map(|i| f64::from(x[i]));
            let count = (pixels * of_group) as f64;
            let mean = members().sum::<f64>() / count;
            let variance = members().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let (plain, silu) = (memory.values::<f32>(plain), memory.values::<f32>(silu));
            for i in (0..x.len()).filter(is_of) {
                let normed = (f64::from(x[i]) - mean) / (variance + 1e-6).sqrt();
                let wanted = normed * f64::from(weight[i % channels]) + f64::from(bias[i % channels]);
                let near = |found: f32, wanted: f64| {
                    (f64::from(found) - wanted).abs() < 1e-5 * wanted.abs().max(1.0)
                };
                assert!(near(plain[i], wanted), "{i} of {pixels} x {channels}: {}, not {wanted}", plain[i]);
                let wanted = wanted / (1.0 + (-wanted).exp());
                assert!(
                    near(silu[i], wanted),
                    "silu {i} of {pixels} x {channels}: {}, not {wanted}",
                    silu[i]
                );
            }
        }
    }
}

#[test]
fn no_two_threads_of_a_norm_race() {
    let mut random = Random::default();
    let x = values(&mut random, 40 * 6);
    let mut device = CudaDevice::default();
    let (from, sums) = (device.buffer(&x), device.buffer(&[0.0f64; 12]));
    let (statistics, out) = (device.buffer(&[0.0f32; 4]), device.buffer(&[0.0f32; 240]));
    let laid_out = device.buffer(&vec![0.0f32; 40 * 9 * 6]);
    device.launch("channel_sums", Shape::line(1, 64), arguments![from, 40u32, 6u32, sums]);
    let arguments = arguments![sums, 1u32, 6u32, 40u32, 1e-6f32, statistics];
    device.launch("group_statistics", Shape::line(2, 256), arguments);
    let arguments = arguments![from, statistics, from, from, 40u32, 6u32, 2u32, 1u32, out];
    device.launch("norm_groups", Shape::line(2, 32), arguments);
    let arguments = arguments![out, 8u32, 5u32, 6u32, 1u32, 0u32, 40u32, laid_out];
    device.launch("gather_patches", Shape::line(2, 32), arguments);
    let (sanitized, ordered) = (device.run_sanitized(), device.run_in_any_order());
    assert_eq!(sanitized.values::<f32>(laid_out), ordered.values::<f32>(laid_out));
}

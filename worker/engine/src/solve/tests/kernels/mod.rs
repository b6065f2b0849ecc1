//! The CUDA kernels of the solvers hold to the processor's numbers.

mod admm;
mod largest;
mod n_to_m;
mod obs;
mod refine;

use super::noise;
use crate::cuda::shim::{Argument, Buffer, Device, SEEDS, Shape, arguments};

/// Bins of a histogram of digits.
const BINS: usize = 2048;

/// Threads of the blocks that look for a place among counts.
const LOOKING: u32 = 256;

/// Where the digits of a key lie, and how many bits they have.
const DIGITS: [[u32; 2]; 3] = [[20, 11], [10, 10], [0, 10]];

/// Blocks and threads that go over columns and rows: fewer than a matrix has, so that each goes several times.
fn over(columns: usize) -> Shape {
    Shape::plane([columns.div_ceil(48).min(3), 5], [32, 1])
}

/// Sizes of a matrix whose values are selected.
#[derive(Clone, Copy, Debug)]
struct MatrixSizes {
    rows: usize,
    columns: usize,
    stride: usize,
}

/// Selects the `rank` lowest values of a matrix, or of its products with a factor for each column.
fn select(device: &mut Device, matrix: Buffer, sizes: MatrixSizes, factors: Argument, rank: usize) -> Buffer {
    let MatrixSizes { rows, columns, stride } = sizes;
    let selection = device.buffer(&[7u32; 5]);
    let histogram = device.buffer(&[9u32; BINS]);
    let ties = device.buffer(&vec![9u32; columns]);
    device.launch(
        "begin_selection",
        Shape::line(2, 64),
        arguments![selection, rank, histogram, ties, columns],
    );
    for [shift, bits] in DIGITS {
        let counted = arguments![matrix, rows, columns, stride, factors, selection, shift, bits, histogram];
        device.launch("count_keys", over(columns), counted);
        let chosen = arguments![selection, shift, bits, histogram];
        device.launch("choose_digit", Shape::line(1, LOOKING), chosen);
    }
    let arguments = arguments![matrix, rows, columns, stride, factors, selection, ties];
    device.launch("count_ties", over(columns), arguments);
    device.launch("end_selection", Shape::line(1, LOOKING), arguments);
    selection
}

/// Values of which many are equal, some of them but for the sign, and some are 0.
fn with_ties(seed: u64, count: usize) -> Vec<f32> {
    noise(seed, count).iter().map(|x| (x * 6.0).round() * 0.25).collect()
}

/// Values as their bits: 0 and -0 are not the same.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

//! Kernels that take parts of rows give the same bits where they read and write these at once and where they do so number by number.

use super::kernels::{Type, by_rows, parts};
use super::*;
use crate::cuda::shim::{Argument, Buffer, Device as CudaDevice, Shape, arguments};

/// Launches with matrices of their own, of which one has a number behind its own: its beginning is no multiple of 16 bytes.
struct Launches {
    device: CudaDevice,
    random: Random,
    /// The place of that matrix among those of each launch.
    moved: usize,
    /// Matrices of the launch to come.
    given: usize,
    /// Every matrix, with its bytes.
    matrices: Vec<(Buffer, usize)>,
}

impl Launches {
    fn new(moved: usize) -> Self {
        let (device, random) = (CudaDevice::default(), Random::default());
        Self { device, random, moved, given: 0, matrices: Vec::new() }
    }

    /// Normal numbers.
    fn matrix(&mut self, of: Type, rows: usize, columns: usize) -> Buffer {
        let count = rows * columns;
        let more = usize::from(self.given == self.moved);
        let numbers = of.rounded(&(self.random.tensor(&[count + 1]) * 3.0).unwrap());
        let buffer = of.buffer(&mut self.device, &numbers.narrow(0, 0, count + more).unwrap());
        self.given += 1;
        self.matrices.push((buffer, count * of.bytes()));
        buffer
    }

    fn launch(&mut self, kernel: &str, arguments: &[Argument]) {
        self.launch_as(kernel, parts(), arguments);
    }

    fn launch_as(&mut self, kernel: &str, shape: Shape, arguments: &[Argument]) {
        self.device.launch(kernel, shape, arguments);
        self.given = 0;
    }

    /// What the launches leave in the matrices.
    fn left(&self) -> Vec<Vec<u8>> {
        let memory = self.device.run_in_any_order();
        let left = |(buffer, bytes): &(Buffer, usize)| {
            let mut left = memory.values::<u8>(*buffer);
            left.truncate(*bytes);
            left
        };
        self.matrices.iter().map(left).collect()
    }

    /// Every kernel of `norm.cu` that takes parts, on rows of whole parts and where one of its sizes is no multiple of them. All matrices
    /// have a multiple of 16 bytes, so they begin at one.
    fn of_blocks(&mut self, of: Type) {
        let (rows, width) = (16, 40);
        for kernel in ["gelu", "add_bias"] {
            let (x, bias) = (self.matrix(of, rows, width), self.matrix(of, 1, width));
            self.launch(&of.kernel(kernel), arguments![x, bias, rows, width]);
        }
        let x = self.matrix(of, rows, width);
        self.launch(&of.kernel("silu"), arguments![x, rows, width]);
        let x = self.matrix(of, rows, width);
        self.launch(&of.kernel("limit"), arguments![x, rows, width, 0.75f32]);
        for (stride, gate) in [(2 * width, width), (2 * width + 1, width), (2 * width + 8, width + 3)] {
            let [x, product] = [0, 1].map(|_| self.matrix(of, rows, width));
            let (bias, values) = (self.matrix(of, 1, width), self.matrix(of, 8, stride));
            let arguments = arguments![x, product, bias, values, rows, width, 4u32, stride, gate];
            self.launch(&of.kernel("add_gated"), arguments);
        }
        let (x, added) = (self.matrix(of, 2 * rows, width), self.matrix(of, rows, width));
        self.launch(&of.kernel("add_rows"), arguments![x, added, 2u32, rows, width]);
        for (a, b) in [(width, 24), (width, 5), (3, width)] {
            let (left, right) = (self.matrix(of, rows, a), self.matrix(of, rows, b));
            let out = self.matrix(of, rows, a + b);
            self.launch(&of.kernel("join_columns"), arguments![left, right, rows, a, b, out]);
        }
        for (stride, scale) in [(2 * width, width), (2 * width + 1, width), (2 * width, width - 3)] {
            let (x, values) = (self.matrix(of, rows, width), self.matrix(of, 8, stride));
            let out = self.matrix(of, rows, width);
            let arguments = arguments![x, values, rows, width, 4u32, stride, scale, 0u32, out];
            self.launch_as(&of.kernel("norm_modulate"), by_rows(rows), arguments);
        }
        for heads in [1, 5, 4] {
            let [x, bias] = [rows, 1].map(|rows| self.matrix(of, rows, width));
            let (head, norm) = (width / heads, self.matrix(of, 4, width / heads));
            let arguments = arguments![x, bias, norm, rows, heads, head];
            self.launch_as(&of.kernel("head_norm"), by_rows(rows * heads), arguments);
        }
        // Heads of whole parts, and of 10 features.
        for pairs in [20, 4, 5] {
            let x = self.matrix(of, 2 * rows, width);
            let [cosines, sines] = [0, 1].map(|_| self.matrix(Type::F32, rows - 4, pairs));
            let arguments = arguments![x, cosines, sines, 2u32, rows, rows - 4, width, pairs];
            self.launch(&of.kernel("rotate"), arguments);
        }
    }

    /// Every kernel of `text.cu` that takes parts.
    fn of_text(&mut self, of: Type) {
        let (rows, width) = (9, 40);
        for function in 0..6u32 {
            let [product, gate] = [0, 1].map(|_| self.matrix(Type::F32, rows, width));
            let (bias, out) = (self.matrix(Type::F32, 1, width), self.matrix(of, rows, width));
            let arguments = arguments![product, bias, gate, rows, width, function, out];
            self.launch(&of.kernel("finish_product"), arguments);
        }
        let (product, out) = (self.matrix(Type::F32, rows, width), self.matrix(of, rows, width));
        let arguments = arguments![product, Argument::None, Argument::None, rows, width, 3u32, out];
        self.launch(&of.kernel("finish_product"), arguments);
        for (kernel, to) in [("widen", Type::F32), ("round_to_bf16", Type::Bf16)] {
            let (from, to) = (self.matrix(of, rows, width), self.matrix(to, rows, width));
            self.launch(&of.kernel(kernel), arguments![from, rows, width, to]);
        }
    }
}

#[test]
fn matrices_that_begin_anywhere_give_the_same_bits() {
    for of in Type::ALL {
        for launch_all in [Launches::of_blocks, Launches::of_text] {
            let left = |moved: usize| {
                let mut launches = Launches::new(moved);
                launch_all(&mut launches, of);
                launches.left()
            };
            let wanted = left(usize::MAX);
            for moved in 0..4 {
                assert!(left(moved) == wanted, "{of:?}, matrix {moved}");
            }
        }
    }
}

#[test]
fn weights_are_widened_and_rounded_to_the_processors_bits() {
    for (rows, width) in [(1, 1), (3, 7), (9, 40)] {
        for of in Type::ALL {
            let numbers = of.rounded(&Random::default().tensor(&[rows, width]));
            for (kernel, to) in [("widen", Type::F32), ("round_to_bf16", Type::Bf16)] {
                let mut device = CudaDevice::default();
                let from = of.buffer(&mut device, &numbers);
                let out = to.buffer(&mut device, &numbers.zeros_like().unwrap());
                device.launch(&of.kernel(kernel), parts(), arguments![from, rows, width, out]);
                to.hold(&device, out, &numbers, &format!("{kernel} of {rows} x {width}, {of:?}"));
            }
        }
    }
}

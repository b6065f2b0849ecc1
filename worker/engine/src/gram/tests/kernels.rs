//! The CUDA kernels of Grams hold to the processor's numbers.

use half::bf16;

use super::*;
use crate::cuda::shim::{Argument, Buffer, Device, Memory, Shape, arguments};

/// Tokens that one thread squares.
const PART: usize = 64;

/// What a verdict's places hold while nothing is refused.
const NONE: u32 = u32::MAX;

/// Values of which sums of products are exact in f32, so that they are the same in any order.
fn whole_numbers(seed: u64, count: usize) -> Vec<f32> {
    noise(seed, count).iter().map(|x| (x * 40.0).round() / 8.0).collect()
}

/// X^T X in f32, by definition.
fn square(rows: &[f32], n: usize) -> Vec<f32> {
    let mut square = vec![0.0; n * n];
    for row in rows.chunks(n) {
        (0..n * n).for_each(|at| square[at] += row[at / n] * row[at % n]);
    }
    square
}

/// Energies of an observation, in an `energy` that may hold earlier ones.
fn add_energy(
    device: &mut Device,
    rows: Buffer,
    kernel: &str,
    sizes: [usize; 2],
    alpha: f64,
    energy: Buffer,
) {
    let [tokens, n] = sizes;
    let count = tokens.div_ceil(PART);
    let parts = device.buffer(&vec![f64::NAN; count * n]);
    let blocks = n.div_ceil(64);
    device.launch(kernel, Shape::plane([blocks, count], [64, 1]), arguments![rows, tokens, n, parts]);
    device.launch("add_column_squares", Shape::line(blocks, 64), arguments![parts, count, n, alpha, energy]);
}

/// A Gram on the device.
struct DeviceGram {
    n: usize,
    kind: Accumulate,
    exponent: i32,
    sums: Buffer,
    spoilt: Buffer,
    /// Of each observation so far.
    verdicts: Vec<Buffer>,
}

impl DeviceGram {
    fn new(device: &mut Device, n: usize, kind: Accumulate, exponent: i32) -> Self {
        let sums = match kind {
            Accumulate::Exact => device.buffer(&vec![0i64; entries(n)]),
            Accumulate::F32 => device.buffer(&vec![0f32; entries(n)]),
        };
        let spoilt = device.buffer(&[0u32]);
        Self { n, kind, exponent, sums, spoilt, verdicts: Vec::new() }
    }

    /// Adds X^T X, cut into panels of `side` rows, each from its own diagonal to the right.
    fn observe(&mut self, device: &mut Device, rows: &[f32], alpha: f64, side: usize) {
        let n = self.n;
        let unit = (-f64::from(self.exponent)).exp2();
        let energy = device.buffer(&vec![0f64; n]);
        let verdict = device.buffer(&[NONE; 2]);
        let observed = device.buffer(rows);
        add_energy(device, observed, "column_squares_f32", [rows.len() / n, n], 1.0, energy);
        let admit = Shape::line(n.div_ceil(32), 32);
        match self.kind {
            Accumulate::Exact => {
                let arguments = arguments![energy, self.sums, n, alpha, unit, verdict];
                device.launch("admit_observation_exact", admit, arguments);
            }
            Accumulate::F32 => {
                let arguments = arguments![energy, self.sums, n, alpha, verdict];
                device.launch("admit_observation_f32", admit, arguments);
            }
        }
        let square = square(rows, n);
        for first in (0..n).step_by(side) {
            let (height, width) = (side.min(n - first), n - first);
            let stride = width + 3;
            let mut tile = vec![f32::NAN; (height - 1) * stride + width];
            for (i, row) in tile.chunks_mut(stride).enumerate() {
                row[..width].copy_from_slice(&square[(first + i) * n + first..][..width]);
            }
            let tile = device.buffer(&tile);
            // Of two warps each: fewer blocks than parts of rows, or more.
            let shape = Shape::line(1 + first % 7, 64);
            let (kernel, scale) = match self.kind {
                Accumulate::Exact => ("add_tile_exact", Argument::F64(alpha / unit)),
                Accumulate::F32 => ("add_tile_f32", Argument::F32(alpha as f32)),
            };
            let place = arguments![tile, height, width, stride, first, first, n];
            let rest = arguments![verdict, self.sums, self.spoilt];
            let count = if self.kind == Accumulate::Exact { 3 } else { 2 };
            device.launch(kernel, shape, &[&place[..], &[scale], &rest[..count]].concat());
        }
        self.verdicts.push(verdict);
    }

    fn sums(&self, memory: &Memory) -> GramSums {
        match self.kind {
            Accumulate::Exact => GramSums::Exact(memory.values(self.sums)),
            Accumulate::F32 => GramSums::F32(memory.values(self.sums)),
        }
    }

    /// What each observation came to, as the processor says it.
    fn results(&self, memory: &Memory) -> Vec<Result<(), GramError>> {
        let result = |verdict: &Buffer| match memory.values::<u32>(*verdict)[..] {
            [NONE, NONE] => Ok(()),
            [NONE, column] => Err(GramError::Overflow { column: column as usize, exponent: self.exponent }),
            [column, _] => Err(GramError::NotFinite { column: column as usize }),
            _ => unreachable!("a verdict has two places"),
        };
        self.verdicts.iter().map(result).collect()
    }
}

/// The same observations on the processor and on the device: sums and results must be the same bits.
fn hold(
    n: usize,
    kind: Accumulate,
    exponent: i32,
    all: &[(Vec<f32>, f64)],
    side: usize,
) -> Vec<Result<(), GramError>> {
    let mut gram = Gram::new(n, kind, exponent);
    let wanted: Vec<_> = all.iter().map(|(rows, alpha)| gram.observe(rows, *alpha)).collect();
    let mut device = Device::default();
    let mut found = DeviceGram::new(&mut device, n, kind, gram.exponent());
    all.iter().for_each(|(rows, alpha)| found.observe(&mut device, rows, *alpha, side));
    let memory = device.run_in_any_order();
    assert_eq!(found.results(&memory), wanted, "n {n}, {kind:?}");
    assert!(found.sums(&memory) == *gram.sums(), "n {n}, {kind:?}: the sums differ");
    assert_eq!(memory.values::<u32>(found.spoilt), [0]);
    wanted
}

#[test]
fn sums_are_the_processors_bits_at_any_width() {
    for (n, side) in [(1, 8), (3, 2), (31, 8), (67, 16), (130, 130)] {
        // Of one token any value does: there is one product to round.
        let mut all = vec![(noise(1, n), 0.8), (noise(2, n), 1.0 / 3.0)];
        all.extend([(whole_numbers(3, 5 * n), 1.2), (whole_numbers(4, 300 * n), 0.9)]);
        for (kind, exponent) in [(Accumulate::Exact, 33), (Accumulate::Exact, -3), (Accumulate::F32, 0)] {
            let results = hold(n, kind, exponent, &all, side);
            assert!(results.iter().all(Result::is_ok));
        }
    }
}

#[test]
fn what_the_processor_refuses_is_refused_and_changes_nothing() {
    let with = |at: usize, x: f32| {
        let mut rows = whole_numbers(5, 2 * 40);
        rows[at] = x;
        (rows, 1.0)
    };
    let all = [with(0, 1.0), with(7, f32::NAN), with(40 + 9, f32::INFINITY), with(11, 1e20), with(3, 4096.0)];
    for kind in [Accumulate::Exact, Accumulate::F32] {
        let results = hold(40, kind, 30, &all, 16);
        let not_finite = |column| Err(GramError::NotFinite { column });
        assert_eq!(results[1..4], [not_finite(7), not_finite(9), not_finite(11)]);
    }
    // 4096^2 * 2^30 passes 2^50; sums of f32 have room for it.
    assert_eq!(
        hold(40, Accumulate::Exact, 30, &all, 16)[4],
        Err(GramError::Overflow { column: 3, exponent: 30 })
    );
}

#[test]
fn a_sum_at_its_limit_is_refused() {
    let mut device = Device::default();
    let mut found = DeviceGram::new(&mut device, 1, Accumulate::Exact, 49);
    // 2^49 of 2^62 at a time: 2^13 - 1 of them fit.
    for (held, fits) in [(8190i64, true), (8191, false)] {
        found.sums = device.buffer(&[held << 49]);
        found.observe(&mut device, &[1.0], 1.0, 1);
        let memory = device.run_in_any_order();
        let wanted = if fits { Ok(()) } else { Err(GramError::Overflow { column: 0, exponent: 49 }) };
        assert_eq!(found.results(&memory).last(), Some(&wanted));
        assert_eq!(memory.values::<i64>(found.sums), [(held + i64::from(fits)) << 49]);
    }
}

#[test]
fn values_that_rounding_would_spoil_are_counted_and_left_out() {
    let mut device = Device::default();
    let largest = (1u64 << 51) as f32;
    let below = f32::from_bits(largest.to_bits() - 1);
    let tile = device.buffer(&[largest, f32::NAN, f32::NEG_INFINITY, below, -below, -largest]);
    let verdict = device.buffer(&[NONE; 2]);
    let (sums, spoilt) = (device.buffer(&[5i64; 21]), device.buffer(&[0u32]));
    let arguments = arguments![tile, 1u32, 6u32, 6u32, 0u32, 0u32, 6u32, 1.0f64, verdict, sums, spoilt];
    device.launch("add_tile_exact", Shape::line(1, 32), arguments);
    let memory = device.run_in_any_order();
    assert_eq!(memory.values::<u32>(spoilt), [4]);
    assert_eq!(memory.values::<i64>(sums)[..6], [5, 5, 5, 5 + below as i64, 5 - below as i64, 5]);
}

/// Parts of rows of several warps, of a tile that begins left of the diagonal and ends right of it or at the last column.
#[test]
fn a_tile_is_added_by_any_number_of_blocks() {
    let n = 600;
    for [row0, column0, rows, columns] in [
        [0, 0, 5, 600],
        [7, 3, 21, 530],
        [595, 0, 9, 700],
        [100, 110, 3, 1],
        [40, 0, 2, 30],
        [3, 300, 4, 270],
    ] {
        let stride = columns + 5;
        let tile = whole_numbers(6, rows * stride);
        let mut wanted = vec![7i64; entries(n)];
        for row in row0..n.min(row0 + rows) {
            for column in row.max(column0)..n.min(column0 + columns) {
                let value = f64::from(tile[(row - row0) * stride + column - column0]);
                wanted[row_start(n, row) + column - row] += (value * 24.0) as i64;
            }
        }
        for shape in [Shape::line(1, 32), Shape::line(2, 96), Shape::line(9, 64), Shape::line(3, 1024)] {
            let mut device = Device::default();
            let (on_device, verdict) = (device.buffer(&tile), device.buffer(&[NONE; 2]));
            let (sums, spoilt) = (device.buffer(&vec![7i64; entries(n)]), device.buffer(&[0u32]));
            let place = arguments![on_device, rows, columns, stride, row0, column0, n];
            let rest = arguments![24.0f64, verdict, sums, spoilt];
            device.launch("add_tile_exact", shape, &[&place[..], &rest[..]].concat());
            let memory = device.run_in_any_order();
            assert!(memory.values::<i64>(sums) == wanted, "{row0}, {column0}: {shape:?}");
            assert_eq!(memory.values::<u32>(spoilt), [0]);
        }
    }
}

#[test]
fn energies_are_the_processors() {
    for (n, tokens) in [(1, 1), (5, 63), (70, 64), (33, 65), (20, 1000)] {
        let rows = noise(7, tokens * n);
        let halves: Vec<bf16> = rows.iter().map(|x| bf16::from_f32(*x)).collect();
        let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let mut device = Device::default();
        let energies = [device.buffer(&vec![0.5f64; n]), device.buffer(&vec![0.5f64; n])];
        let buffers = [device.buffer(&rows), device.buffer(&halves)];
        for ((rows, energy), kernel) in
            buffers.into_iter().zip(energies).zip(["column_squares_f32", "column_squares_bf16"])
        {
            add_energy(&mut device, rows, kernel, [tokens, n], 0.7, energy);
        }
        let memory = device.run_in_any_order();
        for (rows, energy) in [rows, widened].iter().zip(energies) {
            let mut wanted = vec![0.5; n];
            column_energy(rows, n, 0.7, &mut wanted);
            let found = memory.values::<f64>(energy);
            if tokens <= PART {
                assert_eq!(found, wanted, "{tokens} x {n}");
            }
            // Several parts are added up in another order than the processor's: each addition rounds by at most 2^-53.
            let near = |(f, w): (&f64, &f64)| (f - w).abs() <= tokens as f64 * f64::EPSILON * w;
            assert!(found.iter().zip(&wanted).all(near), "{tokens} x {n}: {found:?} {wanted:?}");
        }
    }
}

#[test]
fn the_largest_of_the_diagonal_is_found() {
    for n in [1, 40, 257] {
        let gram = gathered(n, Accumulate::Exact, &observations(n, &[3]));
        let GramSums::Exact(sums) = gram.sums() else { unreachable!("exact sums were asked for") };
        let mut device = Device::default();
        let (sums, largest) = (device.buffer(sums), device.buffer(&[0i64]));
        device.launch("largest_of_diagonal", Shape::line(n.div_ceil(64), 64), arguments![sums, n, largest]);
        let found = device.run_in_any_order().values::<i64>(largest)[0];
        assert_eq!(Some(found), gram.diagonal_units().unwrap().into_iter().max());
    }
}

#[test]
fn no_two_threads_race() {
    let mut device = Device::default();
    let mut gram = DeviceGram::new(&mut device, 40, Accumulate::Exact, 30);
    gram.observe(&mut device, &whole_numbers(9, 3 * 40), 0.9, 24);
    let largest = device.buffer(&[0i64]);
    device.launch("largest_of_diagonal", Shape::line(1, 64), arguments![gram.sums, 40u32, largest]);
    let memory = device.run_sanitized();
    assert!(gram.sums(&memory) == gram.sums(&device.run(0)));
}

#[test]
fn rows_get_ones_and_zeros_behind_their_features() {
    let rows = whole_numbers(3, 5 * 7);
    let mut device = Device::default();
    let wide = device.buffer(&rows);
    let half = device.buffer(&rows.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
    let [to, half_to] = [device.buffer(&[f32::NAN; 5 * 16]), device.buffer(&[bf16::NAN; 5 * 16])];
    let shape = Shape::plane([2, 3], [8, 1]);
    device.launch("pad_rows_f32", shape, arguments![wide, 5u32, 7u32, 8u32, 16u32, to]);
    device.launch("pad_rows_bf16", shape, arguments![half, 5u32, 7u32, 9u32, 16u32, half_to]);
    let memory = device.run_in_any_order();
    let padded = |ones: usize| -> Vec<f32> {
        let row = |row: &[f32]| [row, &[1.0; 9][..ones], &[0.0; 9][ones..]].concat();
        rows.chunks(7).flat_map(row).collect()
    };
    assert_eq!(memory.values::<f32>(to), padded(1));
    let found: Vec<f32> = memory.values::<bf16>(half_to).iter().map(|x| x.to_f32()).collect();
    assert_eq!(found, padded(2));
}

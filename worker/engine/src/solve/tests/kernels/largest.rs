use obsdiff_proto::Target;

use super::*;
use crate::solve::largest::{key, largest};
use crate::solve::{BLOCK, SolveError, magnitude};

/// A matrix after its `rank` lowest values were set to 0 on the device.
fn zeroed(matrix: &[f32], columns: usize, rank: usize) -> Vec<f32> {
    let mut device = Device::default();
    let sizes = MatrixSizes { rows: matrix.len() / columns, columns, stride: columns };
    let buffer = device.buffer(matrix);
    let selection = select(&mut device, buffer, sizes, Argument::None, rank);
    let arguments = arguments![buffer, sizes.rows, columns, columns, Argument::None, selection];
    device.launch("zero_lowest", over(columns), arguments);
    device.run_in_any_order().values(buffer)
}

/// The same on the processor.
fn wanted(matrix: &[f32], columns: usize, rank: usize) -> Vec<f32> {
    let kept = largest(matrix, columns, rank);
    let value = |(at, x): (usize, &f32)| {
        if key(*x) < kept.least || kept.tied.binary_search(&at).is_ok() { 0.0 } else { *x }
    };
    matrix.iter().enumerate().map(value).collect()
}

#[test]
fn exactly_so_many_of_the_lowest_go_ties_by_column_and_row() {
    for (rows, columns) in [(1, 1), (1, 300), (7, 1), (37, 29), (300, 3), (5, 530)] {
        let count = rows * columns;
        for (kind, matrix) in
            [noise(1, count), with_ties(2, count), vec![-0.5; count]].into_iter().enumerate()
        {
            for rank in [0, 1, count / 3, count / 2, count - 1, count] {
                let found = zeroed(&matrix, columns, rank);
                assert_eq!(
                    found,
                    wanted(&matrix, columns, rank),
                    "{rows} x {columns}, kind {kind}, {rank} go"
                );
                let zeros = |values: &[f32]| values.iter().filter(|x| **x == 0.0).count();
                assert_eq!(
                    zeros(&found),
                    rank.max(zeros(&matrix)),
                    "{rows} x {columns}, kind {kind}, {rank} go"
                );
            }
        }
    }
}

#[test]
fn values_that_differ_in_any_bit_are_told_apart() {
    let matrix: Vec<f32> = (0..3_000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 7919 % 300_000)).collect();
    for rank in [1, 777, 1_500, 2_999] {
        assert_eq!(zeroed(&matrix, 100, rank), wanted(&matrix, 100, rank), "{rank} go");
    }
    let extremes: Vec<f32> =
        [0u32, 1, 0x7f_ffff, 0x80_0000, 0x7f7f_ffff, 0x8000_0000, 0x8000_0001, 0xff7f_ffff]
            .map(f32::from_bits)
            .to_vec();
    for rank in 0..=8 {
        assert_eq!(zeroed(&extremes, 4, rank), wanted(&extremes, 4, rank), "{rank} go");
    }
}

#[test]
fn a_block_of_columns_is_pruned_as_by_magnitude() {
    let (rows, n) = (21, BLOCK + 37);
    let weight = with_ties(3, rows * n);
    let ratio = 0.45;
    let mut device = Device::default();
    let buffer = device.buffer(&weight);
    // The second block: a matrix within the wider one begins at its first value.
    let second: Vec<f32> = weight.chunks(n).flat_map(|row| &row[BLOCK..]).copied().collect();
    let sizes = MatrixSizes { rows, columns: BLOCK, stride: n };
    let rank = (ratio * (rows * BLOCK) as f64) as usize;
    let selection = select(&mut device, buffer, sizes, Argument::None, rank);
    let arguments = arguments![buffer, rows, BLOCK, n, Argument::None, selection];
    device.launch("zero_lowest", over(BLOCK), arguments);
    let found: Vec<f32> = device.run_in_any_order().values(buffer);
    let mut wanted = weight;
    magnitude(&mut wanted, n, &Target::Unstructured { ratio }).unwrap();
    for (found, wanted) in found.chunks(n).zip(wanted.chunks(n)) {
        assert_eq!(found[..BLOCK], wanted[..BLOCK]);
    }
    let untouched: Vec<f32> = found.chunks(n).flat_map(|row| &row[BLOCK..]).copied().collect();
    assert_eq!(untouched, second);
}

#[test]
fn a_value_that_is_not_finite_is_found_where_the_processor_finds_it() {
    let n = 40;
    for (places, value) in [
        (vec![], 0.0),
        (vec![0], f32::NAN),
        (vec![399, 123, 300], f32::INFINITY),
        (vec![399], f32::NEG_INFINITY),
    ] {
        let mut matrix = noise(4, 10 * n);
        places.iter().for_each(|at| matrix[*at] = value);
        let mut device = Device::default();
        let (buffer, place) = (device.buffer(&matrix), device.buffer(&[u64::MAX]));
        device.launch("first_not_finite", Shape::line(3, 32), arguments![buffer, 10u32, n, place]);
        let found = device.run_in_any_order().values::<u64>(place)[0];
        let result = magnitude(&mut matrix, n, &Target::Unstructured { ratio: 0.0 });
        let wanted = match result {
            Err(SolveError::WeightNotFinite { row, column }) => (row * n + column) as u64,
            Ok(()) => u64::MAX,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(found, wanted);
    }
}

#[test]
fn no_two_threads_race() {
    let matrix = with_ties(5, 12 * 40);
    let mut device = Device::default();
    let (buffer, place) = (device.buffer(&matrix), device.buffer(&[u64::MAX]));
    device.launch("first_not_finite", Shape::line(2, 64), arguments![buffer, 12u32, 40u32, place]);
    let sizes = MatrixSizes { rows: 12, columns: 40, stride: 40 };
    let selection = select(&mut device, buffer, sizes, Argument::None, 200);
    device.launch(
        "zero_lowest",
        over(40),
        arguments![buffer, 12u32, 40u32, 40u32, Argument::None, selection],
    );
    assert_eq!(device.run_sanitized().values::<f32>(buffer), wanted(&matrix, 40, 200));
}

use obsdiff_proto::Target;

use super::*;
use crate::solve::obs::share;
use crate::solve::span::Span;
use crate::solve::tests::{factor, gram};
use crate::solve::{BLOCK, Factor, Obs};

/// Warps of a block: each takes a row.
const WARPS: usize = 3;

/// A block of U with rows side by side, and 1 / U_jj.
fn block_of_u(span: &Span, start: usize) -> [Vec<f32>; 2] {
    let part = span.part(start);
    let b = part.columns;
    let u = (0..b * b).map(|at| if at / b <= at % b { part.row(at % b, 0, b)[at / b] } else { 0.0 });
    [u.collect(), part.reciprocal.clone()]
}

/// Launches the pruning of one block, whose columns begin at `start`, and gives back the weight and the errors.
fn prune_block(
    device: &mut Device,
    span: &Span,
    start: usize,
    settled: &[f32],
    weight: &[f32],
    target: Target,
) -> [Buffer; 2] {
    let n = span.columns().len();
    let [u, reciprocal] = block_of_u(span, start).map(|values| device.buffer(&values));
    let columns = span.part(start).columns;
    let rows = settled.len() / columns;
    let settled = device.buffer(settled);
    // Kernels get the first column of the block; a matrix of one row less one part of a row is all that they may touch from there.
    let weight = device.buffer(&weight[start..]);
    let errors = device.buffer(&vec![f32::NAN; rows * columns]);
    let shape = Shape::line(rows.div_ceil(WARPS), 32 * WARPS as u32);
    match target {
        Target::Unstructured { ratio } => {
            let sizes = MatrixSizes { rows, columns, stride: columns };
            let selection = select(device, settled, sizes, reciprocal.into(), share(ratio, rows * columns));
            let arguments = arguments![settled, u, reciprocal, rows, columns, n, selection, weight, errors];
            device.launch("prune_block_lowest", shape, arguments);
        }
        Target::NToM { n: pruned, m } => {
            let arguments = arguments![settled, u, reciprocal, rows, columns, n, pruned, m, weight, errors];
            device.launch("prune_block_n_to_m", shape, arguments);
        }
        Target::Structured { .. } => unreachable!("heads and neurons are no weights of a block"),
    }
    [weight, errors]
}

/// What a block took off its own columns is what its errors say: settled - E U = weight, within rounding.
fn hold_errors(errors: &[f32], settled: &[f32], weight: &[f32], span: &Span, start: usize) {
    let (columns, n) = (span.part(start).columns, span.columns().len());
    let [u, _] = block_of_u(span, start);
    for (row, errors) in errors.chunks(columns).enumerate() {
        for j in 0..columns {
            let spread: f64 = (0..=j).map(|i| f64::from(errors[i]) * f64::from(u[i * columns + j])).sum();
            let wanted = f64::from(settled[row * columns + j]) - spread;
            let found = f64::from(weight[row * n + start + j]);
            assert!((found - wanted).abs() < 1e-3, "row {row}, column {j}: {found} {wanted}");
        }
    }
}

/// All blocks, brought up to date by products in f64.
fn pruned(dense: &[f32], factor: &Factor, target: Target) -> Vec<f32> {
    let n = factor.width();
    let width = match target {
        Target::NToM { m, .. } => m * (BLOCK / m).max(1),
        _ => BLOCK,
    };
    let mut span = Span::default();
    span.begin(n, width.min(n), n.div_ceil(width));
    span.move_to(factor, 0..n);
    let mut weight = dense.to_vec();
    for row in weight.chunks_mut(n) {
        factor.dead().for_each(|j| row[j] = 0.0);
    }
    let mut changes = vec![0.0f32; weight.len()];
    for start in span.starts() {
        let within = span.within(start);
        let x = span.x(0..start, within.clone());
        let settle = |(row, changes): (&[f32], &[f32])| {
            let of = |c: usize| {
                let change: f64 = (0..start).map(|i| f64::from(changes[i]) * f64::from(x[(i, c)])).sum();
                (f64::from(row[start + c]) - change) as f32
            };
            (0..within.len()).map(of).collect::<Vec<f32>>()
        };
        let settled: Vec<f32> = weight.chunks(n).zip(changes.chunks(n)).flat_map(settle).collect();
        let mut device = Device::default();
        let [found, errors] = prune_block(&mut device, &span, start, &settled, &weight, target);
        let memory = device.run_in_any_order();
        let before = weight.clone();
        weight[start..].copy_from_slice(&memory.values::<f32>(found));
        let all = changes.iter_mut().zip(weight.iter().zip(&before));
        all.for_each(|(change, (after, before))| *change += after - before);
        hold_errors(&memory.values(errors), &settled, &weight, &span, start);
    }
    weight
}

const TARGETS: [Target; 5] = [
    Target::Unstructured { ratio: 0.5 },
    Target::Unstructured { ratio: 1.0 },
    Target::NToM { n: 2, m: 4 },
    Target::NToM { n: 3, m: 7 },
    Target::NToM { n: 30, m: 100 },
];

#[test]
fn a_block_is_pruned_to_the_processors_bits() {
    for (rows, n, dead) in
        [(1, 1, vec![]), (5, 31, vec![2]), (100, 33, vec![]), (21, 98, vec![]), (7, BLOCK, vec![127])]
    {
        let factor = factor(&gram(n as u64, n, &dead), n, 0.01);
        for (kind, dense) in [noise(1, rows * n), with_ties(2, rows * n)].into_iter().enumerate() {
            for target in TARGETS {
                // A block of N:M has whole groups, where there is one at all.
                if matches!(target, Target::NToM { m, .. } if n > m * (BLOCK / m)) {
                    continue;
                }
                let mut wanted = dense.clone();
                Obs::default().prune(&mut wanted, &factor, &target).unwrap();
                assert_eq!(pruned(&dense, &factor, target), wanted, "{rows} x {n}, kind {kind}, {target:?}");
            }
        }
    }
}

#[test]
fn weights_that_score_the_same_go_by_column_and_row() {
    let (rows, n) = (9, 40);
    // Features that have nothing to do with each other and are of the same size: a weight's score is its size, and no weight moves.
    let gram: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    let factor = factor(&gram, n, 0.01);
    let dense = with_ties(4, rows * n);
    for target in TARGETS {
        let mut wanted = dense.clone();
        Obs::default().prune(&mut wanted, &factor, &target).unwrap();
        assert_eq!(pruned(&dense, &factor, target), wanted, "{target:?}");
    }
}

#[test]
fn several_blocks_come_to_nearly_the_processors_weights() {
    let (rows, n) = (24, 2 * BLOCK + 44);
    let factor = factor(&gram(5, n, &[200]), n, 0.01);
    let dense = noise(6, rows * n);
    for target in [TARGETS[0], TARGETS[2]] {
        let mut wanted = dense.clone();
        Obs::default().prune(&mut wanted, &factor, &target).unwrap();
        let found = pruned(&dense, &factor, target);
        let pairs = || found.iter().zip(&wanted);
        let other_zeros = pairs().filter(|(f, w)| (**f == 0.0) != (**w == 0.0)).count();
        assert!(
            other_zeros * 200 <= found.len(),
            "{target:?}: {other_zeros} of {} zeros differ",
            found.len()
        );
        let off: f64 = pairs().map(|(f, w)| f64::from(f - w).powi(2)).sum();
        let size: f64 = wanted.iter().map(|w| f64::from(*w).powi(2)).sum();
        assert!(off < 1e-3 * size, "{target:?}: {off} {size}");
    }
}

#[test]
fn no_two_threads_race() {
    let (rows, n) = (5, 40);
    let factor = factor(&gram(7, n, &[]), n, 0.01);
    let mut span = Span::default();
    span.begin(n, n, 1);
    span.move_to(&factor, 0..n);
    let weight = noise(8, rows * n);
    for target in [TARGETS[0], TARGETS[2]] {
        let mut device = Device::default();
        let [found, _] = prune_block(&mut device, &span, 0, &weight, &weight, target);
        let (raced, wanted) = (device.run_sanitized(), device.run(0));
        assert_eq!(raced.values::<f32>(found), wanted.values::<f32>(found));
    }
}

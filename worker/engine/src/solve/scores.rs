//! Pruning by scores that need no factorisation, and that move no weight that stays.

use obsdiff_proto::Target;
use rayon::prelude::*;

use super::obs::share;
use super::{BLOCK, SolveError, check};

/// Prunes the weights of smallest absolute value of `weight` (rows x `n`, row-major) in place.
///
/// Counts are those of [`super::Obs`]: unstructured targets take floor(ratio * weights) of each block of [`BLOCK`] columns over
/// all rows, N:M takes N of each group of a row; ties go by (column, row).
///
/// # Errors
/// When the weight is not rows x n or not finite, or the target cannot be met.
pub fn magnitude(weight: &mut [f32], n: usize, target: &Target) -> Result<(), SolveError> {
    check(weight, n, target)?;
    match *target {
        Target::Structured { .. } => return Err(SolveError::Target(*target)),
        Target::NToM { n: pruned, m } => prune_groups(weight, n, pruned, m, |w, _| w.abs()),
        Target::Unstructured { ratio } => {
            let blocks: Vec<usize> = (0..n).step_by(BLOCK).collect();
            let rows = weight.len() / n;
            let lowest = |&start: &usize| {
                let columns = BLOCK.min(n - start);
                let mut scored: Vec<(u32, usize)> = (0..columns * rows)
                    .map(|at| (weight[at % rows * n + start + at / rows].abs().to_bits(), at))
                    .collect();
                keep_lowest(&mut scored, share(ratio, columns * rows));
                scored.into_iter().map(|(_, at)| at % rows * n + start + at / rows).collect()
            };
            let pruned: Vec<Vec<usize>> = blocks.par_iter().map(lowest).collect();
            pruned.into_iter().flatten().for_each(|at| weight[at] = 0.0);
        }
    }
    Ok(())
}

/// Prunes by |w| times the norm of the input it multiplies, as Wanda does (arXiv 2306.11695): `diagonal` holds the Gram's S_jj, the
/// squares of those norms. Unstructured targets take floor(ratio * n) of each row, N:M takes N of each group; ties go by column.
/// A column with S_jj = 0 scores 0.
///
/// # Errors
/// When the weight is not rows x n or not finite, or the target cannot be met.
pub fn wanda(weight: &mut [f32], diagonal: &[f64], target: &Target) -> Result<(), SolveError> {
    let n = diagonal.len();
    check(weight, n, target)?;
    let norms: Vec<f32> = diagonal.iter().map(|d| d.max(0.0).sqrt() as f32).collect();
    if !norms.iter().all(|x| x.is_finite()) {
        return Err(SolveError::GramNotFinite);
    }
    let score = |w: f32, j: usize| (w * norms[j]).abs();
    match *target {
        Target::Structured { .. } => return Err(SolveError::Target(*target)),
        Target::NToM { n: pruned, m } => prune_groups(weight, n, pruned, m, score),
        Target::Unstructured { ratio } => {
            weight.par_chunks_exact_mut(n).for_each(|row| prune_lowest(row, 0, share(ratio, n), &score));
        }
    }
    Ok(())
}

/// Prunes `pruned` of every `m` consecutive weights of each row, floor(pruned * tail / m) of a shorter tail.
fn prune_groups(
    weight: &mut [f32],
    n: usize,
    pruned: usize,
    m: usize,
    score: impl Fn(f32, usize) -> f32 + Sync,
) {
    weight.par_chunks_exact_mut(n).for_each(|row| {
        for (g, group) in row.chunks_mut(m).enumerate() {
            let count = pruned * group.len() / m;
            prune_lowest(group, g * m, count, &score);
        }
    });
}

/// Prunes the `count` weights of a row's part that score lowest; the part starts at column `first`.
fn prune_lowest(part: &mut [f32], first: usize, count: usize, score: &impl Fn(f32, usize) -> f32) {
    let scored = part.iter().enumerate().map(|(j, w)| (score(*w, first + j).to_bits(), j));
    let mut scored: Vec<(u32, usize)> = scored.collect();
    keep_lowest(&mut scored, count);
    scored.into_iter().for_each(|(_, j)| part[j] = 0.0);
}

/// Cuts `scored` down to its `count` lowest, in no order.
fn keep_lowest(scored: &mut Vec<(u32, usize)>, count: usize) {
    if 0 < count && count < scored.len() {
        scored.select_nth_unstable(count - 1);
    }
    scored.truncate(count);
}

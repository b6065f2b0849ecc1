//! What solving holds at most, in bytes, from shapes alone: the names of [`Factor`](super::Factor), [`Obs`](super::Obs) and
//! [`structured`](super::structured) say where each comes from.

use super::factor::stride;
use super::obs::SPAN;
use super::refine::REFINED_TOGETHER;
use super::strips::LANES;
use super::structured::{DELAY, ROWS};
use super::{BLOCK, SIDE_BY_SIDE, SMALL_LINEAR, cholesky};

const F32: u64 = 4;
const F64: u64 = 8;

/// A site's linears, each with so many `rows` and n columns, solved by its Gram in f32: the square; what a span of blocks is multiplied
/// by; every pruned linear until the last is stored; of the largest one its dense weight and a copy; and four bands where linears are
/// refined. While a factorisation is tried again in f64 there is only that. A part is stored, and read back, as an object beside its
/// tensors.
pub fn site_bytes(n: usize, rows: &[usize], refine: u32) -> u64 {
    let (n, row) = (n as u64, stride(n) as u64);
    let all = rows.iter().sum::<usize>() as u64;
    let most = rows.iter().copied().max().unwrap_or(0);
    let bands = if refine > 0 { 4 * most.min(REFINED_TOGETHER) as u64 } else { 0 };
    let spanned = (SPAN * BLOCK) as u64;
    let factor = F32 * (n * row + factor_blocks(n));
    let span = F32 * (n.min(spanned) * row + spanned * BLOCK as u64);
    let solving = factor + span + F32 * n * (all + 2 * most as u64 + bands);
    solving.max((F32 + F64) * n * row).max(parts_bytes(n * all))
}

/// The same for linears that are pruned by scores which need no Gram.
pub fn scored_bytes(n: usize, rows: &[usize]) -> u64 {
    let all = rows.iter().sum::<usize>() as u64;
    let most = rows.iter().copied().max().unwrap_or(0) as u64;
    (F32 * n as u64 * (all + 2 * most)).max(parts_bytes(n as u64 * all))
}

/// Numbers of the blocks beside a square of width n while its Cholesky factor is formed and inverted: those on the diagonal, and a row of
/// blocks.
const fn factor_blocks(n: u64) -> u64 {
    2 * (cholesky::SIDE as u64) * n.next_multiple_of(cholesky::SIDE as u64)
}

/// A site's linears, each with so many `rows` and n columns, pruned by alternating directions: A, a square while an inverse is formed, or
/// the largest linear's dense weight, a copy, and what telling its error and refining it takes, or the same of small linears side by side,
/// each pruned to so many `targets`, on so many `threads` in buffers of their own; and every pruned linear until the last is stored.
pub fn alternating_bytes(n: usize, rows: &[usize], refine: u32, targets: usize, threads: usize) -> u64 {
    let (n, square) = (n as u64, (n * stride(n)) as u64);
    let all = rows.iter().sum::<usize>() as u64;
    let most = rows.iter().copied().max().unwrap_or(0);
    let bands = if refine > 0 { 4 } else { 2 };
    let small = || rows.iter().copied().filter(|rows| *rows as u64 * n <= SMALL_LINEAR as u64);
    let together = SIDE_BY_SIDE.min(small().count() * targets);
    let buffers = 2 * together as u64 + together.min(threads) as u64 * (2 + bands);
    let side_by_side = small().max().unwrap_or(0) as u64 * buffers;
    let one = 2 * most as u64 + bands * most.min(REFINED_TOGETHER) as u64;
    let working = (square + factor_blocks(n)).max(n * one.max(side_by_side));
    (F32 * (square + working + n * all)).max(F32 * square + parts_bytes(n * all))
}

/// What alternating directions keep from one site of a package to the next, for linears of these rows and columns: so many inverses, a
/// dense weight and its change.
pub fn alternating_kept_bytes(linears: &[(usize, usize)], inverses: usize) -> u64 {
    let squares = linears.iter().map(|(_, n)| (n * stride(*n)) as u64).max().unwrap_or(0);
    let weights = linears.iter().map(|(rows, n)| (rows * n) as u64).max().unwrap_or(0);
    F32 * (inverses as u64 * squares + 2 * weights)
}

/// What is kept from one linear of a package to the next, for linears of these rows and columns: for each strip of rows the changes of
/// all columns, and a span's weights.
pub fn kept_bytes(linears: &[(usize, usize)]) -> u64 {
    let strips = |rows: usize| rows.div_ceil(LANES);
    let most = linears.iter().map(|(rows, _)| strips(*rows)).max().unwrap_or(0);
    let columns = |strip: usize| {
        let widths = linears.iter().filter(|(rows, _)| strips(*rows) > strip).map(|(_, n)| *n);
        widths.max().map_or(0, |n| n + n.min(SPAN * BLOCK))
    };
    (0..most).map(|strip| F32 * (LANES * columns(strip)) as u64).sum()
}

/// Structures that are solved together, whose outputs have these rows and columns, and of which so many numbers change: of each output S,
/// S about the means, H^-1 and the weight before and now, in f64; H^-1 and the weight once more where they are `copied`, as each structure
/// is surveyed on its own; while one is made, two squares more, and of each of so many `threads` the rows of H^-1 that it forms; while its
/// parts go, W^T W and the removals that are applied together.
pub fn structure_bytes(outputs: &[(usize, usize)], numbers: usize, copied: bool, threads: usize) -> u64 {
    let sizes = || outputs.iter().map(|(rows, n)| (*rows as u64, *n as u64));
    let copies = u64::from(copied);
    let held: u64 = sizes().map(|(rows, n)| F64 * ((3 + copies) * n * n + (2 + copies) * rows * n)).sum();
    let (delay, formed) = (DELAY as u64, (threads * ROWS) as u64);
    let passing = |(rows, n): (u64, u64)| F64 * (2 * n * n + formed * n).max(n * n + delay * (7 * n + rows));
    held + sizes().map(passing).max().unwrap_or(0).max(parts_bytes(numbers as u64))
}

/// Tensors of so many numbers, and the object that they are stored in or read from.
const fn parts_bytes(numbers: u64) -> u64 {
    2 * F32 * numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_keep_what_the_widest_linear_that_reached_them_took() {
        let strip = |n: usize| (4 * LANES * (n + n.min(512))) as u64;
        assert_eq!(kept_bytes(&[]), 0);
        assert_eq!(kept_bytes(&[(96, 1000)]), strip(1000));
        assert_eq!(kept_bytes(&[(97, 1000), (400, 128)]), 2 * strip(1000) + 3 * strip(128));
    }

    #[test]
    fn a_site_takes_a_square_and_its_linears() {
        let n = 4096;
        let square = 4 * (n * stride(n)) as u64;
        // The f64 square of a second try is the most where few rows are solved.
        assert_eq!(site_bytes(n, &[1], 0), 3 * square);
        let wide = site_bytes(n, &[n, n, n], 5);
        assert!(wide > 8 * square && wide < 10 * square, "{}", wide as f64 / square as f64);
        assert!(site_bytes(n, &[n, n, n], 0) < wide);
        assert!(scored_bytes(n, &[n, n, n]) < site_bytes(n, &[n, n, n], 0));
    }
}

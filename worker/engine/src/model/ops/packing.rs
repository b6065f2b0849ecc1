//! A linear's weight brought into the order in which [`multiply`](super::product::multiply) reads it.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256;

#[cfg(target_arch = "x86_64")]
use pulp::{cast, x86::V3};

/// Columns of a panel.
pub(super) const PANEL: usize = 64;

/// Rows of the weight that are transposed together.
const GROUP: usize = 8;

/// A run of inputs of a weight's rows.
#[derive(Clone, Copy)]
pub(super) struct WeightBlock<'a> {
    /// `out x n`.
    pub(super) weight: &'a [f32],
    pub(super) n: usize,
    /// The first input, and how many.
    pub(super) first: usize,
    pub(super) depth: usize,
}

/// Writes a block to `panels`, transposed: for every [`PANEL`] outputs a matrix of `depth x PANEL`. The columns past the last output
/// are left as they are.
pub(super) fn pack(panels: &mut [f32], block: WeightBlock<'_>) {
    let pack = Pack { panels, block };
    // AVX's shuffles are written out: the compiler finds none of them by itself.
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V3::try_new() {
        return simd.vectorize(
            #[inline(always)]
            || {
                pack.run(
                    #[inline(always)]
                    |rows| shuffled(simd, rows),
                );
            },
        );
    }
    pack.run(transposed);
}

struct Pack<'a> {
    panels: &'a mut [f32],
    block: WeightBlock<'a>,
}

impl Pack<'_> {
    #[inline(always)]
    fn run(self, transpose: impl Fn(&[[f32; GROUP]; GROUP]) -> [[f32; GROUP]; GROUP]) {
        let WeightBlock { weight, n, first, depth } = self.block;
        let panels = self.panels.chunks_exact_mut(depth * PANEL);
        for (panel, rows) in panels.zip(weight.chunks(PANEL * n)) {
            let (lines, _) = panel.as_chunks_mut::<PANEL>();
            let (squares, rest) = lines.as_chunks_mut::<GROUP>();
            for (group, rows) in rows.chunks(GROUP * n).enumerate() {
                let (column, count) = (group * GROUP, rows.len() / n);
                let inputs = |row: usize| &rows[row * n + first..][..depth];
                // Squares first, then what fills none.
                let mut single = 0;
                if count == GROUP {
                    let rows: [_; GROUP] = std::array::from_fn(|row| inputs(row).as_chunks::<GROUP>().0);
                    for (k, lines) in squares.iter_mut().enumerate() {
                        let mut square = [[0.0; GROUP]; GROUP];
                        for (numbers, row) in square.iter_mut().zip(rows) {
                            *numbers = row[k];
                        }
                        for (line, numbers) in lines.iter_mut().zip(transpose(&square)) {
                            line[column..][..GROUP].copy_from_slice(&numbers);
                        }
                    }
                    single = squares.len();
                }
                let lines = squares[single..].as_flattened_mut().iter_mut().chain(rest.iter_mut());
                for (k, line) in (single * GROUP..).zip(lines) {
                    for row in 0..count {
                        line[column + row] = inputs(row)[k];
                    }
                }
            }
        }
    }
}

/// The transposed matrix, one number after the other.
#[inline(always)]
fn transposed(rows: &[[f32; GROUP]; GROUP]) -> [[f32; GROUP]; GROUP] {
    std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
}

/// The transposed matrix by AVX's shuffles: pairs of rows are interleaved, then pairs of pairs, then both halves of the vectors.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn shuffled(simd: V3, rows: &[[f32; GROUP]; GROUP]) -> [[f32; GROUP]; GROUP] {
    let [a, b, c, d, e, f, g, h] = *rows;
    let [a0, a1, a2, a3] = interleaved(simd, [cast(a), cast(b), cast(c), cast(d)]);
    let [b0, b1, b2, b3] = interleaved(simd, [cast(e), cast(f), cast(g), cast(h)]);
    [
        cast(simd.avx._mm256_permute2f128_ps::<0x20>(a0, b0)),
        cast(simd.avx._mm256_permute2f128_ps::<0x20>(a1, b1)),
        cast(simd.avx._mm256_permute2f128_ps::<0x20>(a2, b2)),
        cast(simd.avx._mm256_permute2f128_ps::<0x20>(a3, b3)),
        cast(simd.avx._mm256_permute2f128_ps::<0x31>(a0, b0)),
        cast(simd.avx._mm256_permute2f128_ps::<0x31>(a1, b1)),
        cast(simd.avx._mm256_permute2f128_ps::<0x31>(a2, b2)),
        cast(simd.avx._mm256_permute2f128_ps::<0x31>(a3, b3)),
    ]
}

/// The transposed `4 x 4` matrices in the low halves and in the high halves of four vectors.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleaved(simd: V3, [a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let (ab, cd) = (simd.avx._mm256_unpacklo_ps(a, b), simd.avx._mm256_unpacklo_ps(c, d));
    let (ab_high, cd_high) = (simd.avx._mm256_unpackhi_ps(a, b), simd.avx._mm256_unpackhi_ps(c, d));
    [
        simd.avx._mm256_shuffle_ps::<0x44>(ab, cd),
        simd.avx._mm256_shuffle_ps::<0xee>(ab, cd),
        simd.avx._mm256_shuffle_ps::<0x44>(ab_high, cd_high),
        simd.avx._mm256_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows and inputs on both sides of a square's and a panel's.
    #[test]
    fn a_packed_weight_is_its_transposed_in_panels() {
        for (rows, n, first, depth) in [(64, 40, 0, 40), (150, 33, 5, 28), (7, 3, 0, 3), (129, 16, 8, 8)] {
            let weight: Vec<f32> = (0..rows * n).map(|i| i as f32).collect();
            let block = WeightBlock { weight: &weight, n, first, depth };
            let mut packed = vec![-1.0; rows.next_multiple_of(PANEL) * depth];
            pack(&mut packed, block);
            let mut plain = packed.clone();
            plain.fill(-1.0);
            Pack { panels: &mut plain, block }.run(transposed);
            assert!(packed == plain);
            for (i, x) in packed.iter().enumerate() {
                let (row, k) = (i / (depth * PANEL) * PANEL + i % PANEL, i / PANEL % depth);
                let expected = if row < rows { weight[row * n + first + k] } else { -1.0 };
                assert_eq!(*x, expected, "row {row}, input {k} of {rows} x {depth}");
            }
        }
    }
}

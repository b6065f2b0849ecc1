//! Matrix products whose operands are in cache: attention's, and the blocks that a linear's product is made of.

use pulp::{Arch, Simd, WithSimd};

/// Columns come in multiples of this: every processor's vectors divide it.
pub(super) const COLUMNS: usize = 16;

/// A row-major matrix inside a larger one.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub(super) numbers: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
}

/// What a product is added to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing: whatever is in `out` is overwritten.
    Zero,
    /// What is in `out`.
    Out,
}

/// Writes the product of a (`rows x depth`) and b (`depth x columns`) to `out` (`rows x columns`, whole): 2 rows depth columns
/// flops. Every number is summed in the order of the depth, so a product in several steps down the depth has the bits of one.
/// `columns` is a multiple of [`COLUMNS`].
pub(super) fn multiply(
    out: &mut [f32],
    columns: usize,
    start: Start,
    a: Strided<'_>,
    depth: usize,
    b: Strided<'_>,
) {
    Arch::new().dispatch(Multiply { out, columns, start, a, depth, b });
}

struct Multiply<'a> {
    out: &'a mut [f32],
    columns: usize,
    start: Start,
    a: Strided<'a>,
    depth: usize,
    b: Strided<'a>,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    /// Goes down the rows for as many columns as fit four vectors (two where the processor has few registers), so that those of
    /// b stay in the nearest cache.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let many_registers = S::REGISTER_COUNT >= 32;
        let mut column = 0;
        while column < self.columns {
            let vectors = (self.columns - column) / S::F32_LANES;
            column += S::F32_LANES
                * match vectors {
                    0 => return,
                    1 => self.stripe::<S, 12, 1>(simd, column),
                    _ if !many_registers => self.stripe::<S, 6, 2>(simd, column),
                    2 => self.stripe::<S, 10, 2>(simd, column),
                    3 => self.stripe::<S, 8, 3>(simd, column),
                    _ => self.stripe::<S, 6, 4>(simd, column),
                };
        }
    }
}

impl Multiply<'_> {
    /// All rows of `V` vectors of columns, `R` rows at a time; gives `V`.
    #[inline(always)]
    fn stripe<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, column: usize) -> usize {
        let rows = self.out.len() / self.columns;
        let mut row = 0;
        while row + R <= rows {
            self.tile::<S, R, V>(simd, row, column);
            row += R;
        }
        while row + 4 <= rows {
            self.tile::<S, 4, V>(simd, row, column);
            row += 4;
        }
        while row < rows {
            self.tile::<S, 1, V>(simd, row, column);
            row += 1;
        }
        V
    }

    /// `R x V` vectors of the product, kept in registers.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize, column: usize) {
        let depth = self.depth;
        let a: [&[f32]; R] = std::array::from_fn(|r| &self.a.numbers[(row + r) * self.a.stride..][..depth]);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        if self.start == Start::Out {
            for (r, sums) in sums.iter_mut().enumerate() {
                let out = &self.out[(row + r) * self.columns + column..];
                sums.copy_from_slice(&S::as_simd_f32s(out).0[..V]);
            }
        }
        let columns = column..column + V * S::F32_LANES;
        for (k, b) in self.b.numbers.chunks_exact(self.b.stride).take(depth).enumerate() {
            let b = &S::as_simd_f32s(&b[columns.clone()]).0[..V];
            for r in 0..R {
                let factor = simd.splat_f32s(a[r][k]);
                for v in 0..V {
                    sums[r][v] = simd.mul_add_f32s(factor, b[v], sums[r][v]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(row + r) * self.columns + column..];
            S::as_mut_simd_f32s(out).0[..V].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles of all sizes, in two steps down the depth.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (rows, columns, depth) = (27, 112, 30);
        let a = obsdiff_tests::noise(1, rows * depth);
        let b = obsdiff_tests::noise(2, depth * columns);
        let run = |with: fn(Multiply<'_>)| {
            let mut out = vec![f32::NAN; rows * columns];
            for (start, first, depth) in [(Start::Zero, 0, 20), (Start::Out, 20, 10)] {
                let a = Strided { numbers: &a[first..], stride: 30 };
                let b = Strided { numbers: &b[first * columns..], stride: columns };
                with(Multiply { out: &mut out, columns, start, a, depth, b });
            }
            out
        };
        let expected: Vec<f32> = (0..rows * columns)
            .map(|i| {
                let (row, column) = (i / columns, i % columns);
                (0..depth).fold(0.0, |sum, k| a[row * depth + k].mul_add(b[k * columns + column], sum))
            })
            .collect();
        assert_eq!(run(|product| Arch::new().dispatch(product)), expected);
        assert_eq!(run(|product| pulp::Scalar.vectorize(product)), expected);
        #[cfg(target_arch = "x86_64")]
        if pulp::x86::V3::try_new().is_some() {
            assert_eq!(run(|product| Simd::vectorize(pulp::x86::V3::try_new().unwrap(), product)), expected);
        }
    }
}

//! The zeros of a stored weight: how many, and whether they lie in an N:M pattern.

use std::fmt;

use candle_core::DType;

/// The largest M of the N:M patterns that are searched.
const MAX_M: usize = 32;

/// The zeros of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zeros {
    /// Weights that are zero, of either sign.
    pub zeros: u64,
    /// All weights.
    pub weights: u64,
    /// How the zeros lie.
    pub pattern: ZeroPattern,
}

/// How zeros lie in a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPattern {
    /// Fewer than one weight in a thousand is zero, as in any trained model.
    Dense,
    /// Zeros without a pattern.
    Unstructured,
    /// Every `m` consecutive columns of a row hold `n` zeros, and hardly any group holds more.
    NToM {
        /// Zeros in a group.
        n: usize,
        /// Columns in a group.
        m: usize,
    },
    /// All zeros lie in rows that hold nothing else: removed outputs.
    Rows,
    /// All zeros lie in columns that hold nothing else: removed inputs.
    Columns,
    /// Only zeros.
    Empty,
}

impl fmt::Display for ZeroPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.pad("dense"),
            Self::Unstructured => f.pad("unstructured"),
            Self::NToM { n, m } => f.pad(&format!("{n}:{m}")),
            Self::Rows => f.pad("whole rows"),
            Self::Columns => f.pad("whole columns"),
            Self::Empty => f.pad("all zero"),
        }
    }
}

/// Scans a weight as stored: little-endian, `rows` of `columns` numbers of `dtype`. None where the type is no float, or there are not
/// as many bytes. One pass over the bytes, and one more where a pattern is there.
pub fn scan(bytes: &[u8], dtype: DType, columns: usize) -> Option<Zeros> {
    match dtype {
        DType::F64 => scan_chunks::<8>(bytes, columns, |x| u64::from_le_bytes(*x) << 1 == 0),
        DType::F32 => scan_chunks::<4>(bytes, columns, |x| u32::from_le_bytes(*x) << 1 == 0),
        DType::F16 | DType::BF16 => scan_chunks::<2>(bytes, columns, |x| u16::from_le_bytes(*x) << 1 == 0),
        DType::F8E4M3 => scan_chunks::<1>(bytes, columns, |x| x[0] << 1 == 0),
        _ => None,
    }
}

/// What [`scan`] finds in so many bytes of zeros, without a look at them.
pub fn all_zero(bytes: usize, dtype: DType, columns: usize) -> Option<Zeros> {
    let size = match dtype {
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => dtype.size_in_bytes(),
        _ => return None,
    };
    let numbers = bytes / size;
    if !bytes.is_multiple_of(size) || !are_rows(numbers, columns) {
        return None;
    }
    let pattern = if numbers == 0 { ZeroPattern::Dense } else { ZeroPattern::Empty };
    Some(Zeros { zeros: numbers as u64, weights: numbers as u64, pattern })
}

/// Whether so many numbers make whole rows.
fn are_rows(numbers: usize, columns: usize) -> bool {
    numbers.is_multiple_of(columns.max(1)) && (columns > 0 || numbers == 0)
}

fn scan_chunks<const BYTES: usize>(
    bytes: &[u8],
    columns: usize,
    zero: impl Fn(&[u8; BYTES]) -> bool,
) -> Option<Zeros> {
    let (numbers, rest) = bytes.as_chunks::<BYTES>();
    if !rest.is_empty() || !are_rows(numbers.len(), columns) {
        return None;
    }
    let weights = numbers.len() as u64;
    let zeros = numbers.iter().filter(|x| zero(x)).count() as u64;
    let pattern = match zeros {
        _ if zeros * 1000 < weights || zeros == 0 => ZeroPattern::Dense,
        _ if zeros == weights => ZeroPattern::Empty,
        _ => whole(numbers, columns, zeros, &zero)
            .or_else(|| groups(numbers, columns, zeros, zero))
            .unwrap_or(ZeroPattern::Unstructured),
    };
    Some(Zeros { zeros, weights, pattern })
}

/// Whether the zeros are whole rows or whole columns, and nothing beside them.
fn whole<const BYTES: usize>(
    numbers: &[[u8; BYTES]],
    columns: usize,
    zeros: u64,
    zero: impl Fn(&[u8; BYTES]) -> bool,
) -> Option<ZeroPattern> {
    let mut empty = vec![true; columns];
    let mut rows = 0;
    for row in numbers.chunks_exact(columns) {
        let mut all = true;
        for (x, empty) in row.iter().zip(&mut empty) {
            let zero = zero(x);
            all &= zero;
            *empty &= zero;
        }
        rows += u64::from(all);
    }
    let height = (numbers.len() / columns) as u64;
    match empty.iter().filter(|empty| **empty).count() as u64 {
        count if count * height == zeros => Some(ZeroPattern::Columns),
        _ if rows * columns as u64 == zeros => Some(ZeroPattern::Rows),
        _ => None,
    }
}

/// The pattern of the smallest M that explains the zeros. A weight without one is noticed after a few groups.
fn groups<const BYTES: usize>(
    numbers: &[[u8; BYTES]],
    columns: usize,
    zeros: u64,
    zero: impl Fn(&[u8; BYTES]) -> bool,
) -> Option<ZeroPattern> {
    let rows = (numbers.len() / columns) as u64;
    // A tail shorter than M holds its share, rounded down.
    let promised = |n: usize, m: usize| rows * (n * (columns / m) + n * (columns % m) / m) as u64;
    (2..=MAX_M.min(columns)).find_map(|m| {
        let n = (1..m).rev().find(|n| promised(*n, m) <= zeros)?;
        // A few weights were zero or became zero by rounding; many more would be another pattern.
        let few_more = zeros - promised(n, m) <= promised(n, m) / 50;
        let holds = |group: &[[u8; BYTES]]| group.iter().filter(|x| zero(x)).count() >= n;
        let every = || numbers.chunks_exact(columns).all(|row| row.chunks_exact(m).all(holds));
        (few_more && every()).then_some(ZeroPattern::NToM { n, m })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 where `keep(row, column)`, else 0 or -0 by turns.
    fn f32s(rows: usize, columns: usize, keep: impl Fn(usize, usize) -> bool) -> Vec<u8> {
        let number = |i: usize| {
            if keep(i / columns, i % columns) {
                1.0f32
            } else if i.is_multiple_of(2) {
                0.0
            } else {
                -0.0
            }
        };
        (0..rows * columns).flat_map(|i| number(i).to_le_bytes()).collect()
    }

    fn found(rows: usize, columns: usize, keep: impl Fn(usize, usize) -> bool) -> (u64, ZeroPattern) {
        let zeros = scan(&f32s(rows, columns, keep), DType::F32, columns).unwrap();
        assert_eq!(zeros.weights, (rows * columns) as u64);
        (zeros.zeros, zeros.pattern)
    }

    #[test]
    fn patterns_are_told_apart() {
        // Which columns of a group stay changes from group to group.
        let n_to_m = |n: usize, m: usize| move |r: usize, c: usize| (c % m + r + c / m) % m >= n;
        assert_eq!(found(64, 64, |_, _| true), (0, ZeroPattern::Dense));
        assert_eq!(found(64, 64, |_, _| false), (4096, ZeroPattern::Empty));
        assert_eq!(found(64, 64, n_to_m(2, 4)), (2048, ZeroPattern::NToM { n: 2, m: 4 }));
        assert_eq!(found(64, 64, n_to_m(4, 8)), (2048, ZeroPattern::NToM { n: 4, m: 8 }));
        assert_eq!(found(64, 60, n_to_m(1, 3)), (1280, ZeroPattern::NToM { n: 1, m: 3 }));
        let mixed = |r: usize, c: usize| ((r * 7919 + c * 104_729) % 65_537).is_multiple_of(2);
        assert_eq!(found(64, 64, mixed).1, ZeroPattern::Unstructured);
        // Half the weights are gone, but no group has two of four.
        assert_eq!(found(64, 64, |r, _| r % 2 == 0), (2048, ZeroPattern::Rows));
        assert_eq!(found(64, 64, |_, c| c % 7 > 1), (64 * 19, ZeroPattern::Columns));
        assert_eq!(found(64, 64, |r, c| r % 2 == 0 && c > 0), (64 * 32 + 32, ZeroPattern::Unstructured));
    }

    #[test]
    fn a_tail_and_a_few_further_zeros_do_not_hide_a_pattern() {
        let tail = |r: usize, c: usize| if c < 64 { (c + r) % 4 >= 2 } else { c != 64 };
        assert_eq!(found(64, 66, tail), (64 * 33, ZeroPattern::NToM { n: 2, m: 4 }));
        let further = |r: usize, c: usize| (c + r) % 4 >= 2 && !(r == 3 && c == 3);
        assert_eq!(found(64, 64, further), (2049, ZeroPattern::NToM { n: 2, m: 4 }));
        let fewer = |r: usize, c: usize| (c + r) % 4 >= 2 || (r == 3 && c == 1);
        assert_eq!(found(64, 64, fewer).1, ZeroPattern::Unstructured);
    }

    #[test]
    fn every_float_type_is_read_and_others_are_not() {
        let two_of_four = [0u8, 0, 0, 0x80, 1, 0, 0, 0x40];
        let zeros = |dtype| scan(&two_of_four, dtype, 4).map(|z| z.zeros);
        assert_eq!((zeros(DType::F16), zeros(DType::BF16)), (Some(2), Some(2)));
        assert_eq!(scan(&two_of_four, DType::F32, 2).unwrap().zeros, 1);
        assert_eq!(scan(&[0; 16], DType::F64, 2).unwrap().pattern, ZeroPattern::Empty);
        assert_eq!(
            (zeros(DType::U8), scan(&two_of_four, DType::F32, 4), scan(&[0; 3], DType::F16, 1)),
            (None, None, None)
        );
    }
    #[test]
    fn zeros_that_are_not_read_are_found_alike() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::U8, DType::I64] {
            for (bytes, columns) in [(96, 4), (96, 3), (96, 5), (97, 1), (96, 0), (0, 0), (0, 4)] {
                let read = scan(&vec![0; bytes], dtype, columns);
                assert_eq!(
                    all_zero(bytes, dtype, columns),
                    read,
                    "{bytes} bytes of {dtype:?}, {columns} columns"
                );
            }
        }
    }
}

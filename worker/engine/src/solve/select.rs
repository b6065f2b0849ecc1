//! Exactly the k lowest keys of a block over all rows, ties by (column, row): a radix selection, threaded over strips.

use rayon::prelude::*;

use super::strips::LANES;

/// Key of a row that fills up the last strip: it is never among the lowest.
const NO_ROW: u32 = u32::MAX;

/// Bits that each round settles, from the top.
const ROUNDS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];

/// Marks the lanes of a strip (columns x [`LANES`]) past the first `rows` as no rows.
pub(super) fn leave_out(keys: &mut [u32], rows: usize) {
    if rows < LANES {
        keys.chunks_exact_mut(LANES).for_each(|column| column[rows..].fill(NO_ROW));
    }
}

/// The limit below which exactly `count` keys lie. `strips` holds each strip's keys (columns x [`LANES`]); of keys that tie at the
/// limit, those later by (column, row) are lifted above it.
pub(super) fn limit(strips: &mut [&mut [u32]], count: usize) -> u32 {
    if count == 0 {
        return 0;
    }
    let (highest, mut quota, ties) = kth_lowest(strips, count);
    if quota < ties {
        let columns = strips.first().map_or(0, |keys| keys.len() / LANES);
        for column in 0..columns {
            for keys in strips.iter_mut() {
                for key in
                    keys[column * LANES..(column + 1) * LANES].iter_mut().filter(|key| **key == highest)
                {
                    match quota {
                        0 => *key = NO_ROW,
                        _ => quota -= 1,
                    }
                }
            }
        }
    }
    highest + 1
}

/// The `count`-th lowest key, how many of the lowest `count` are equal to it, and how many keys are.
fn kth_lowest(strips: &[&mut [u32]], count: usize) -> (u32, usize, usize) {
    let (mut prefix, mut left, mut ties) = (0, count, 0);
    for (shift, bits) in ROUNDS {
        let counts = histogram(strips, prefix, shift, bits);
        let mut digit = 0;
        while counts[digit] < left && digit + 1 < counts.len() {
            left -= counts[digit];
            digit += 1;
        }
        ties = counts[digit];
        prefix |= (digit as u32) << shift;
    }
    (prefix, left, ties)
}

/// How many keys have each value of the `bits` above `shift`, among those that share the bits of `prefix` above them.
fn histogram(strips: &[&mut [u32]], prefix: u32, shift: u32, bits: u32) -> Vec<usize> {
    let above = shift + bits;
    let wanted = prefix.checked_shr(above).unwrap_or(0);
    let one = |keys: &&mut [u32]| {
        let mut counts = vec![0u32; 1 << bits];
        for key in keys.iter() {
            if key.checked_shr(above).unwrap_or(0) == wanted {
                counts[(key >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        counts
    };
    let all: Vec<Vec<u32>> = strips.par_iter().map(one).collect();
    let mut counts = vec![0; 1 << bits];
    for strip in &all {
        counts.iter_mut().zip(strip).for_each(|(sum, count)| *sum += *count as usize);
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exactly_the_lowest_go(
            rows in 1usize..130,
            columns in 1usize..9,
            spread in prop::sample::select(vec![1u32, 2, 50, 1 << 30]),
            share in 0.0f64..=1.0,
            seed: u32,
        ) {
            let count = (share * (rows * columns) as f64) as usize;
            let key = |r: usize, c: usize| {
                let x = (seed ^ (r * 31 + c) as u32).wrapping_mul(0x9e37_79b9);
                (x ^ (x >> 15)).wrapping_mul(0x85eb_ca6b) % spread
            };
            let mut strips: Vec<Vec<u32>> = (0..rows.div_ceil(LANES))
                .map(|s| {
                    let mut keys: Vec<u32> =
                        (0..columns * LANES).map(|at| key(s * LANES + at % LANES, at / LANES)).collect();
                    leave_out(&mut keys, rows - s * LANES);
                    keys
                })
                .collect();
            let mut all: Vec<_> = (0..columns)
                .flat_map(|c| (0..rows).map(move |r| (key(r, c), c, r)))
                .collect();
            all.sort_unstable();
            let limit = limit(&mut strips.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(), count);
            let below = |c: usize, r: usize| strips[r / LANES][c * LANES + r % LANES] < limit;
            for (place, (_, c, r)) in all.into_iter().enumerate() {
                prop_assert_eq!(below(c, r), place < count, "column {} row {}", c, r);
            }
        }
    }
}

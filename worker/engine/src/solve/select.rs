//! Exactly the k lowest keys of a block over all rows, ties by (column, row): a radix selection, threaded over strips.

use rayon::prelude::*;

use super::strips::LANES;

/// Key of a row that fills up the last strip: it is never among the lowest.
const NO_ROW: u32 = u32::MAX;

/// Bits of a key that each round settles: the first sees all keys, the others those few that share the bits settled so far.
const ROUNDS: [Round; 3] =
    [Round { shift: 21, bits: 11 }, Round { shift: 10, bits: 11 }, Round { shift: 0, bits: 10 }];

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

/// The `count`-th lowest key, how many of the lowest `count` are equal to it, and how many keys are. Nothing here depends on the
/// order in which strips are counted.
fn kth_lowest(strips: &[&mut [u32]], count: usize) -> (u32, usize, usize) {
    let [first, rest @ ..] = ROUNDS;
    let counts = strips.par_iter().fold(|| first.tables(), |tables, keys| first.count(tables, keys));
    let (mut settled, mut left, mut ties) = first.lowest(&counts.reduce(|| first.tables(), add), count);
    let gather = |kept, keys: &&mut [u32]| candidates(kept, keys, first.shift, settled);
    let mut candidates: Vec<Vec<u32>> = strips.par_iter().fold(Vec::new, gather).collect();
    for round in rest {
        let counts = candidates.par_iter().fold(|| round.tables(), |tables, keys| round.count(tables, keys));
        let digit;
        (digit, left, ties) = round.lowest(&counts.reduce(|| round.tables(), add), left);
        settled = settled << round.bits | digit;
        candidates.iter_mut().for_each(|keys| keys.retain(|key| key >> round.shift == settled));
    }
    (settled, left, ties)
}

/// A digit of the keys: `bits` bits from `shift` on.
#[derive(Clone, Copy)]
struct Round {
    shift: u32,
    bits: u32,
}

impl Round {
    const fn size(self) -> usize {
        1 << self.bits
    }

    /// Two empty tables of counts, one after the other.
    fn tables(self) -> Vec<u32> {
        vec![0; 2 * self.size()]
    }

    /// Adds how many keys have each value of the digit. Neighbours often have the same: two tables taking turns keep one count from
    /// waiting for the last.
    fn count(self, mut tables: Vec<u32>, keys: &[u32]) -> Vec<u32> {
        let digit = |key: u32| (key >> self.shift) as usize & (self.size() - 1);
        let (even, odd) = tables.split_at_mut(self.size());
        let pairs = keys.chunks_exact(2);
        pairs.remainder().iter().for_each(|key| even[digit(*key)] += 1);
        for pair in pairs {
            even[digit(pair[0])] += 1;
            odd[digit(pair[1])] += 1;
        }
        tables
    }

    /// The digit of the `count`-th lowest key, how many of the lowest `count` have it, and how many keys have it.
    fn lowest(self, tables: &[u32], count: usize) -> (u32, usize, usize) {
        let (even, odd) = tables.split_at(self.size());
        let (mut left, mut here) = (count, 0);
        for (digit, (even, odd)) in even.iter().zip(odd).enumerate() {
            here = (even + odd) as usize;
            if left <= here {
                return (digit as u32, left, here);
            }
            left -= here;
        }
        (self.size() as u32 - 1, left, here)
    }
}

fn add(mut all: Vec<u32>, one: Vec<u32>) -> Vec<u32> {
    all.iter_mut().zip(one).for_each(|(all, one)| *all += one);
    all
}

/// Adds the keys whose bits from `shift` on are `settled` to `kept`.
fn candidates(mut kept: Vec<u32>, keys: &[u32], shift: u32, settled: u32) -> Vec<u32> {
    let mut end = kept.len();
    kept.resize(end + keys.len(), 0);
    for &key in keys {
        // Kept, or overwritten by the next: no branch to mispredict.
        kept[end] = key;
        end += usize::from(key >> shift == settled);
    }
    kept.truncate(end);
    kept
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

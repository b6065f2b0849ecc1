//! Exactly the k lowest keys of a block over all rows, ties by (column, row), threaded over strips: a sample tells between which keys the
//! k-th lies, and one pass keeps those; where the sample misleads, a radix selection finds it.
//!
//! A key is the bits of |w| / U_jj: keys order as the scores do, which are the squares. They are formed anew wherever they are looked
//! at: reading them would take as long.

use std::slice;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::strips::{Column, LANES, values};

/// Key of a lane without a row: it is never among the lowest.
const NO_ROW: u32 = u32::MAX;

/// Keys of a sample. Two hundredths of the others then lie between the bounds that it gives.
const SAMPLE: usize = 1 << 13;

/// Fewer keys than this are not sampled.
const WORTH_SAMPLING: usize = 8 * SAMPLE;

/// Bits of a key that each round settles: the first sees all keys, the others those few that share the bits settled so far.
const ROUNDS: [Round; 3] =
    [Round { shift: 21, bits: 11 }, Round { shift: 10, bits: 11 }, Round { shift: 0, bits: 10 }];

/// A block of a strip whose weights are to be told apart by their keys.
#[derive(Clone, Copy)]
pub(super) struct Scored<'a> {
    /// The block's columns.
    pub(super) weight: &'a [Column],
    /// Lanes that are rows.
    pub(super) rows: usize,
    /// 1 / U_jj of the block's columns.
    pub(super) reciprocal: &'a [f32],
}

impl Scored<'_> {
    fn len(&self) -> usize {
        self.weight.len() * LANES
    }

    /// The key at place `at` of columns x [`LANES`].
    fn key(&self, at: usize) -> u32 {
        match at % LANES < self.rows {
            true => (values(self.weight)[at] * self.reciprocal[at / LANES]).abs().to_bits(),
            false => NO_ROW,
        }
    }

    /// The keys of each column.
    #[inline(always)]
    fn columns(&self) -> impl Iterator<Item = [u32; LANES]> {
        let columns = values(self.weight).as_chunks::<LANES>().0.iter().zip(self.reciprocal);
        columns.map(|(column, reciprocal)| {
            // A loop, unlike a map over the array, becomes vector instructions.
            let mut keys = [0; LANES];
            keys.iter_mut().zip(column).for_each(|(key, w)| *key = (w * reciprocal).abs().to_bits());
            if self.rows < LANES {
                keys[self.rows..].fill(NO_ROW);
            }
            keys
        })
    }

    /// All keys, columns x [`LANES`].
    fn keys(&self) -> Vec<u32> {
        self.columns().flatten().collect()
    }
}

/// Which keys of a block are its lowest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limit {
    /// Keys below it are.
    key: u32,
    /// The first (column, row) from which on a key that equals `key` is not.
    end: (usize, usize),
}

impl Limit {
    /// Writes what [`Self::below`] tells apart to `keys`: the keys of the strip whose first row is `first`.
    pub(super) fn keys(&self, strip: &Scored<'_>, first: usize, keys: &mut [u32]) {
        Arch::new().dispatch(Keys { strip, keys });
        let (columns, _) = keys.as_chunks_mut::<LANES>();
        for (c, column) in columns.iter_mut().enumerate().skip(self.end.0) {
            for (lane, key) in column.iter_mut().enumerate() {
                if *key == self.key && (c, first + lane) >= self.end {
                    *key = NO_ROW;
                }
            }
        }
    }

    /// The lowest of those keys are below this.
    pub(super) fn below(&self) -> u32 {
        self.key.saturating_add(1)
    }
}

struct Keys<'a> {
    strip: &'a Scored<'a>,
    keys: &'a mut [u32],
}

impl WithSimd for Keys<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (to, _) = self.keys.as_chunks_mut::<LANES>();
        to.iter_mut().zip(self.strip.columns()).for_each(|(to, keys)| *to = keys);
    }
}

/// Tells the `count` lowest keys of a block from the others; of keys that tie, those first by (column, row) are lower.
pub(super) fn limit(strips: &[Scored<'_>], count: usize) -> Limit {
    if count == 0 {
        return Limit::default();
    }
    let all: usize = strips.iter().map(Scored::len).sum();
    let sampled = if all < WORTH_SAMPLING { None } else { by_sample(strips, count, SAMPLE) };
    let (key, quota, ties) = sampled.unwrap_or_else(|| kth_lowest(strips, count));
    let columns = strips.first().map_or(0, |strip| strip.weight.len());
    let end = if quota < ties { tie(strips, key, quota) } else { None };
    Limit { key, end: end.unwrap_or((columns, 0)) }
}

/// The (column, row) of the key equal to `key` that `quota` others come before.
fn tie(strips: &[Scored<'_>], key: u32, quota: usize) -> Option<(usize, usize)> {
    let columns = strips.first().map_or(0, |strip| strip.weight.len());
    let rows = strips.len() * LANES;
    let places = (0..columns).flat_map(|c| (0..rows).map(move |row| (c, row)));
    places.filter(|(c, row)| strips[row / LANES].key(c * LANES + row % LANES) == key).nth(quota)
}

/// What [`kth_lowest`] says, or nothing where a sample of about `size` keys misleads. Two passes less than the radix selection takes.
fn by_sample(strips: &[Scored<'_>], count: usize, size: usize) -> Option<(u32, usize, usize)> {
    let all: usize = strips.iter().map(Scored::len).sum();
    // Odd, so that all lanes of a strip have their turn.
    let step = (all / size).max(1) | 1;
    let mut sample = Vec::with_capacity(all / step + strips.len());
    for strip in strips {
        sample.extend((0..strip.len()).step_by(step).map(|at| strip.key(at)));
    }
    let share = count as f64 / all as f64;
    let place = share * sample.len() as f64;
    // Four standard deviations of the place that the k-th lowest has in a random sample.
    let margin = 4.0 * (place * (1.0 - share)).max(0.0).sqrt() + 2.0;
    let (lowest, highest) = bounds(&mut sample, place - margin, place + margin);
    let kept: Vec<(usize, Vec<u32>)> = strips
        .par_iter()
        .map(|strip| Arch::new().dispatch(Within { strip, lowest, range: highest - lowest }))
        .collect();
    let below: usize = kept.iter().map(|(below, _)| below).sum();
    let mut within = Vec::with_capacity(kept.iter().map(|(_, within)| within.len()).sum());
    kept.iter().for_each(|(_, kept)| within.extend_from_slice(kept));
    let left = count.checked_sub(below).filter(|left| (1..=within.len()).contains(left))?;
    let kth = *within.select_nth_unstable(left - 1).1;
    let lower = within.iter().filter(|key| **key < kth).count();
    let ties = within.iter().filter(|key| **key == kth).count();
    Some((kth, left - lower, ties))
}

/// The keys at two places of a sorted sample; outside of it nothing bounds a key.
fn bounds(sample: &mut [u32], first: f64, last: f64) -> (u32, u32) {
    let size = sample.len() as f64;
    let highest = if last < size { *sample.select_nth_unstable(last as usize).1 } else { NO_ROW };
    // What lies before a place is sorted in.
    let below = if last < size { &mut sample[..=last as usize] } else { sample };
    let lowest = if first >= 0.0 { *below.select_nth_unstable(first as usize).1 } else { 0 };
    (lowest, highest)
}

/// Counts the keys below `lowest`, and keeps those from there to `lowest + range`.
struct Within<'a> {
    strip: &'a Scored<'a>,
    lowest: u32,
    range: u32,
}

impl WithSimd for Within<'_> {
    type Output = (usize, Vec<u32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { strip, lowest, range } = self;
        let [one, least, most] = [1, lowest, range].map(|x| simd.splat_u32s(x));
        let (mut below, mut kept) = (simd.splat_u32s(0), Vec::new());
        let mut hits = [0; LANES + 1];
        for keys in strip.columns() {
            let mut count = 0;
            for vector in S::as_simd_u32s(&keys).0 {
                let is_below = simd.less_than_u32s(*vector, least);
                below = simd.select_u32s(is_below, simd.add_u32s(below, one), below);
                let is_within = simd.less_than_or_equal_u32s(simd.sub_u32s(*vector, least), most);
                // Few vectors have one.
                if simd.first_true_m32s(is_within) < S::U32_LANES {
                    let keys = bytemuck::cast_slice::<_, u32>(slice::from_ref(vector));
                    for &key in keys {
                        // Kept, or overwritten by the next: no branch to mispredict.
                        hits[count] = key;
                        count += usize::from(key.wrapping_sub(lowest) <= range);
                    }
                }
            }
            kept.extend_from_slice(&hits[..count]);
        }
        let below: &[u32] = bytemuck::cast_slice(slice::from_ref(&below));
        (below.iter().map(|below| *below as usize).sum(), kept)
    }
}

/// The `count`-th lowest key, how many of the lowest `count` are equal to it, and how many keys are. Nothing here depends on the
/// order in which strips are counted.
fn kth_lowest(strips: &[Scored<'_>], count: usize) -> (u32, usize, usize) {
    let strips: Vec<Vec<u32>> = strips.par_iter().map(Scored::keys).collect();
    let [first, rest @ ..] = ROUNDS;
    let counts = strips.par_iter().fold(|| first.tables(), |tables, keys| first.count(tables, keys));
    let (mut settled, mut left, mut ties) = first.lowest(&counts.reduce(|| first.tables(), add), count);
    let gather = |kept, keys: &Vec<u32>| candidates(kept, keys, first.shift, settled);
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
mod tests;

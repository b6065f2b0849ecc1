//! Exactly the k lowest keys of a block over all rows, ties by (column, row). A sample tells between which keys the k-th lies; a pass over
//! all keys counts those before and keeps the few between, among which it is found. Where the sample misleads, all are between.
//!
//! A key is the bits of |w| / U_jj: keys order as the scores do, which are the squares. They are formed anew wherever they are looked
//! at: reading them would take as long. Strips are sampled and passed over one by one, each by the thread that has it in its cache.

use std::slice;

use pulp::{Arch, Simd, WithSimd};

use super::strips::{Column, LANES, values};

/// Keys side by side that are sampled together.
const LINE: usize = 16;

/// Lines that the sample of a strip begins after that of the strip before.
const SHIFT: usize = 7;

/// Key of a lane without a row: it is never among the lowest.
const NO_ROW: u32 = u32::MAX;

/// Keys of a sample, at most. Three hundredths of the others then lie between the bounds that it gives.
const SAMPLE: usize = 1 << 13;

/// Of so many keys at least, one is in the sample.
const SAMPLED: usize = 24;

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
        if at % LANES < self.rows {
            (values(self.weight)[at] * self.reciprocal[at / LANES]).abs().to_bits()
        } else {
            NO_ROW
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

    /// Adds its part of a sample of a block of `all` keys to `sample`, as the `strip`-th.
    pub(super) fn sample(&self, strip: usize, all: usize, sample: &mut Vec<u32>) {
        // Keys of a column are alike, and so are those of a row: each strip begins elsewhere, and the step is odd, so that all have their
        // turn.
        let step = (all / SAMPLE).max(SAMPLED) | 1;
        for at in (strip * SHIFT % step * LINE..self.len()).step_by(LINE * step) {
            if at % LANES + LINE <= self.rows {
                let reciprocal = self.reciprocal[at / LANES];
                let line = &values(self.weight)[at..at + LINE];
                sample.extend(line.iter().map(|w| (w * reciprocal).abs().to_bits()));
            } else {
                sample.extend((at..at + LINE).map(|at| self.key(at)))
            }
        }
    }

    /// What lies where.
    pub(super) fn near(&self, bounds: Bounds) -> NearKeys {
        Arch::new().dispatch(KeysWithin { strip: self, bounds })
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
        Arch::new().dispatch(ScoreKeys { strip, keys });
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

struct ScoreKeys<'a> {
    strip: &'a Scored<'a>,
    keys: &'a mut [u32],
}

impl WithSimd for ScoreKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (to, _) = self.keys.as_chunks_mut::<LANES>();
        to.iter_mut().zip(self.strip.columns()).for_each(|(to, keys)| *to = keys);
    }
}

/// Tells the `count` lowest keys of a block from the others; of keys that tie, those first by (column, row) are lower. `near` says of each
/// strip what lies where within the same bounds.
pub(super) fn limit(strips: &[Scored<'_>], near: &[&NearKeys], count: usize) -> Limit {
    if count == 0 {
        return Limit::default();
    }
    let (key, quota, ties) = kth_lowest(near, count).unwrap_or_else(|| {
        let all: Vec<NearKeys> = strips.iter().map(|strip| strip.near(Bounds::ALL)).collect();
        kth_lowest(&all.iter().collect::<Vec<_>>(), count).unwrap_or_default()
    });
    let columns = strips.first().map_or(0, |strip| strip.weight.len());
    let end = if quota < ties { tie(strips, key, quota) } else { None };
    Limit { key, end: end.unwrap_or((columns, 0)) }
}

/// The `count`-th lowest key, how many of the lowest `count` are equal to it, and how many keys are; nothing where it is not near. Nothing
/// here depends on the order of strips.
fn kth_lowest(near: &[&NearKeys], count: usize) -> Option<(u32, usize, usize)> {
    let below: usize = near.iter().map(|near| near.below).sum();
    let mut keys = near.iter().map(|near| near.keys.as_slice()).collect::<Vec<_>>().concat();
    let left = count.checked_sub(below).filter(|left| (1..=keys.len()).contains(left))?;
    let kth = *keys.select_nth_unstable(left - 1).1;
    let lower = keys.iter().filter(|key| **key < kth).count();
    let ties = keys.iter().filter(|key| **key == kth).count();
    Some((kth, left - lower, ties))
}

/// The (column, row) of the key equal to `key` that `quota` others come before.
fn tie(strips: &[Scored<'_>], key: u32, quota: usize) -> Option<(usize, usize)> {
    let columns = strips.first().map_or(0, |strip| strip.weight.len());
    let rows = strips.len() * LANES;
    let places = (0..columns).flat_map(|c| (0..rows).map(move |row| (c, row)));
    places.filter(|(c, row)| strips[row / LANES].key(c * LANES + row % LANES) == key).nth(quota)
}

/// Keys that the one looked for lies between, both included.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    lowest: u32,
    highest: u32,
}

impl Bounds {
    const ALL: Self = Self { lowest: 0, highest: NO_ROW };

    /// Of the key with this share of all keys below it, by a sample.
    pub(super) fn of(mut sample: Vec<u32>, share: f64) -> Self {
        let size = sample.len() as f64;
        let place = share * size;
        // Three standard deviations of the place that the key has in a random sample. More would keep more keys, each time.
        let margin = 3.0 * (place * (1.0 - share)).max(0.0).sqrt() + 2.0;
        let (first, last) = (place - margin, place + margin);
        let highest = if last < size { *sample.select_nth_unstable(last as usize).1 } else { NO_ROW };
        // What lies before a place is sorted in.
        let before = if last < size { &mut sample[..=last as usize] } else { &mut sample[..] };
        let lowest = if first >= 0.0 { *before.select_nth_unstable(first as usize).1 } else { 0 };
        Self { lowest, highest }
    }
}

/// The keys of a strip, as bounds part them.
#[derive(Debug, Default)]
pub(super) struct NearKeys {
    /// Keys below the bounds.
    below: usize,
    /// Those within.
    keys: Vec<u32>,
}

struct KeysWithin<'a> {
    strip: &'a Scored<'a>,
    bounds: Bounds,
}

impl WithSimd for KeysWithin<'_> {
    type Output = NearKeys;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { strip, bounds: Bounds { lowest, highest } } = self;
        let range = highest - lowest;
        let [one, least, most] = [1, lowest, range].map(|x| simd.splat_u32s(x));
        let (mut below, mut near) = (simd.splat_u32s(0), Vec::with_capacity(strip.len() / LINE));
        for keys in strip.columns() {
            for (vector, keys) in S::as_simd_u32s(&keys).0.iter().zip(keys.chunks_exact(S::U32_LANES)) {
                let is_below = simd.less_than_u32s(*vector, least);
                below = simd.select_u32s(is_below, simd.add_u32s(below, one), below);
                let is_within = simd.less_than_or_equal_u32s(simd.sub_u32s(*vector, least), most);
                each_true::<S>(is_within, |lane| near.push(keys[lane]));
            }
        }
        let below: &[u32] = bytemuck::cast_slice(slice::from_ref(&below));
        NearKeys { below: below.iter().map(|below| *below as usize).sum(), keys: near }
    }
}

/// Calls `found` with each lane for which a mask is true, the first one first.
#[inline(always)]
fn each_true<S: Simd>(mask: S::m32s, mut found: impl FnMut(usize)) {
    // The processor's masks have a bit for each lane, or as many as the lane has.
    let mut bits = match size_of::<S::m32s>() {
        1 => u32::from(bytemuck::cast::<_, u8>(mask)),
        2 => u32::from(bytemuck::cast::<_, u16>(mask)),
        _ => {
            let lanes: &[u32] = bytemuck::cast_slice(slice::from_ref(&mask));
            match lanes.iter().fold(0, |any, lane| any | lane) {
                0 => 0,
                _ => lanes.iter().rev().fold(0, |bits, lane| bits << 1 | lane & 1),
            }
        }
    };
    while bits != 0 {
        found(bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

#[cfg(test)]
mod tests;

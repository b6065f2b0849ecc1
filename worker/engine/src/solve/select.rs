//! Exactly the k lowest keys of a block over all rows, ties by (column, row). Where a sample misleads, all keys are kept as near the k-th.
//!
//! A key is the bits of |w| / U_jj: keys order as the scores do, which are the squares. They are formed again each time they are looked
//! at: reading them would take as long. Strips are sampled and passed over one by one, each by the thread that has it in its cache.

use pulp::{Arch, Simd, WithSimd};

use super::near::{Bounds, LINE, NearKeys, kth_lowest, sampled_of};
use super::strips::{LANES, StripColumn, values};

/// Lines that the sample of a strip begins after that of the strip before.
const SHIFT: usize = 7;

/// Key of a lane without a row: it is never among the lowest.
const NO_ROW: u32 = u32::MAX;

/// A block of a strip whose weights are compared by their keys.
#[derive(Clone, Copy)]
pub(super) struct Scored<'a> {
    /// The block's columns.
    pub(super) weight: &'a [StripColumn],
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
    fn columns(&self) -> impl ExactSizeIterator<Item = [u32; LANES]> {
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
        // Keys of a column resemble each other, and so do those of a row: each strip begins elsewhere, and the step is odd, so that all have
        // their turn.
        let step = sampled_of(all) | 1;
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
        Arch::new().dispatch(KeysOfStrip { strip: self, bounds })
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
    /// Writes the keys that [`Self::below`] compares to `keys`: the keys of the strip whose first row is `first`.
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

/// The limit below which the `count` lowest keys of a block lie; of keys that tie, those first by (column, row) are lower. `near` says of each
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

/// The (column, row) of the key equal to `key` that `quota` others come before.
fn tie(strips: &[Scored<'_>], key: u32, quota: usize) -> Option<(usize, usize)> {
    let columns = strips.first().map_or(0, |strip| strip.weight.len());
    let rows = strips.len() * LANES;
    let places = (0..columns).flat_map(|c| (0..rows).map(move |row| (c, row)));
    places.filter(|(c, row)| strips[row / LANES].key(c * LANES + row % LANES) == key).nth(quota)
}

struct KeysOfStrip<'a> {
    strip: &'a Scored<'a>,
    bounds: Bounds,
}

impl WithSimd for KeysOfStrip<'_> {
    type Output = NearKeys;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        NearKeys::of(simd, self.strip.columns(), self.bounds)
    }
}

#[cfg(test)]
mod tests;

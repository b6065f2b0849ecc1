//! The k-th lowest of many keys. A sample gives two keys that it lies between; a pass over all keys counts those below and keeps the few
//! between, among which it is found.

use std::slice;

use pulp::Simd;

/// Keys side by side that are sampled together.
pub(super) const LINE: usize = 16;

/// Keys of a sample, at most. Three hundredths of the others then lie between the bounds that it gives.
const SAMPLE: usize = 1 << 13;

/// Of so many keys at least, one is in the sample.
const SAMPLED: usize = 24;

/// Of how many of `all` keys one is in the sample.
pub(super) fn sampled_of(all: usize) -> usize {
    (all / SAMPLE).max(SAMPLED)
}

/// Keys that the one looked for lies between, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bounds {
    pub(super) lowest: u32,
    pub(super) highest: u32,
}

impl Bounds {
    /// All keys.
    pub(super) const ALL: Self = Self { lowest: 0, highest: u32::MAX };

    /// Of the key with this share of all keys below it, by a sample.
    pub(super) fn of(mut sample: Vec<u32>, share: f64) -> Self {
        let size = sample.len() as f64;
        let place = share * size;
        // Three standard deviations of the place that the key has in a random sample. More would keep more keys, each time.
        let margin = 3.0 * (place * (1.0 - share)).max(0.0).sqrt() + 2.0;
        let (first, last) = (place - margin, place + margin);
        let highest = if last < size { *sample.select_nth_unstable(last as usize).1 } else { u32::MAX };
        // What lies before a place is sorted in.
        let before = if last < size { &mut sample[..=last as usize] } else { &mut sample[..] };
        let lowest = if first >= 0.0 { *before.select_nth_unstable(first as usize).1 } else { 0 };
        Self { lowest, highest }
    }
}

/// Some of the keys, as bounds part them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NearKeys {
    /// Keys below the bounds.
    pub(super) below: usize,
    /// Keys equal to the lower bound: they are counted, as they may be most of all keys.
    pub(super) lowest: usize,
    /// The others within the bounds.
    pub(super) keys: Vec<u32>,
    bounds: Bounds,
}

impl NearKeys {
    /// Parts `keys`, which come in arrays of whole vectors.
    #[inline(always)]
    pub(super) fn of<S: Simd, const N: usize>(
        simd: S,
        keys: impl ExactSizeIterator<Item = [u32; N]>,
        bounds: Bounds,
    ) -> Self {
        let Bounds { lowest, highest } = bounds;
        let range = highest - lowest;
        let [one, least, next, most] = [1, lowest, lowest.wrapping_add(1), range].map(|x| simd.splat_u32s(x));
        let [mut below, mut equal] = [simd.splat_u32s(0); 2];
        let mut near = Vec::with_capacity(keys.len() * N / LINE);
        for keys in keys {
            for (vector, keys) in S::as_simd_u32s(&keys).0.iter().zip(keys.chunks_exact(S::U32_LANES)) {
                let is_below = simd.less_than_u32s(*vector, least);
                below = simd.select_u32s(is_below, simd.add_u32s(below, one), below);
                let is_equal = simd.equal_u32s(*vector, least);
                equal = simd.select_u32s(is_equal, simd.add_u32s(equal, one), equal);
                let is_within = simd.less_than_u32s(simd.sub_u32s(*vector, next), most);
                each_true::<S>(is_within, |lane| near.push(keys[lane]));
            }
        }
        let sum = |counts: S::u32s| {
            let counts: &[u32] = bytemuck::cast_slice(slice::from_ref(&counts));
            counts.iter().map(|count| *count as usize).sum()
        };
        Self { below: sum(below), lowest: sum(equal), keys: near, bounds }
    }

    /// Parts one key more.
    pub(super) fn add(&mut self, key: u32) {
        let Bounds { lowest, highest } = self.bounds;
        if key < lowest {
            self.below += 1;
        } else if key == lowest {
            self.lowest += 1;
        } else if key <= highest {
            self.keys.push(key);
        }
    }
}

/// The `count`-th lowest key, how many of the lowest `count` are equal to it, and how many keys are; nothing where it is not near. All
/// of `near` have the same bounds. Nothing here depends on their order.
pub(super) fn kth_lowest(near: &[&NearKeys], count: usize) -> Option<(u32, usize, usize)> {
    let sum = |of: fn(&NearKeys) -> usize| near.iter().map(|near| of(near)).sum::<usize>();
    let left = count.checked_sub(sum(|near| near.below)).filter(|left| *left > 0)?;
    let lowest = sum(|near| near.lowest);
    if left <= lowest {
        return Some((near.first()?.bounds.lowest, left, lowest));
    }
    let left = left - lowest;
    let mut keys = near.iter().map(|near| near.keys.as_slice()).collect::<Vec<_>>().concat();
    if left > keys.len() {
        return None;
    }
    let kth = *keys.select_nth_unstable(left - 1).1;
    let lower = keys.iter().filter(|key| **key < kth).count();
    let ties = keys.iter().filter(|key| **key == kth).count();
    Some((kth, left - lower, ties))
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

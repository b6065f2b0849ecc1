//! The largest values of a matrix: which stay, exactly so many, ties by (column, row).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::near::{Bounds, LINE, NearKeys, kth_lowest, sampled_of};

/// Values that one task counts.
const CHUNK: usize = 1 << 17;

/// Bits of a key that are left out where the other bits alone distinguish keys: a key is |x| as its bits, without the sign.
const LOW: u32 = 16;

/// Keys that are looked at together: whole vectors of every processor, and whole groups of as many columns as divide it.
const BLOCK: usize = 16;

/// |x| as a number that sorts as it does.
#[inline(always)]
pub(super) fn key(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Which values of a matrix stay: those whose key is at least `least`, except those at the places in `tied`.
#[derive(Debug, Default)]
pub(super) struct Threshold {
    pub(super) least: u32,
    /// Places of the values that are pruned although their key is `least`, ascending.
    pub(super) tied: Vec<usize>,
}

/// Finds which values of `matrix` (rows x n) stay: all but the `pruned` smallest. Of equal values, the first by (column, row) goes
/// first. A value of 0 counts as pruned, whether it is among them or not.
pub(super) fn largest(matrix: &[f32], n: usize, pruned: usize) -> Threshold {
    if pruned == 0 {
        return Threshold::default();
    }
    if pruned >= matrix.len() {
        return Threshold { least: u32::MAX, tied: Vec::new() };
    }
    let share = pruned as f64 / matrix.len() as f64;
    let kth = |bounds| {
        let near: Vec<NearKeys> = matrix.par_chunks(CHUNK).map(|values| near(values, bounds)).collect();
        kth_lowest(&near.iter().collect::<Vec<_>>(), pruned)
    };
    // Where the sample misleads, the high bits of all keys give two bounds of the least that stays.
    let found = kth(Bounds::of(sample(matrix), share)).or_else(|| kth(by_high_bits(matrix, pruned)));
    let (limit, going, equal) = found.unwrap_or_default();
    if limit == 0 || going == equal {
        return Threshold { least: limit + 1, tied: Vec::new() };
    }
    let chunks = matrix.par_chunks(CHUNK).enumerate();
    let places = chunks.flat_map_iter(|(chunk, values)| {
        let tied = values.iter().enumerate().filter(|(_, x)| key(**x) == limit);
        tied.map(move |(at, _)| chunk * CHUNK + at)
    });
    let mut tied: Vec<usize> = places.collect();
    tied.sort_unstable_by_key(|at| (at % n, at / n));
    tied.truncate(going);
    tied.sort_unstable();
    Threshold { least: limit, tied }
}

/// Keys of a sample of a matrix.
fn sample(matrix: &[f32]) -> Vec<u32> {
    let stretch = LINE * sampled_of(matrix.len());
    let lines = matrix.chunks(stretch).enumerate().flat_map(|(i, values)| {
        // Keys of a column resemble each other: lines begin at places that follow no pattern (multiples of the golden ratio).
        let at = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = at as usize % values.len().saturating_sub(LINE).max(1);
        &values[at..values.len().min(at + LINE)]
    });
    lines.map(|x| key(*x)).collect()
}

/// The bounds of all keys that share their high bits with the `rank`-th smallest.
fn by_high_bits(matrix: &[f32], rank: usize) -> Bounds {
    let none = || vec![0usize; 1 << (31 - LOW)];
    let count = |mut counts: Vec<usize>, values: &[f32]| {
        values.iter().for_each(|x| counts[(key(*x) >> LOW) as usize] += 1);
        counts
    };
    let add = |mut a: Vec<usize>, b: Vec<usize>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let counts = matrix.par_chunks(CHUNK).fold(none, count).reduce(none, add);
    let mut counted = 0;
    let high = counts.iter().position(|count| {
        counted += count;
        counted >= rank
    });
    let lowest = (high.unwrap_or(0) as u32) << LOW;
    Bounds { lowest, highest: lowest | ((1 << LOW) - 1) }
}

/// The keys of `values`, as bounds part them.
fn near(values: &[f32], bounds: Bounds) -> NearKeys {
    Arch::new().dispatch(KeysOfValues { values, bounds })
}

struct KeysOfValues<'a> {
    values: &'a [f32],
    bounds: Bounds,
}

impl WithSimd for KeysOfValues<'_> {
    type Output = NearKeys;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> NearKeys {
        let Self { values, bounds } = self;
        let (blocks, rest) = values.as_chunks::<BLOCK>();
        let keys = blocks.iter().map(|block| {
            // A loop, unlike a map over the array, becomes vector instructions.
            let mut keys = [0; BLOCK];
            keys.iter_mut().zip(block).for_each(|(to, x)| *to = key(*x));
            keys
        });
        let mut near = NearKeys::of(simd, keys, bounds);
        rest.iter().for_each(|x| near.add(key(*x)));
        near
    }
}

/// Sets those of `keys`, a row's, to 0 that go: of each group of `of` consecutive ones the `pruned` smallest, of equal ones the first;
/// floor(pruned * tail / of) of a shorter tail. No key is larger than that of a number.
#[inline(always)]
pub(super) fn drop_of_groups(keys: &mut [u32], pruned: usize, of: usize, order: &mut Vec<u32>) {
    let rest = match of {
        2 => drop_of_blocks::<2>(keys, pruned),
        4 => drop_of_blocks::<4>(keys, pruned),
        8 => drop_of_blocks::<8>(keys, pruned),
        16 => drop_of_blocks::<16>(keys, pruned),
        _ => keys,
    };
    for group in rest.chunks_mut(of) {
        let pruned = pruned * group.len() / of;
        drop_smallest(group, pruned, order);
    }
}

/// The same for groups of M, as far as they fill blocks. Returns the keys that are left.
#[inline(always)]
fn drop_of_blocks<const M: usize>(keys: &mut [u32], pruned: usize) -> &mut [u32] {
    let (blocks, rest) = keys.as_chunks_mut::<BLOCK>();
    for keys in blocks {
        // How many keys of its group are smaller than each, by comparing all with those 1, 2, .. places on in their group.
        let mut smaller = [0u32; BLOCK];
        for by in 1..M {
            let mut others = [0; BLOCK];
            (0..BLOCK).for_each(|j| others[j] = keys[j / M * M + (j + by) % M]);
            // Of equal keys the first is the smaller one.
            (0..BLOCK).for_each(|j| {
                let first = u32::from(j % M + by >= M);
                smaller[j] += u32::from(others[j] < keys[j] + first);
            });
        }
        keys.iter_mut().zip(smaller).for_each(|(key, smaller)| {
            if (smaller as usize) < pruned {
                *key = 0;
            }
        });
    }
    rest
}

/// Sets those of `keys`, a group of columns of a row, to 0 that go: the `pruned` smallest, of equal ones the first.
fn drop_smallest(keys: &mut [u32], pruned: usize, order: &mut Vec<u32>) {
    if pruned == 0 {
        return;
    }
    if keys.len() <= 8 {
        let rank = |j: usize| {
            let smaller = |(i, other): (usize, &u32)| *other < keys[j] || (*other == keys[j] && i < j);
            keys.iter().enumerate().filter(|pair| smaller(*pair)).count()
        };
        let mut goes = [false; 8];
        (0..keys.len()).for_each(|j| goes[j] = rank(j) < pruned);
        keys.iter_mut().zip(goes).filter(|(_, goes)| *goes).for_each(|(key, _)| *key = 0);
        return;
    }
    order.clear();
    order.extend(0..keys.len() as u32);
    order.select_nth_unstable_by_key(pruned.min(keys.len()) - 1, |j| (keys[*j as usize], *j));
    order.iter().take(pruned).for_each(|j| keys[*j as usize] = 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The places that go, by sorting all of them.
    fn sorted(matrix: &[f32], n: usize, pruned: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..matrix.len()).collect();
        places.sort_by_key(|at| (key(matrix[*at]), at % n, at / n));
        places.truncate(pruned);
        places.sort_unstable();
        places
    }

    fn gone(matrix: &[f32], kept: &Threshold) -> Vec<usize> {
        let goes = |at: &usize| key(matrix[*at]) < kept.least || kept.tied.binary_search(at).is_ok();
        (0..matrix.len()).filter(goes).collect()
    }

    proptest! {
        #[test]
        fn exactly_so_many_go_by_size_column_and_row(
            columns in 1usize..9,
            values in prop::collection::vec((-6i8..7).prop_map(|x| f32::from(x) * 0.25), 1..120),
            share in 0.0f64..=1.0,
        ) {
            let rows = values.len().div_ceil(columns);
            let mut matrix = values;
            matrix.resize(rows * columns, 1.0);
            let pruned = (share * matrix.len() as f64).round() as usize;
            let kept = largest(&matrix, columns, pruned);
            let zero = |at: &usize| matrix[*at] == 0.0;
            let wanted: Vec<usize> = sorted(&matrix, columns, pruned).into_iter().filter(|at| !zero(at)).collect();
            let found: Vec<usize> = gone(&matrix, &kept).into_iter().filter(|at| !zero(at)).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn of_a_group_the_smallest_go(keys in prop::collection::vec(1u32..9, 1..40), share in 0.0f64..=1.0) {
            let pruned = (share * keys.len() as f64) as usize;
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by_key(|j| (keys[*j], *j));
            let mut wanted = keys.clone();
            order[..pruned].iter().for_each(|j| wanted[*j] = 0);
            let mut found = keys;
            drop_smallest(&mut found, pruned, &mut Vec::new());
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn groups_lose_their_smallest_whatever_their_size(
            keys in prop::collection::vec(1u32..9, 1..100),
            of in 2usize..18,
            pruned in 0usize..18,
        ) {
            let pruned = pruned.min(of - 1);
            let mut wanted = keys.clone();
            for group in wanted.chunks_mut(of) {
                let count = pruned * group.len() / of;
                drop_smallest(group, count, &mut Vec::new());
            }
            let mut found = keys;
            drop_of_groups(&mut found, pruned, of, &mut Vec::new());
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn high_bits_bound_the_key_looked_for_where_a_sample_misleads() {
        let matrix: Vec<f32> = (0..3000u32).map(|i| (i * 7919 % 3001) as f32 - 1500.0).collect();
        let mut keys: Vec<u32> = matrix.iter().map(|x| key(*x)).collect();
        keys.sort_unstable();
        for rank in [1, 2, 700, 2999, 3000] {
            let misled = Bounds { lowest: u32::MAX - 1, highest: u32::MAX };
            assert_eq!(kth_lowest(&[&near(&matrix, misled)], rank), None);
            let (kth, ..) = kth_lowest(&[&near(&matrix, by_high_bits(&matrix, rank))], rank).unwrap();
            assert_eq!(kth, keys[rank - 1], "{rank}");
        }
    }

    #[test]
    fn values_that_differ_in_any_bit_are_told_apart() {
        let matrix: Vec<f32> =
            (0..40_000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 7919 % 400_000)).collect();
        for pruned in [0, 1, 2, 777, 20_000, 39_999, 40_000] {
            assert_eq!(
                gone(&matrix, &largest(&matrix, 100, pruned)),
                sorted(&matrix, 100, pruned),
                "{pruned}"
            );
        }
    }
}

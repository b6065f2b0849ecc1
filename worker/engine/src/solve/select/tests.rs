use bytemuck::Zeroable;
use obsdiff_tests::Prng;
use proptest::prelude::*;

use super::super::strips::values_mut;
use super::*;

/// The end of keys that are spread over many bits.
const MOST: u32 = 1 << 29;

/// Keys below `end`, one after the other.
fn drawn(seed: u64, count: usize, end: u32) -> Vec<u32> {
    let mut prng = Prng::new(seed);
    (0..count).map(|_| prng.within(0..u64::from(end)) as u32).collect()
}

/// Strips of which row r, column c has the key `key(r, c)`, where U is 1.
fn strips(rows: usize, columns: usize, key: impl Fn(usize, usize) -> u32) -> Vec<Vec<StripColumn>> {
    let strip = |s| {
        let mut strip = vec![StripColumn::zeroed(); columns];
        let places = values_mut(&mut strip).iter_mut().enumerate();
        places.for_each(|(at, w)| *w = f32::from_bits(key(s * LANES + at % LANES, at / LANES)));
        strip
    };
    (0..rows.div_ceil(LANES)).map(strip).collect()
}

fn scored<'a>(strips: &'a [Vec<StripColumn>], rows: usize, reciprocal: &'a [f32]) -> Vec<Scored<'a>> {
    let each = strips.iter().enumerate();
    each.map(|(s, weight)| Scored { weight, rows: LANES.min(rows - s * LANES), reciprocal }).collect()
}

/// The keys within the bounds that a sample gives for the `count`-th.
fn near(strips: &[Scored<'_>], count: usize) -> Vec<NearKeys> {
    let all = strips.iter().map(Scored::len).sum();
    let mut sample = Vec::new();
    strips.iter().enumerate().for_each(|(s, strip)| strip.sample(s, all, &mut sample));
    let bounds = Bounds::of(sample, count as f64 / all as f64);
    strips.iter().map(|strip| strip.near(bounds)).collect()
}

#[test]
fn a_sample_tells_where_the_kth_of_many_lies() {
    let (rows, columns) = (24 * LANES, 128);
    let drawn = drawn(1, rows * columns, MOST);
    let key = |r: usize, c: usize| drawn[r * columns + c];
    let (strips, ones) = (strips(rows, columns, key), vec![1.0; columns]);
    let strips = scored(&strips, rows, &ones);
    let all = rows * columns;
    let mut sorted = drawn.clone();
    sorted.sort_unstable();
    for count in [1, all / 10, all / 2, all * 9 / 10, all - 1, all] {
        let near = near(&strips, count);
        let kept: usize = near.iter().map(|near| near.keys.len()).sum();
        assert!(kept < all / 20, "{kept} of {all} are near the {count}-th");
        let found = kth_lowest(&near.iter().collect::<Vec<_>>(), count).expect("the sample misleads");
        let kth = sorted[count - 1];
        let [below, up_to] =
            [sorted.partition_point(|key| *key < kth), sorted.partition_point(|key| *key <= kth)];
        assert_eq!(found, (kth, count - below, up_to - below), "{count} of {all}");
    }
}

/// Masks are of another kind for each.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_same_keys_are_near_by_any_instructions() {
    let (rows, columns) = (2 * LANES - 5, 40);
    let drawn = drawn(2, 2 * LANES * columns, MOST);
    let key = |r: usize, c: usize| drawn[r * columns + c];
    let (strips, ones) = (strips(rows, columns, key), vec![1.0; columns]);
    let bounds = Bounds { lowest: key(7, 7), highest: key(7, 7) + (1 << 27) };
    for strip in &scored(&strips, rows, &ones) {
        let plain = Simd::vectorize(pulp::Scalar::new(), KeysOfStrip { strip, bounds });
        let keys: Vec<u32> = (0..strip.len()).map(|at| strip.key(at)).collect();
        let within = keys.iter().copied().filter(|key| *key > bounds.lowest && *key <= bounds.highest);
        assert_eq!(plain.below, keys.iter().filter(|key| **key < bounds.lowest).count());
        assert_eq!(plain.lowest, keys.iter().filter(|key| **key == bounds.lowest).count());
        assert_eq!(plain.keys, within.collect::<Vec<_>>());
        if let Some(v3) = pulp::x86::V3::try_new() {
            assert_eq!(Simd::vectorize(v3, KeysOfStrip { strip, bounds }), plain);
        }
        if let Some(v4) = pulp::x86::V4::try_new() {
            assert_eq!(Simd::vectorize(v4, KeysOfStrip { strip, bounds }), plain);
        }
    }
}

proptest! {
    #[test]
    fn exactly_the_lowest_go(
        rows in 1usize..130,
        columns in 1usize..9,
        spread in prop::sample::select(vec![1u32, 2, 50, 1 << 30]),
        share in 0.0f64..=1.0,
        // That of another share misleads.
        sampled in prop::option::of(0.0f64..=1.0),
        seed: u64,
    ) {
        let count = (share * (rows * columns) as f64) as usize;
        let drawn = drawn(seed, rows.next_multiple_of(LANES) * columns, spread);
        let key = |r: usize, c: usize| drawn[r * columns + c];
        let mut all: Vec<_> = (0..columns)
            .flat_map(|c| (0..rows).map(move |r| (key(r, c), c, r)))
            .collect();
        all.sort_unstable();
        let (strips, ones) = (strips(rows, columns, key), vec![1.0; columns]);
        let strips = scored(&strips, rows, &ones);
        let near = near(&strips, sampled.map_or(count, |share| (share * (rows * columns) as f64) as usize));
        let limit = limit(&strips, &near.iter().collect::<Vec<_>>(), count);
        let keys: Vec<Vec<u32>> = strips.iter().enumerate().map(|(s, strip)| {
            let mut keys = vec![0; columns * LANES];
            limit.keys(strip, s * LANES, &mut keys);
            keys
        }).collect();
        let below = |c: usize, r: usize| keys[r / LANES][c * LANES + r % LANES] < limit.below();
        for (place, (_, c, r)) in all.into_iter().enumerate() {
            prop_assert_eq!(below(c, r), place < count, "column {} row {}", c, r);
        }
    }
}

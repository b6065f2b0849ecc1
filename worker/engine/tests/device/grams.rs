//! Grams.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use obsdiff_engine::gram::{Gram, GramError, GramSet, PlacedGram, column_energy};
use obsdiff_proto::{Accumulate, SiteId};
use obsdiff_tests::{Prng, noise};

use crate::device;

const SITE: SiteId = SiteId(3);

/// Whole numbers from -8 to 8: all products and sums of a few thousand are exact in f32.
fn whole_numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut prng = Prng::new(seed);
    (0..count).map(|_| prng.below(17) as f32 - 8.0).collect()
}

/// A set of the device's with one empty Gram.
fn opened(width: usize, accumulate: Accumulate, exponent: i32) -> Box<dyn GramSet> {
    let mut grams = device().grams();
    grams.open(SITE, &Arc::new(Gram::new(width, accumulate, exponent))).unwrap();
    grams
}

/// The Gram as the host reads it.
fn read(grams: &dyn GramSet, like: &Gram) -> Gram {
    let mut read = Gram::new(like.width(), like.accumulates(), like.exponent());
    grams.read(SITE, &mut read).unwrap();
    read
}

#[test]
fn grams_equal_the_processors_where_products_are_exact() {
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        for (width, tokens) in [(1, 1), (7, 3), (33, 300), (64, 64), (130, 257), (520, 11)] {
            let mut wanted = Gram::new(width, accumulate, 20);
            let mut grams = opened(width, accumulate, 20);
            for (seed, alpha) in [(1, 1.0), (2, 0.875), (3, 1.25)] {
                let rows = whole_numbers(seed, tokens * width);
                wanted.observe(&rows, alpha).unwrap();
                grams.observe(SITE, &rows, alpha).unwrap();
            }
            assert!(read(&*grams, &wanted) == wanted, "{accumulate:?}, {tokens} x {width}");
            assert_eq!(grams.diagonal(SITE).unwrap().unwrap(), wanted.diagonal());
        }
    }
}

#[test]
fn panels_of_any_height_are_formed_side_by_side_and_joined() {
    let (width, observations) = (67, 3);
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        let rows: Vec<_> = (0..observations).map(|seed| whole_numbers(seed, 40 * width)).collect();
        let mut wanted = Gram::new(width, accumulate, 20);
        rows.iter().for_each(|rows| wanted.observe(rows, 1.25).unwrap());
        // From one panel to many for each lane, with a last one that is lower or not.
        for height in [1, 8, 10, 23, 34, 66, 67, 500] {
            let height = NonZeroUsize::new(height).unwrap();
            let Some(mut grams) = device().grams_by_panels(height, NonZeroUsize::new(2)) else { return };
            grams.open(SITE, &Arc::new(Gram::new(width, accumulate, 20))).unwrap();
            rows.iter().for_each(|rows| grams.observe(SITE, rows, 1.25).unwrap());
            assert!(read(&*grams, &wanted) == wanted, "{accumulate:?}, panels of {height}");
        }
    }
}

#[test]
fn grams_are_close_to_the_processors_where_products_are_rounded() {
    let (width, tokens) = (96, 200);
    let mut wanted = Gram::new(width, Accumulate::Exact, 30);
    let mut grams = opened(width, Accumulate::Exact, 30);
    for seed in 0..3 {
        let rows = noise(seed, tokens * width);
        wanted.observe(&rows, 1.1).unwrap();
        grams.observe(SITE, &rows, 1.1).unwrap();
    }
    let found = read(&*grams, &wanted);
    assert_eq!(found.mass(), wanted.mass());
    let [found, wanted] = [&found, &wanted].map(|gram| gram.to_upper::<f64>(width));
    let largest = wanted.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let off = found.iter().zip(&wanted).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
    assert!(off < 1e-6 * largest, "off by {off} of {largest}");
}

#[test]
fn observations_in_another_order_give_the_same_bytes() {
    let width = 40;
    let observations: Vec<Vec<f32>> = (0..4).map(|seed| noise(seed, 50 * width)).collect();
    let sum = |order: [usize; 4]| {
        let mut grams = opened(width, Accumulate::Exact, 30);
        order.iter().for_each(|i| grams.observe(SITE, &observations[*i], 0.9).unwrap());
        read(&*grams, &Gram::new(width, Accumulate::Exact, 30))
    };
    assert!(sum([0, 1, 2, 3]) == sum([3, 1, 0, 2]));
}

#[test]
fn a_gram_goes_on_from_the_sums_it_was_opened_with() {
    let width = 12;
    let rows = whole_numbers(5, 9 * width);
    let mut before = Gram::new(width, Accumulate::Exact, 24);
    before.observe(&rows, 1.0).unwrap();
    let mut wanted = before.clone();
    wanted.observe(&rows, 0.5).unwrap();
    let mut grams = device().grams();
    grams.open(SITE, &Arc::new(before)).unwrap();
    grams.observe(SITE, &rows, 0.5).unwrap();
    assert!(read(&*grams, &wanted) == wanted);
    assert_eq!(grams.width(SITE), Some(width));
}

#[test]
fn what_cannot_be_added_is_refused_as_by_the_processor() {
    let width = 6;
    let good = whole_numbers(1, 4 * width);
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        let mut wanted = Gram::new(width, accumulate, 30);
        wanted.observe(&good, 1.0).unwrap();
        // A device may find out later, when more has been observed.
        let refuse = |rows: &[f32], alpha: f64| {
            let mut grams = opened(width, accumulate, 30);
            grams.observe(SITE, &good, 1.0).unwrap();
            let problem = match grams.observe(SITE, rows, alpha) {
                Err(problem) => {
                    assert!(read(&*grams, &wanted) == wanted, "{problem}");
                    problem
                }
                Ok(()) => {
                    grams.observe(SITE, &good, 1.0).unwrap();
                    let (site, problem) = grams.settle().unwrap_err();
                    assert_eq!(site, SITE);
                    // However often, and whoever asks.
                    assert_eq!(grams.settle(), Err((SITE, problem.clone())));
                    assert_eq!(grams.share(SITE).unwrap_err(), problem);
                    assert_eq!(grams.diagonal(SITE).unwrap_err(), problem);
                    assert_eq!(grams.read(SITE, &mut wanted.clone()), Err(problem.clone()));
                    problem
                }
            };
            assert_eq!(problem, wanted.clone().observe(rows, alpha).unwrap_err());
            problem
        };
        let with = |column: usize, value: f32| {
            let mut rows = good.clone();
            rows[2 * width + column] = value;
            rows
        };
        assert_eq!(refuse(&with(4, f32::NAN), 1.0), GramError::NotFinite { column: 4 });
        assert_eq!(refuse(&with(2, f32::INFINITY), 1.0), GramError::NotFinite { column: 2 });
        assert_eq!(refuse(&with(0, 3e19), 1.0), GramError::NotFinite { column: 0 });
        if accumulate == Accumulate::Exact {
            assert_eq!(refuse(&with(5, 40_000.0), 1.0), GramError::Overflow { column: 5, exponent: 30 });
        }
        refuse(&good[1..], 1.0);
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refuse(&good, alpha), GramError::Alpha);
        }
        let mut grams = opened(width, accumulate, 30);
        grams.observe(SITE, &good, 1.0).unwrap();
        grams.observe(SITE, &[], 1.0).unwrap();
        grams.observe(SiteId(4), &good, 1.0).unwrap();
        grams.settle().unwrap();
        assert!(read(&*grams, &wanted) == wanted);
    }
}

/// The other sites' sums are whole, wherever the site lies among them.
#[test]
fn the_site_whose_observation_is_refused_is_the_one_that_is_named() {
    let (width, ids) = (5, [2, 3, 9].map(SiteId));
    let good = whole_numbers(1, 4 * width);
    let mut wanted = Gram::new(width, Accumulate::Exact, 30);
    wanted.observe(&good, 1.0).unwrap();
    for refused in ids {
        let mut grams = device().grams();
        // Not in their order.
        for site in [9, 2, 3].map(SiteId) {
            grams.open_empty(site, &Arc::new(Gram::new(width, Accumulate::Exact, 30))).unwrap();
        }
        let mut problem = None;
        for site in ids {
            let large = 1e6;
            let rows = if site == refused { vec![large; 2 * width] } else { good.clone() };
            problem = problem.or(grams.observe(site, &rows, 1.0).err().map(|error| (site, error)));
        }
        let problem = problem.or_else(|| grams.settle().err());
        assert_eq!(problem, Some((refused, GramError::Overflow { column: 0, exponent: 30 })));
        for site in ids.into_iter().filter(|site| *site != refused) {
            let shared = grams.share(site).unwrap().unwrap();
            assert!(*shared.to_host().unwrap() == wanted, "{site:?}");
        }
    }
}

/// What a set has settled stays, and sites that are opened later have room for their verdicts.
#[test]
fn sites_are_opened_between_observations() {
    let width = 5;
    let rows = whole_numbers(1, 4 * width);
    let mut grams = device().grams();
    let mut wanted = Gram::new(width, Accumulate::Exact, 30);
    for (count, site) in [7, 1, 4].map(SiteId).into_iter().enumerate() {
        grams.open_empty(site, &Arc::new(Gram::new(width, Accumulate::Exact, 30))).unwrap();
        grams.observe(site, &rows, 1.0).unwrap();
        grams.observe(SiteId(7), &rows, 1.0).unwrap();
        (0..1 + usize::from(count == 0)).for_each(|_| wanted.observe(&rows, 1.0).unwrap());
    }
    grams.settle().unwrap();
    assert!(*grams.share(SiteId(7)).unwrap().unwrap().to_host().unwrap() == wanted);
}

#[test]
fn a_device_says_how_long_it_worked_on_observations() {
    let device = device();
    let mut grams = device.grams();
    grams.open_empty(SITE, &Arc::new(Gram::new(200, Accumulate::Exact, 30))).unwrap();
    for seed in 1..4 {
        let begun = Instant::now();
        grams.observe(SITE, &noise(seed, 300 * 200), 1.0).unwrap();
        let worked = grams.settle().unwrap();
        assert_eq!(worked.is_zero(), device.gpu().is_none());
        assert!(worked <= begun.elapsed());
        // Each is told of once.
        assert!(grams.settle().unwrap().is_zero());
    }
}

#[test]
fn a_gram_of_another_shape_is_not_read() {
    let grams = opened(6, Accumulate::Exact, 30);
    let others = [
        Gram::new(5, Accumulate::Exact, 30),
        Gram::new(6, Accumulate::Exact, 29),
        Gram::new(6, Accumulate::F32, 0),
    ];
    for mut other in others {
        assert_eq!(grams.read(SITE, &mut other), Err(GramError::Mismatch));
    }
    let mut like = Gram::new(6, Accumulate::Exact, 30);
    assert_eq!(grams.read(SiteId(4), &mut like), Err(GramError::Mismatch));
    assert!(grams.diagonal(SiteId(4)).unwrap().is_none());
}

#[test]
fn energies_equal_the_processors_where_squares_are_exact() {
    let mut grams = device().grams();
    for (width, tokens) in [(1, 1), (5, 600), (300, 7)] {
        let rows = whole_numbers(7, tokens * width);
        let (mut found, mut wanted) = (vec![1.0; width], vec![1.0; width]);
        grams.column_energy(&rows, width, 0.75, &mut found).unwrap();
        column_energy(&rows, width, 0.75, &mut wanted);
        assert_eq!(found, wanted);
    }
}

#[test]
fn a_gram_is_shared_with_the_sums_it_was_opened_with() {
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        let mut wanted = Gram::new(21, accumulate, 20);
        wanted.observe(&whole_numbers(1, 30 * 21), 0.5).unwrap();
        let mut grams = device().grams();
        grams.open(SITE, &Arc::new(wanted.clone())).unwrap();
        // Nobody has waited for the copy but who shares it.
        assert!(*grams.share(SITE).unwrap().unwrap().to_host().unwrap() == wanted);
    }
}

#[test]
fn a_gram_that_is_shared_stays_as_it_was_and_is_read_anywhere() {
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        let width = 21;
        let rows = [1, 2].map(|seed| whole_numbers(seed, 30 * width));
        let mut grams = device().grams();
        let mut wanted = Gram::new(width, accumulate, 20);
        grams.open_empty(SITE, &Arc::new(wanted.clone())).unwrap();
        grams.observe(SITE, &rows[0], 0.5).unwrap();
        wanted.observe(&rows[0], 0.5).unwrap();
        let shared = grams.share(SITE).unwrap().unwrap();
        let address = |gram: &PlacedGram| gram.numbers().map(|numbers| numbers.address());
        let before = address(&shared);
        // What is shared is copied once, and then the set's own again.
        let mut grown = wanted.clone();
        for alpha in [1.0, 0.25] {
            grams.observe(SITE, &rows[1], alpha).unwrap();
            grown.observe(&rows[1], alpha).unwrap();
        }
        assert!(read(&*grams, &wanted) == grown);
        let later = grams.share(SITE).unwrap().unwrap();
        assert!(before.is_none() || address(&later) != before);
        assert!(*later.to_host().unwrap() == grown);
        drop(later);
        let at = || address(&grams.share(SITE).unwrap().unwrap());
        let last = at();
        assert_eq!((last, address(&shared)), (at(), before));
        // Threads that own no device read it, too.
        let found = thread::scope(|scope| scope.spawn(|| shared.to_host().unwrap()).join().unwrap());
        assert!(*found == wanted);
        assert_eq!((shared.width(), shared.exponent()), (wanted.width(), wanted.exponent()));
        assert_eq!((shared.accumulates(), shared.mass_units()), (accumulate, wanted.mass_units()));
        assert_eq!(shared.diagonal_units().unwrap(), wanted.diagonal_units());
        assert_eq!(shared.trace().unwrap(), wanted.trace());
        let numbers = shared.numbers();
        assert_eq!(numbers.is_some(), device().gpu().is_some());
        if let Some(numbers) = numbers {
            assert_eq!((numbers.count(), numbers.accumulates()), (Gram::entries(width), accumulate));
        }
        assert!(grams.share(SiteId(4)).unwrap().is_none());
    }
}

#[test]
fn sums_are_received_on_a_gpu_where_it_has_room_for_them() {
    let device = device();
    let receive = |more| device.gram_to_receive(40, Accumulate::Exact, (7, 11), more).unwrap();
    assert!(receive(1 << 60).is_none());
    let received = receive(0);
    assert_eq!(received.is_some(), device.gpu().is_some());
    let Some(gram) = received else { return };
    assert_eq!((gram.width(), gram.exponent(), gram.mass_units()), (40, 7, 11));
    let zeros = device.zeros(Accumulate::F32, 9).unwrap().unwrap();
    assert_eq!((zeros.count(), zeros.accumulates()), (9, Accumulate::F32));
    assert!(gram.diagonal_units().unwrap().unwrap().iter().all(|sum| *sum == 0));
}

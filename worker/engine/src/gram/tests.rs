mod kernels;
mod packed;

use obsdiff_proto::Accumulate;
pub(crate) use obsdiff_tests::noise;
use proptest::prelude::*;

use super::packed::{entries, row_start};
use super::*;

fn threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

/// sum alpha X^T X in f64, by definition.
fn plain(observations: &[(Vec<f32>, f64)], n: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n * n];
    for (rows, alpha) in observations {
        for row in rows.chunks(n) {
            for i in 0..n {
                for j in 0..n {
                    sums[i * n + j] += alpha * f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
    }
    sums
}

fn observations(n: usize, tokens: &[usize]) -> Vec<(Vec<f32>, f64)> {
    let observation = |(k, &t): (usize, &usize)| (noise(k as u64 + 1, t * n), 0.8 + 0.1 * k as f64);
    tokens.iter().enumerate().map(observation).collect()
}

fn gathered<'a>(n: usize, kind: Accumulate, all: impl IntoIterator<Item = &'a (Vec<f32>, f64)>) -> Gram {
    let mut gram = Gram::new(n, kind, 30);
    all.into_iter().for_each(|(rows, alpha)| gram.observe(rows, *alpha).unwrap());
    gram
}

#[test]
fn equals_the_definition_at_any_width() {
    for n in [1, 3, 64, 128, 200, 257, 513] {
        let all = observations(n, &[5, 1, 70]);
        let expected = plain(&all, n);
        for (kind, tolerance) in [(Accumulate::Exact, 1e-5), (Accumulate::F32, 1e-5)] {
            let gram = gathered(n, kind, &all);
            let largest = expected.iter().fold(0.0, |a: f64, b| a.max(*b));
            let mass: f64 = all.iter().map(|(rows, alpha)| alpha * (rows.len() / n) as f64).sum();
            assert!((gram.mass() - mass).abs() < 1e-4 * mass, "mass {} {mass}", gram.mass());
            let trace: f64 = (0..n).map(|j| expected[j * n + j]).sum();
            assert!((gram.trace() - trace).abs() < 1e-5 * trace);
            let stride = n + 5;
            let kept = gram.to_upper::<f64>(stride);
            let upper = gram.to_upper::<f64>(stride);
            assert_eq!(kept, upper);
            for i in 0..n {
                for j in 0..stride {
                    let wanted = if (i..n).contains(&j) { expected[i * n + j] / mass } else { 0.0 };
                    let error = (upper[i * stride + j] - wanted).abs();
                    assert!(error < tolerance * largest / mass, "n {n} at {i},{j}: off by {error}");
                }
            }
        }
    }
}

#[test]
fn an_observation_longer_than_one_product_is_taken_whole() {
    let all = observations(3, &[2500]);
    let gram = gathered(3, Accumulate::Exact, &all);
    let expected = plain(&all, 3);
    for (j, found) in gram.diagonal().into_iter().enumerate() {
        assert!((found - expected[j * 4]).abs() < 1e-5 * expected[j * 4]);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let all = observations(700, &[90, 1100]);
    let one = threads(1, || gathered(700, Accumulate::Exact, &all));
    let two = threads(2, || gathered(700, Accumulate::Exact, &all));
    assert_eq!(one, two);
    let float = |count| threads(count, || gathered(700, Accumulate::F32, &all));
    assert_eq!(float(1), float(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn neither_split_nor_order_changes_a_bit(
        n in prop::sample::select(vec![1usize, 3, 128, 200]),
        tokens in prop::collection::vec(1usize..40, 1..7),
        workers in prop::collection::vec(0usize..3, 7),
        order in Just((0..7usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let all = observations(n, &tokens);
        let whole = gathered(n, Accumulate::Exact, &all);
        let mut shares = vec![Gram::new(n, Accumulate::Exact, 30); 3];
        for k in order.into_iter().filter(|k| *k < all.len()) {
            shares[workers[k]].observe(&all[k].0, all[k].1).unwrap();
        }
        let mut merged = Gram::new(n, Accumulate::Exact, 30);
        for share in shares.iter().rev() {
            merged.merge(share).unwrap();
        }
        prop_assert_eq!(whole, merged);
    }

    #[test]
    fn the_exponent_is_the_largest_with_headroom(sum in -80.0f64..80.0, share in 0.0f64..30.0) {
        let (sum, observation) = (sum.exp2(), (sum - share).exp2());
        let unit = f64::from(exponent_for(sum, observation)).exp2();
        let fits = |unit: f64| 8.0 * sum * unit <= SUM_LIMIT && 8.0 * observation * unit <= OBSERVATION_LIMIT;
        prop_assert!(fits(unit * 0.999));
        prop_assert!(!fits(unit * 2.001));
    }
}

#[test]
fn exponents_of_degenerate_pilots_are_usable() {
    assert_eq!(exponent_for(0.0, 0.0), 0);
    for (sum, observation) in
        [(f64::NAN, f64::NAN), (f64::INFINITY, 1.0), (1e-320, 1e-320), (f64::MAX, f64::MAX)]
    {
        let unit = f64::from(exponent_for(sum, observation)).exp2();
        assert!(unit.is_normal() && (1.0 / unit).is_normal());
    }
}

#[test]
fn an_overflow_is_refused_and_changes_nothing() {
    let rows = [1.0, 0.5, 0.25, 2.0];
    // Column 1 has energy 4.25: within 2^50 at exponent 47, past it at 48.
    let mut gram = Gram::new(2, Accumulate::Exact, 48);
    let before = gram.clone();
    assert_eq!(gram.observe(&rows, 1.0), Err(GramError::Overflow { column: 1, exponent: 48 }));
    assert_eq!(gram, before);
    assert_eq!(Gram::new(2, Accumulate::Exact, 47).observe(&rows, 1.0), Ok(()));
}

#[test]
fn a_sum_that_overflows_is_refused_and_changes_nothing() {
    // An observation takes 2^49 of 2^62, so doubling 13 times reaches the limit exactly.
    let mut gram = Gram::new(1, Accumulate::Exact, 49);
    gram.observe(&[1.0], 1.0).unwrap();
    for _ in 0..12 {
        let other = gram.clone();
        gram.merge(&other).unwrap();
    }
    let (half, unit) = (gram.clone(), gram.trace() / 4096.0);
    assert_eq!(gram.merge(&half), Err(GramError::Overflow { column: 0, exponent: 49 }));
    assert_eq!(gram, half);
    assert_eq!(unit, 1.0);
    let mut nearly = half.clone();
    for _ in 0..4095 {
        nearly.observe(&[1.0], 1.0).unwrap();
    }
    assert_eq!(nearly.observe(&[1.0], 1.0), Err(GramError::Overflow { column: 0, exponent: 49 }));
}

#[test]
fn a_sum_of_f32_past_half_their_range_is_refused_and_changes_nothing() {
    let mut gram = Gram::new(2, Accumulate::F32, 0);
    gram.observe(&[1.0, 1e19], 1.5).unwrap();
    let before = gram.clone();
    assert_eq!(gram.observe(&[1.0, 1e19], 1.5), Err(GramError::Overflow { column: 1, exponent: 0 }));
    assert_eq!(gram, before);
    assert_eq!(gram.observe(&[1.0, 1e18], 1.5), Ok(()));
}

#[test]
fn the_least_and_the_largest_weights_of_steps_count_in_the_mass() {
    for alpha in [0.01, 100.0] {
        let mut gram = Gram::new(1, Accumulate::Exact, 0);
        gram.observe(&[0.5; 9], alpha).unwrap();
        assert!((gram.mass() / (9.0 * alpha) - 1.0).abs() < 3e-6, "{} at {alpha}", gram.mass());
    }
}

#[test]
fn values_that_cannot_be_squared_are_refused() {
    for kind in [Accumulate::Exact, Accumulate::F32] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20] {
            let mut gram = Gram::new(3, kind, 0);
            let before = gram.clone();
            assert_eq!(gram.observe(&[0.0, 1.0, bad], 1.0), Err(GramError::NotFinite { column: 2 }));
            assert_eq!(gram, before);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut gram = Gram::new(2, Accumulate::Exact, 0);
    assert_eq!(gram.observe(&[1.0; 3], 1.0), Err(GramError::Rows { values: 3, width: 2 }));
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(gram.observe(&[1.0; 2], alpha), Err(GramError::Alpha));
    }
    for other in [
        Gram::new(3, Accumulate::Exact, 0),
        Gram::new(2, Accumulate::Exact, 1),
        Gram::new(2, Accumulate::F32, 0),
    ] {
        assert_eq!(gram.merge(&other), Err(GramError::Mismatch));
    }
}

#[test]
fn no_rows_change_nothing() {
    let mut gram = Gram::new(2, Accumulate::Exact, 0);
    gram.observe(&[], 1.0).unwrap();
    assert_eq!(gram, Gram::new(2, Accumulate::Exact, 0));
    assert_eq!(gram.to_upper::<f32>(2), [0.0; 4]);
}

#[test]
fn energies_are_the_diagonal() {
    let n = 300;
    let rows = noise(3, 20 * n);
    let mut energy = vec![1.0; n];
    column_energy(&rows, n, 0.9, &mut energy);
    let diagonal = gathered(n, Accumulate::Exact, &[(rows, 0.9)]).diagonal();
    for (e, d) in energy.iter().zip(diagonal) {
        assert!((e - 1.0 - d).abs() < 1e-5 * d);
    }
}

#[test]
fn bytes_are_what_the_sums_take() {
    for n in [1, 3, 128, 1536] {
        assert_eq!(Gram::bytes(n, Accumulate::Exact), 8 * entries(n) as u64);
        let gram = Gram::new(n, Accumulate::F32, 0);
        let GramSums::F32(sums) = gram.sums() else { panic!("asked for f32") };
        assert_eq!(Gram::bytes(n, Accumulate::F32), 4 * sums.len() as u64);
        assert_eq!(row_start(n, n), entries(n));
    }
}

//! Whole heads and neurons of linears.

use std::sync::Arc;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::moments::SiteMoments;
use obsdiff_engine::device::transfers::{Copies, TransferKind};
use obsdiff_engine::gram::{Gram, PlacedGram};
use obsdiff_engine::solve::SolveError;
use obsdiff_engine::solve::structured::{Columns, Removal, Score, StructuredLayer, heads, neurons};
use obsdiff_proto::{Accumulate, SiteId};
use obsdiff_tests::noise;

use crate::device;

/// A linear of correlated inputs of different sizes, of which some are dead: its weight (rows x n) and its Gram (n x n).
pub(crate) fn linear(seed: u64, rows: usize, n: usize, dead: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let mut inputs: Vec<f64> = noise(seed, 3 * n * n).into_iter().map(f64::from).collect();
    for row in inputs.chunks_mut(n) {
        (1..n).for_each(|j| row[j] += 0.5 * row[j - 1]);
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + ((j * 7) % 5) as f64);
        dead.iter().for_each(|j| row[*j] = 0.0);
    }
    let mut gram = vec![0.0; n * n];
    for row in inputs.chunks(n) {
        gram.iter_mut().enumerate().for_each(|(at, sum)| *sum += row[at / n] * row[at % n]);
    }
    (noise(seed + 1, rows * n).into_iter().map(f64::from).collect(), gram)
}

/// What removing parts leaves of the layers: steps, weights and the errors that were expected of parts before.
type Removed = (Vec<Removal>, Vec<Vec<f64>>);

fn removed(
    device: &ComputeDevice,
    linears: &[(Vec<f64>, Vec<f64>)],
    columns: Columns,
    count: usize,
    score: Score,
) -> Removed {
    let n = linears[0].1.len().isqrt();
    let layers = linears.iter().map(|(weight, gram)| device.structured(n, weight, gram, 0.01));
    let mut layers: Vec<Box<dyn StructuredLayer>> = layers.map(Result::unwrap).collect();
    let untouched = layers[0].duplicate().unwrap();
    let steps = if columns.size == 1 {
        neurons(&mut layers[0], columns, count, score)
    } else {
        heads(&mut layers, &vec![columns; linears.len()], count, score)
    };
    // A copy keeps its weight. Dead columns go at once.
    let kept = untouched.weight_on_host().unwrap();
    let pairs = kept.iter().zip(&linears[0].0).enumerate();
    assert!(pairs.into_iter().all(|(at, (a, b))| a == b || linears[0].1[(at % n) * (n + 1)] == 0.0));
    (steps.unwrap(), layers.iter().map(|layer| layer.weight_on_host().unwrap().into_owned()).collect())
}

#[test]
fn heads_and_neurons_go_as_on_the_processor() {
    // Neurons so many that some are applied together, and some are left over then.
    let cases = [
        (vec![(20, 1)], 150, vec![], Columns::all(150, 1), 110),
        (vec![(12, 2)], 60, vec![3, 41], Columns { offset: 10, size: 1, count: 50 }, 30),
        (vec![(24, 3), (16, 5)], 64, vec![], Columns::all(64, 8), 5),
        (vec![(24, 7)], 70, vec![9], Columns { offset: 6, size: 16, count: 4 }, 3),
    ];
    for (linears, n, dead, columns, count) in cases {
        let linears: Vec<_> = linears.iter().map(|(rows, seed)| linear(*seed, *rows, n, &dead)).collect();
        for score in [Score::Exact, Score::Published] {
            let [(steps, weights), (wanted_steps, wanted)] = [device(), ComputeDevice::Cpu]
                .map(|device| removed(&device, &linears, columns, count, score));
            let parts = |steps: &[Removal]| steps.iter().map(|step| step.part).collect::<Vec<_>>();
            assert_eq!(parts(&steps), parts(&wanted_steps), "{columns:?}, {score:?}");
            assert_eq!(steps.len(), count);
            for (found, wanted) in steps.iter().zip(&wanted_steps) {
                let off = (found.error - wanted.error).abs();
                assert!(off <= 1e-8 * wanted.error + 1e-14, "{columns:?}, {score:?}: {found:?} {wanted:?}");
            }
            for (found, wanted) in weights.iter().zip(&wanted) {
                let largest = wanted.iter().fold(0.0, |most: f64, w| most.max(w.abs()));
                for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                    assert!(
                        (found - wanted).abs() <= 1e-9 * largest,
                        "{columns:?}, {score:?}: {found} {wanted}"
                    );
                    let gone = steps.iter().any(|step| {
                        let first = columns.offset + step.part * columns.size;
                        (first..first + columns.size).contains(&(at % n))
                    });
                    assert!(!gone || *found == 0.0, "{columns:?}, {score:?}: {found} in column {}", at % n);
                }
            }
        }
    }
}

#[test]
fn energies_and_damping_are_the_processors() {
    let (weight, gram) = linear(11, 30, 40, &[5]);
    // Features that are all the same have no factor without damping.
    let ones = vec![1.0; 40 * 40];
    let [found, wanted] = [device(), ComputeDevice::Cpu].map(|device| {
        let layer = device.structured(40, &weight, &gram, 0.01).unwrap();
        let raised = device.structured(40, &weight, &ones, 0.0).unwrap();
        let energy = device.output_energy(&weight, &ones).unwrap();
        ([layer.energy(), raised.energy(), energy], [layer.damping_used(), raised.damping_used()])
    });
    assert_eq!(found.1, wanted.1);
    assert!(found.1[1] > 0.0);
    for (found, wanted) in found.0.iter().zip(&wanted.0) {
        assert!((found / wanted - 1.0).abs() < 1e-12, "{found} {wanted}");
    }
}

#[test]
fn what_no_column_can_be_removed_from_is_refused_as_by_the_processor() {
    let (weight, gram) = linear(13, 4, 6, &[]);
    let mut infinite = weight.clone();
    infinite[2 * 6 + 5] = f64::NAN;
    // The second pivot is negative, whatever is added to it.
    let mut no_gram = vec![0.0; 36];
    (0..6).for_each(|j| no_gram[j * 7] = 1.0);
    (no_gram[1], no_gram[6]) = (5.0, 5.0);
    for device in [device(), ComputeDevice::Cpu] {
        let refused = |weight: &[f64], gram: &[f64], damping: f64| {
            device.structured(6, weight, gram, damping).err().unwrap()
        };
        assert_eq!(refused(&infinite, &gram, 0.01), SolveError::WeightNotFinite { row: 2, column: 5 });
        assert_eq!(refused(&weight[1..], &gram, 0.01), SolveError::Size { rows: 3, columns: 6, found: 23 });
        assert_eq!(refused(&weight, &gram[1..], 0.01), SolveError::Size { rows: 6, columns: 6, found: 35 });
        assert_eq!(refused(&weight, &gram, -1.0), SolveError::Damping { damping: -1.0 });
        assert_eq!(refused(&weight, &no_gram, 0.01), SolveError::NotPositive { damping: 1.0 });
        let mut layer = device.structured(6, &weight, &gram, 0.01).unwrap();
        let seven = Columns { offset: 0, size: 1, count: 7 };
        assert!(matches!(neurons(&mut layer, seven, 1, Score::Exact), Err(SolveError::Size { .. })));
    }
}

/// Observations of n features and the constant 1. Feature 2 is 0 in every one and feature 5 is always 3.
fn observations_with_constant(n: usize) -> [Vec<f32>; 2] {
    [1, 2].map(|seed| {
        let mut rows = noise(seed, 2 * n * (n + 1));
        rows.chunks_mut(n + 1).for_each(|row| (row[2], row[5], row[n]) = (0.0, 3.0, 1.0));
        rows
    })
}

/// Their Gram, as a device sums it.
fn gram_with_constant(device: &ComputeDevice, n: usize, accumulate: Accumulate) -> PlacedGram {
    let mut grams = device.grams();
    grams.open_empty(SiteId(0), &Arc::new(Gram::new(n + 1, accumulate, 20))).unwrap();
    for rows in observations_with_constant(n) {
        grams.observe(SiteId(0), &rows, 0.75).unwrap();
    }
    grams.share(SiteId(0)).unwrap().unwrap()
}

#[test]
fn moments_of_a_devices_sums_are_those_of_a_copy_on_the_host_and_no_sum_crosses() {
    let (device, rows, n) = (device(), 20, 70);
    let weight: Vec<f64> = noise(9, rows * n).into_iter().map(f64::from).collect();
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        for about_means in [false, true] {
            let gram = gram_with_constant(&device, n, accumulate);
            let solved = |gram: &PlacedGram| {
                let moments = SiteMoments::new(&device, gram, about_means).unwrap();
                let mut layer = moments.linear(&weight, 0.01).unwrap();
                let columns = Columns::all(n, 1);
                let dead = layer
                    .weight_on_host()
                    .unwrap()
                    .chunks(n)
                    .all(|row| row[2] == 0.0 && (row[5] == 0.0) == about_means);
                assert!(dead, "{accumulate:?}, {about_means}");
                let steps = neurons(&mut layer, columns, 40, Score::Exact).unwrap();
                let after = layer.weight_on_host().unwrap().into_owned();
                let change: Vec<f64> = after.iter().zip(&weight).map(|(a, b)| a - b).collect();
                let error = moments.relative_error(&weight, &change).unwrap();
                assert!(error > 0.0 && (moments.means()[5] - 3.0).abs() < 1e-4);
                let bits = |numbers: &[f64]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                (steps, bits(&after), bits(moments.means()), [error, layer.energy(), layer.damping_used()])
            };
            let before = device.transfers();
            let in_place = solved(&gram);
            let crossed = device.transfers().since(&before);
            assert_eq!(
                crossed.to_host(TransferKind::Grams),
                Copies::default(),
                "{accumulate:?}, {about_means}"
            );
            assert_eq!(crossed.to_device(TransferKind::Grams), Copies::default());
            assert_eq!(in_place, solved(&gram.to_host().unwrap().into()), "{accumulate:?}, {about_means}");
        }
    }
}

/// Of outputs W x the mean of |W x|^2, and of their changes D x that of |D x|^2, or of |D (x - mean)|^2 where a bias takes the means over.
#[test]
fn errors_are_means_over_all_that_was_observed() {
    let (device, rows, n) = (device(), 6, 21);
    let [weight, change]: [Vec<f64>; 2] =
        [9, 10].map(|seed| noise(seed, rows * n).into_iter().map(f64::from).collect());
    let observed: Vec<Vec<f64>> = observations_with_constant(n)
        .iter()
        .flat_map(|rows| rows.chunks(n + 1).map(|row| row[..n].iter().map(|x| f64::from(*x)).collect()))
        .collect();
    let means: Vec<f64> =
        (0..n).map(|j| observed.iter().map(|x| x[j]).sum::<f64>() / observed.len() as f64).collect();
    let energy = |weight: &[f64], about: &[f64]| {
        let output = |x: &Vec<f64>| -> f64 {
            let of_row =
                |row: &[f64]| row.iter().zip(x).zip(about).map(|((w, x), a)| w * (x - a)).sum::<f64>();
            weight.chunks(n).map(|row| of_row(row).powi(2)).sum()
        };
        observed.iter().map(output).sum::<f64>() / observed.len() as f64
    };
    let whole = energy(&weight, &vec![0.0; n]);
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        for about_means in [false, true] {
            let gram = gram_with_constant(&device, n, accumulate);
            let moments = SiteMoments::new(&device, &gram, about_means).unwrap();
            let about = if about_means { means.clone() } else { vec![0.0; n] };
            let close = |found: f64, wanted: f64, what: &str| {
                let off = (found / wanted - 1.0).abs();
                assert!(off < 1e-4, "{what}, {accumulate:?}, {about_means}: {found} {wanted}");
            };
            let error = moments.relative_error(&weight, &change).unwrap();
            close(error, energy(&change, &about) / whole, "a change");
            close(moments.linear(&weight, 0.01).unwrap().energy(), energy(&weight, &about), "a weight");
            let short = SolveError::Size { rows: rows - 1, columns: n, found: rows * n - 1 };
            assert_eq!(moments.relative_error(&weight[1..], &change), Err(short.clone()));
            assert_eq!(moments.relative_error(&weight, &change[1..]), Err(short.clone()));
            assert_eq!(moments.linear(&weight[1..], 0.01).err(), Some(short));
        }
    }
}

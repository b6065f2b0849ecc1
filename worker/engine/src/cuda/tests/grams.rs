//! Observations are added to Grams while others are observed, judged, freed and overwritten.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_proto::{Accumulate, SiteId};

use super::device;
use crate::HOST;
use crate::cuda::{CudaDevice, CudaGrams, CudaMatrix};
use crate::device::transfers::TransferKind;
use crate::gram::{Gram, GramError, GramSet, GramSumsMut};
use crate::model::Matrix;

/// Whole numbers, of which sums of products are exact.
fn rows(seed: usize, tokens: usize, width: usize) -> Vec<f32> {
    (0..tokens * width).map(|i| ((i * 7 + seed * 5) % 17) as f32 - 8.0).collect()
}

fn matrix(device: &Arc<CudaDevice>, rows: &[f32], width: usize) -> Matrix {
    let rows = Tensor::from_slice(rows, (rows.len() / width, width), &HOST).unwrap();
    CudaMatrix::upload(device, TransferKind::Activations, &rows).unwrap().into()
}

/// Rows of an odd width, which a feature of constant 1 makes, by panels whose own rows are aligned.
#[test]
fn panels_of_an_odd_width_add_what_the_processor_adds() {
    let Some(device) = device().map(Arc::new) else { return };
    let (width, tokens, site) = (66, 40, SiteId(0));
    let rows: Vec<f32> = (0..tokens * width).map(|i| (i * 7 % 17) as f32 - 8.0).collect();
    let with_ones: Vec<f32> = rows.chunks(width).flat_map(|row| [row, &[1.0]].concat()).collect();
    let empty = Gram::new(width + 1, Accumulate::Exact, 20);
    let mut wanted = empty.clone();
    wanted.observe(&with_ones, 1.25).unwrap();
    let rows = Tensor::from_vec(rows, (tokens, width), &HOST).unwrap();
    for numbers in [DType::F32, DType::BF16] {
        let rows = rows.to_dtype(numbers).unwrap();
        let rows = Matrix::from(CudaMatrix::upload(&device, TransferKind::Activations, &rows).unwrap());
        // Of one panel and of many, which begin at a multiple of 8 or not.
        for height in [1, 8, 10, 24, 512] {
            let mut grams = CudaGrams::by_panels(Arc::clone(&device), height, None);
            grams.open_empty(site, &Arc::new(empty.clone())).unwrap();
            assert!(grams.observe_in_place(site, &rows, 1.25).unwrap());
            let mut found = empty.clone();
            grams.read(site, &mut found).unwrap();
            assert!(found == wanted, "{numbers:?}, panels of {height}");
        }
    }
}

/// Each matrix goes as soon as it is observed; panels get other sizes, and more memory; and rows are padded where others still are.
#[test]
fn observations_go_on_while_the_last_ones_are_added() {
    let Some(device) = device().map(Arc::new) else { return };
    // Some sites have a feature of constant 1 besides.
    let sites = [(9, 0), (24, 1), (67, 0), (40, 1), (66, 1)];
    for height in [4, 11, 30, 500] {
        let mut grams = CudaGrams::by_panels(Arc::clone(&device), height, Some(3));
        let mut wanted = Vec::new();
        for (site, (width, ones)) in sites.into_iter().enumerate() {
            let empty = Gram::new(width + ones, Accumulate::Exact, 20);
            grams.open_empty(SiteId(site as u32), &Arc::new(empty.clone())).unwrap();
            wanted.push(empty);
        }
        for round in 0..4 {
            for (site, (width, ones)) in sites.into_iter().enumerate() {
                let observed = rows(site + 10 * round, 12 + 5 * round, width);
                let whole: Vec<f32> =
                    observed.chunks(width).flat_map(|row| [row, &[1.0; 1][..ones]].concat()).collect();
                wanted[site].observe(&whole, 1.25).unwrap();
                if round == 2 && ones == 0 {
                    grams.observe(SiteId(site as u32), &observed, 1.25).unwrap();
                } else {
                    let observed = matrix(&device, &observed, width);
                    assert!(grams.observe_in_place(SiteId(site as u32), &observed, 1.25).unwrap());
                }
            }
        }
        for (site, wanted) in wanted.iter().enumerate() {
            let mut found = Gram::new(wanted.width(), Accumulate::Exact, 20);
            grams.read(SiteId(site as u32), &mut found).unwrap();
            assert!(found == *wanted, "site {site}, panels of {height}");
        }
    }
}

/// Nothing is asked for after the last observation, whose panels are still to be added.
#[test]
fn grams_may_go_before_panels_are_added() {
    let Some(device) = device().map(Arc::new) else { return };
    for height in [3, 40] {
        let mut grams = CudaGrams::by_panels(Arc::clone(&device), height, None);
        grams.open_empty(SiteId(0), &Arc::new(Gram::new(40, Accumulate::Exact, 20))).unwrap();
        for seed in 0..3 {
            grams.observe_in_place(SiteId(0), &matrix(&device, &rows(seed, 30, 40), 40), 1.0).unwrap();
        }
        drop(grams);
        device.driver().wait().unwrap();
    }
}

/// Below the limit of one sum is room for four of the same observations, and not for five.
#[test]
fn an_observation_is_judged_by_sums_that_have_all_panels_of_the_last_one() {
    let Some(device) = device().map(Arc::new) else { return };
    let (width, exponent, site) = (40, 30, SiteId(0));
    for column in [0, 6, 13, 39] {
        let mut started = Gram::new(width, Accumulate::Exact, exponent);
        let at = (0..column).map(|row| width - row).sum::<usize>();
        let GramSumsMut::Exact(sums) = started.parts_mut().0 else { unreachable!("sums are exact") };
        sums[at] = (1 << 62) - (5 << 48);
        let mut observed = rows(1, 20, width);
        // Its square is 2^18: 2^48 units.
        observed.iter_mut().skip(column).step_by(width).for_each(|x| *x = 0.0);
        observed[column] = 512.0;
        let mut wanted = started.clone();
        let refused: Vec<_> = (0..6).map(|_| wanted.observe(&observed, 1.0)).collect();
        let overflow = Err(GramError::Overflow { column, exponent });
        let fit = refused.iter().filter(|result| result.is_ok()).count();
        assert_eq!((fit, &refused[fit]), (4, &overflow));
        for height in [3, 7, 500] {
            for (count, expected) in [(fit, Ok(())), (fit + 1, overflow.clone())] {
                let mut grams = CudaGrams::by_panels(Arc::clone(&device), height, None);
                grams.open(site, &Arc::new(started.clone())).unwrap();
                let rows = matrix(&device, &observed, width);
                for _ in 0..count {
                    grams.observe_in_place(site, &rows, 1.0).unwrap();
                }
                let found = grams.settle().map(drop).map_err(|(_, refused)| refused);
                assert_eq!(found, expected, "{count} observations, panels of {height}");
            }
        }
    }
}

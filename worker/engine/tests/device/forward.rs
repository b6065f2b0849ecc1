//! Forward calls.

use std::sync::Arc;

use candle_core::DType;
use obsdiff_engine::calibrate::GramTap;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::{Gram, GramSet};
use obsdiff_engine::model::NoTap;
use obsdiff_proto::Accumulate;

use crate::device;
use crate::golden::Golden;

/// Empty Grams of every site of a model, on a device.
pub(crate) fn grams_of(golden: &Golden, device: &ComputeDevice) -> Box<dyn GramSet> {
    let (mut grams, inventory) = (device.grams(), golden.model.inventory());
    for site in inventory.site_ids() {
        let gram = Gram::new(inventory.site(site).width, Accumulate::Exact, 20);
        grams.open(site, &Arc::new(gram)).unwrap();
    }
    grams
}

#[test]
fn blocks_hold_to_the_goldens() {
    for (name, dtype, limit) in [
        ("sd35-medium", DType::F32, 2e-4),
        ("sd3-medium", DType::BF16, 0.03),
        ("flux-dev", DType::F32, 2e-4),
        ("flux-schnell", DType::F16, 0.005),
    ] {
        let (output, gram) = Golden::open(name, dtype, &device()).deviations();
        assert!(output < limit && gram < limit, "{name} in {dtype:?}: output {output:e}, a Gram {gram:e}");
    }
}

#[test]
fn a_forward_call_gives_the_same_bytes_twice_and_of_a_duplicate() {
    let golden = Golden::open("sd35-medium", DType::BF16, &device());
    let duplicate = golden.model.duplicate();
    let bytes = |prediction: candle_core::Tensor| {
        prediction.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let first = bytes(golden.forward(&mut NoTap));
    assert!(first == bytes(golden.forward(&mut NoTap)));
    assert!(first == bytes(duplicate.forward(&golden.call(), &mut NoTap).unwrap()));
}

#[test]
fn grams_of_a_forward_call_equal_those_of_its_rows() {
    let device = device();
    let golden = Golden::open("flux-dev", DType::BF16, &device);
    let inventory = golden.model.inventory();
    let mut grams = grams_of(&golden, &device);
    let mut of_group = grams_of(&golden, &device);
    golden.forward(&mut GramTap::new(inventory, &mut *grams).with_group(Some(&mut *of_group)));
    let mut rows = crate::golden::Grams::default();
    golden.forward(&mut rows);
    for site in inventory.site_ids() {
        let width = inventory.site(site).width;
        let mut gram = Gram::new(width, Accumulate::Exact, 20);
        grams.read(site, &mut gram).unwrap();
        let mut group = gram.clone();
        of_group.read(site, &mut group).unwrap();
        assert!(group == gram);
        let found = gram.to_upper::<f64>(width);
        let wanted = rows.0[&site].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let largest = wanted.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        for (i, j) in (0..width).flat_map(|i| (i..width).map(move |j| (i, j))) {
            let (a, b) = (found[i * width + j] * gram.mass(), wanted[i * width + j]);
            assert!((a - b).abs() < 1e-5 * largest, "{}: {a} and {b}", inventory.site(site).name);
        }
    }
}

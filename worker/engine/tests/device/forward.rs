//! Forward calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_engine::calibrate::{EnergyTap, GramTap};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::{Gram, GramSet};
use obsdiff_engine::model::NoTap;
use obsdiff_proto::{Accumulate, SiteId};

use crate::golden::Golden;
use crate::{device, new_device};

/// An empty Gram of every site of a model, `more` features wider than the site.
fn empty(golden: &Golden, more: usize) -> BTreeMap<SiteId, Arc<Gram>> {
    let inventory = golden.model.inventory();
    let gram = |site: SiteId| Gram::new(inventory.site(site).width + more, Accumulate::Exact, 20);
    inventory.site_ids().map(|site| (site, Arc::new(gram(site)))).collect()
}

/// Empty Grams of every site of a model, open on a device.
pub(crate) fn grams_of(golden: &Golden, device: &ComputeDevice, more: usize) -> Box<dyn GramSet> {
    let mut grams = device.grams();
    empty(golden, more).iter().for_each(|(site, gram)| grams.open(*site, gram).unwrap());
    grams
}

#[test]
fn blocks_hold_to_the_goldens() {
    for (name, dtype, limit) in [
        ("sd35-medium", DType::F32, 2e-4),
        ("sd35-medium", DType::BF16, 0.03),
        ("sd35-medium", DType::F16, 0.005),
        ("flux-dev", DType::F32, 2e-4),
        ("flux-dev", DType::BF16, 0.03),
        ("flux-dev", DType::F16, 0.005),
        ("sd3-medium", DType::BF16, 0.03),
        ("sd35-large", DType::F32, 2e-4),
        ("flux-schnell", DType::BF16, 0.03),
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
fn grams_of_a_forward_call_are_close_to_those_of_the_processor() {
    let device = device();
    let golden = Golden::open("flux-dev", DType::BF16, &device);
    let inventory = golden.model.inventory();
    // With one more feature, rows get a constant 1 behind the others.
    for more in [0, 1] {
        let [mut grams, mut of_group] = [0, 1].map(|_| grams_of(&golden, &device, more));
        golden.forward(&mut GramTap::new(inventory, &mut *grams).with_group(Some(&mut *of_group)));
        let mut wanted = empty(&golden, more);
        golden.forward(&mut GramTap::new(inventory, &mut wanted));
        for (site, wanted) in &wanted {
            let mut gram = Gram::new(wanted.width(), Accumulate::Exact, 20);
            grams.read(*site, &mut gram).unwrap();
            let mut group = gram.clone();
            of_group.read(*site, &mut group).unwrap();
            assert!(group == gram);
            assert_eq!(gram.mass(), wanted.mass());
            let [found, wanted] = [&gram, wanted].map(|gram| gram.to_upper::<f64>(gram.width()));
            let largest = wanted.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let off = found.iter().zip(&wanted).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
            assert!(off < 1e-5 * largest, "{}: off by {off} of {largest}", inventory.site(*site).name);
        }
    }
}

#[test]
fn energies_of_a_forward_call_equal_those_of_the_processor() {
    let device = device();
    let golden = Golden::open("sd35-medium", DType::F16, &device);
    let inventory = golden.model.inventory();
    let [found, wanted] = [device.grams(), ComputeDevice::Cpu.grams()].map(|grams| {
        let mut tap = EnergyTap::new(inventory, inventory.site_ids(), grams).with_constant();
        golden.forward(&mut tap);
        tap.into_energies()
    });
    for (site, wanted) in &wanted {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b;
        assert!(found[site].total.iter().zip(&wanted.total).all(near), "{}", inventory.site(*site).name);
        assert!(near((&found[site].largest, &wanted.largest)));
    }
}

#[test]
fn rows_of_a_gpu_that_was_opened_twice_are_refused() {
    let [device, again] = [new_device(), new_device()];
    if device.is_host() {
        return;
    }
    let golden = Golden::open("sd35-medium", DType::BF16, &device);
    let mut grams = grams_of(&golden, &again, 0);
    let mut tap = GramTap::new(golden.model.inventory(), &mut *grams);
    let refused = golden.model.forward(&golden.call(), &mut tap).unwrap_err().to_string();
    assert!(refused.contains("open each GPU once in a process"), "{refused}");
}

//! What crosses between the host and a device: no activation, and a Gram only where somebody asks for it.

use candle_core::DType;
use obsdiff_engine::calibrate::GramTap;
use obsdiff_engine::device::transfers::{Copies, TransferKind, Transfers};
use obsdiff_engine::gram::{Gram, PlacedGram};
use obsdiff_proto::{Accumulate, SiteId, Target};
use obsdiff_tests::noise;

use crate::golden::Golden;
use crate::new_device;
use crate::solver::FAST;

/// Copies of a kind to the host and to the device.
fn copies(transfers: Transfers, kind: TransferKind) -> [u64; 2] {
    [transfers.to_host(kind).count, transfers.to_device(kind).count]
}

#[test]
fn from_a_forward_call_to_a_solved_site_no_activation_and_no_gram_crosses() {
    let device = new_device();
    let golden = Golden::open("sd35-medium", DType::BF16, &device);
    let inventory = golden.model.inventory();
    let mut grams = device.grams();
    for site in inventory.site_ids() {
        let empty = Gram::new(inventory.site(site).width, Accumulate::Exact, 20);
        grams.open_empty(site, &empty.into()).unwrap();
    }
    golden.forward(&mut GramTap::new(inventory, &mut *grams));
    let mut solver = device.solver();
    let mut solved = 0;
    let shared = |site: SiteId| grams.share(site).unwrap().unwrap();
    for site in inventory.site_ids().take(4) {
        let Some(packed) = shared(site).packed() else { continue };
        solver.begin_in_place(&packed, FAST).unwrap().unwrap();
        let weight = noise(2, 8 * packed.n);
        solver.solve(&[(&weight, Target::Unstructured { ratio: 0.5 })]).remove(0).unwrap();
        solver.end();
        solved += 1;
    }
    let transfers = device.transfers();
    if device.gpu().is_none() {
        assert_eq!((transfers, solved), (Transfers::default(), 0));
        return;
    }
    assert_eq!(solved, 4);
    assert_eq!(copies(transfers, TransferKind::Activations), [0, 0]);
    assert_eq!(copies(transfers, TransferKind::Grams), [0, 0]);
    // The velocity, and each solved weight; which went there besides those of the model.
    assert_eq!(copies(transfers, TransferKind::Results), [1 + solved, 0]);
    let [back, there] = copies(transfers, TransferKind::Weights);
    assert!(back == 0 && there > solved, "{there} weights");
    assert!(transfers.to_device(TransferKind::Inputs).bytes > 0);
    // Of each site a verdict, and of those that are solved a few vectors.
    let widest = inventory.sites.iter().map(|site| site.width).max().unwrap() as u64;
    let figures = transfers.to_host(TransferKind::Figures);
    assert!(figures.bytes < 12 * inventory.sites.len() as u64 + solved * (40 * widest + 1024), "{figures:?}");
    // Who wants a Gram on the host copies it once.
    let site = inventory.site_ids().next().unwrap();
    let gram = shared(site);
    PlacedGram::to_host(&gram).unwrap();
    let bytes = Gram::bytes(gram.width(), Accumulate::Exact);
    assert_eq!(device.transfers().to_host(TransferKind::Grams), Copies { count: 1, bytes });
}

#[test]
fn activations_of_the_host_are_counted_on_their_way_to_a_gram() {
    let device = new_device();
    let mut grams = device.grams();
    grams.open(SiteId(1), &Gram::new(6, Accumulate::F32, 0).into()).unwrap();
    grams.observe(SiteId(1), &noise(1, 5 * 6), 1.0).unwrap();
    let crossed = u64::from(device.gpu().is_some());
    let transfers = device.transfers();
    let activations = Copies { count: crossed, bytes: crossed * 4 * 5 * 6 };
    assert_eq!(transfers.to_device(TransferKind::Activations), activations);
    let bytes = Gram::bytes(6, Accumulate::F32);
    assert_eq!(transfers.to_device(TransferKind::Grams), Copies { count: crossed, bytes: crossed * bytes });
}

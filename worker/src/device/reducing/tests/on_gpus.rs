//! Grams on GPUs of a fake driver, in host memory, are summed over a fake NCCL. A child process has these libraries. Nothing here has a GPU.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::process::Command;
use std::sync::Mutex;
use std::thread;

use obsdiff_engine::device::DeviceName;
use obsdiff_proto::Epoch;
use obsdiff_tests::{fake_cuda, noise};

use super::super::*;
use super::LONG;
use crate::collective::{Abort, Local, Member, Transport, nccl_transports};

const SITE: SiteId = SiteId(2);
const WIDTH: usize = 150;
const RANKS: usize = 3;

/// Starts a test of this file again in a process with the fake libraries; true in that process.
fn in_child(test: &str) -> bool {
    const FOUND: &str = "FAKE_CUDA_FOUND";
    if std::env::var_os(FOUND).is_some() {
        return true;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("device::reducing::tests::on_gpus::{test}"), "--nocapture"])
        .env(FOUND, "1")
        .env("LD_LIBRARY_PATH", fake_cuda())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}{errors}");
    false
}

/// Bytes that have crossed from the fake GPU to the host.
fn to_host() -> u64 {
    // SAFETY: the fake driver has this function, which takes nothing and returns a number.
    unsafe {
        let library = cudarc::driver::sys::culib();
        library.get::<unsafe extern "C" fn() -> u64>(b"fake_cuda_bytes_to_host").unwrap()()
    }
}

/// The rows that a rank observes; the last rank has none.
fn rows(rank: usize) -> Option<Vec<f32>> {
    (rank + 1 < RANKS).then(|| noise(rank as u64 + 1, 40 * WIDTH))
}

/// A rank's own Gram on a device.
fn own(device: &ComputeDevice, accumulate: Accumulate, rank: usize) -> Option<PlacedGram> {
    let mut grams = device.grams();
    grams.open(SITE, &Arc::new(Gram::new(WIDTH, accumulate, 30))).unwrap();
    grams.observe(SITE, &rows(rank)?, 1.0).unwrap();
    grams.share(SITE).unwrap()
}

/// What each rank of a group receives, and bytes that crossed to the host meanwhile. `solving` is what solving needs on each device.
fn reduced(
    transports: &[Box<dyn Transport>],
    accumulate: Accumulate,
    solving: Option<u64>,
    roots: &[usize],
) -> (Vec<Option<PlacedGram>>, u64) {
    let device = ComputeDevice::open(DeviceName::Cuda(0)).unwrap();
    let own: Vec<_> = (0..RANKS).map(|rank| own(&device, accumulate, rank)).collect();
    let before = to_host();
    let received = thread::scope(|scope| {
        let device = &device;
        let run = |(rank, own): (usize, Option<PlacedGram>)| {
            let transport = &transports[rank];
            scope.spawn(move || {
                let member = Member { epoch: Epoch(1), rank, world: RANKS, form: LONG, silence: LONG };
                let mut group = transport.join(member, &Abort::default()).unwrap();
                let received = ReceivedGrams::default();
                let mut reducer = GramReducer {
                    of_groups: Vec::new(),
                    received_groups: Arc::new(Mutex::default()),
                    own: own.map(|own| (SITE, own)).into_iter().collect(),
                    widths: [(SITE, WIDTH)].into(),
                    accumulate,
                    device: device.clone(),
                    solving,
                    received: received.clone(),
                };
                let arrived = reducer.reduce(SITE, roots, &mut *group).unwrap();
                // Nobody leaves before all have finished.
                group.all_reduce(Values::I64(&[0]), Buffer::I64(&mut [0])).unwrap();
                let received = lock(&received).remove(&SITE);
                assert_eq!(received.is_some(), arrived);
                received
            })
        };
        let ranks: Vec<_> = own.into_iter().enumerate().map(run).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    (received, to_host() - before)
}

/// The sum of all ranks' Grams.
fn expected(accumulate: Accumulate) -> Gram {
    let device = ComputeDevice::open(DeviceName::Cuda(0)).unwrap();
    let mut sum = Gram::new(WIDTH, accumulate, 30);
    for own in (0..RANKS).filter_map(|rank| own(&device, accumulate, rank)) {
        sum.merge(&own.to_host().unwrap()).unwrap();
    }
    sum
}

#[test]
fn grams_of_gpus_are_summed_without_coming_to_the_host() {
    if !in_child("grams_of_gpus_are_summed_without_coming_to_the_host") {
        return;
    }
    for accumulate in [Accumulate::Exact, Accumulate::F32] {
        for roots in [&[1][..], &[0, 2]] {
            let (received, crossed) = reduced(&nccl_transports(RANKS), accumulate, Some(0), roots);
            for (rank, received) in received.iter().enumerate() {
                assert_eq!(received.is_some(), roots.contains(&rank));
                let Some(gram) = received else { continue };
                assert!(gram.numbers().is_some() && gram.host().is_none());
                assert!(
                    *gram.to_host().unwrap() == expected(accumulate),
                    "{accumulate:?} at {rank} of {roots:?}"
                );
            }
            // Headers alone cross: the diagonal twice in two limbs, and what ranks agree on.
            let most = (RANKS * 8 * (4 * WIDTH + 200)) as u64;
            assert!(crossed < most && most < Gram::bytes(WIDTH, accumulate), "{crossed} bytes of {most}");
        }
    }
}

#[test]
fn sums_are_received_by_the_host_where_it_solves_or_the_gpu_has_no_room() {
    if !in_child("sums_are_received_by_the_host_where_it_solves_or_the_gpu_has_no_room") {
        return;
    }
    for solving in [None, Some(1 << 60)] {
        let (received, _) = reduced(&nccl_transports(RANKS), Accumulate::Exact, solving, &[1]);
        let gram = received[1].as_ref().unwrap();
        assert!(gram.host().is_some_and(|gram| **gram == expected(Accumulate::Exact)));
    }
}

#[test]
fn a_group_that_does_not_reach_the_gpu_sums_copies_on_the_host() {
    if !in_child("a_group_that_does_not_reach_the_gpu_sums_copies_on_the_host") {
        return;
    }
    let local = Local::default();
    let transports: Vec<_> = (0..RANKS).map(|_| Box::new(local.clone()) as Box<dyn Transport>).collect();
    let (received, crossed) = reduced(&transports, Accumulate::Exact, Some(0), &[0, 1]);
    for received in &received[..2] {
        assert!(received.as_ref().unwrap().host().is_some_and(|gram| **gram == expected(Accumulate::Exact)));
    }
    // Each of the two Grams once.
    assert_eq!(crossed, 2 * Gram::bytes(WIDTH, Accumulate::Exact));
}

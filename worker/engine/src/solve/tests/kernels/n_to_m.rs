use obsdiff_proto::Target;

use super::*;
use crate::solve::magnitude;

/// Launches what sets the weights of a buffer that go to 0.
fn prune(device: &mut Device, weight: Buffer, rows: usize, n: usize, target: [usize; 2]) {
    let mask = device.buffer(&vec![7u8; rows * n]);
    let [pruned, m] = target;
    device.launch("mask_n_to_m", over(n), arguments![weight, rows, n, pruned, m, mask]);
    device.launch("zero_unmasked", Shape::line(3, 64), arguments![weight, rows, n, mask]);
}

fn wanted(weight: &[f32], n: usize, target: [usize; 2]) -> Vec<f32> {
    let mut wanted = weight.to_vec();
    magnitude(&mut wanted, n, &Target::NToM { n: target[0], m: target[1] }).unwrap();
    wanted
}

#[test]
fn groups_lose_what_they_lose_on_the_processor() {
    for (rows, n) in [(1, 1), (3, 5), (9, 64), (4, 131)] {
        for (kind, weight) in [noise(1, rows * n), with_ties(2, rows * n)].into_iter().enumerate() {
            for target in [[2, 4], [4, 8], [1, 3], [0, 2], [5, 7], [16, 32], [100, 200]] {
                let mut device = Device::default();
                let buffer = device.buffer(&weight);
                prune(&mut device, buffer, rows, n, target);
                let found = device.run_in_any_order().values::<f32>(buffer);
                assert_eq!(found, wanted(&weight, n, target), "{rows} x {n}, kind {kind}, {target:?}");
            }
        }
    }
}

#[test]
fn no_two_threads_race() {
    let weight = with_ties(3, 7 * 37);
    let mut device = Device::default();
    let buffer = device.buffer(&weight);
    prune(&mut device, buffer, 7, 37, [2, 4]);
    assert_eq!(device.run_sanitized().values::<f32>(buffer), wanted(&weight, 37, [2, 4]));
}

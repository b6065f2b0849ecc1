//! The shim notices the faults that it is for.

use super::*;

/// What the program says of one launch of 64 threads with one buffer of 65 numbers.
fn said(kernel: &str, seed: u32) -> String {
    let mut device = Device::default();
    let out = device.buffer(&[0u32; 65]);
    device.launch(kernel, Shape::line(1, 64), arguments![out]);
    let (output, memory) = device.attempt(program(), seed);
    assert_eq!((output.status.code(), memory.is_some()), (Some(3), false));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_thread_of_every_block_runs() {
    let mut device = Device::default();
    let out = device.buffer(&[0u32; 1 + 3 * 96]);
    device.launch("counts_its_threads", Shape::line(3, 96), arguments![out]);
    let found: Vec<u32> = device.run_in_any_order().values(out);
    assert_eq!(found[0], 3 * 96);
    assert!(found[1..].iter().enumerate().all(|(i, lane)| *lane == (i as u32 % 96) ^ 1));
    assert_eq!(device.run_sanitized().values::<u32>(out), found);
}

#[test]
fn a_barrier_that_is_missing_shows_in_some_order_and_as_a_race() {
    let mut device = Device::default();
    let out = device.buffer(&[0u32; 64]);
    device.launch("needs_a_barrier", Shape::line(1, 64), arguments![out]);
    let wanted: Vec<u32> = (0..64).rev().collect();
    assert!(SEEDS.iter().any(|seed| device.run(*seed).values::<u32>(out) != wanted));
    let (output, _) = device.attempt(&compiled(&SANITIZED), 0);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("data race"), "{said}");
}

#[test]
fn barriers_that_not_all_threads_reach_end_the_program() {
    for seed in SEEDS {
        let different = said("waits_in_one_branch", seed);
        assert!(different.contains("kernel waits_in_one_branch, block 0 0 0"), "{different}");
        assert!(different.contains("threads wait at different barriers"), "{different}");
        let ended = said("ends_before_a_barrier", seed);
        assert!(ended.contains("ended") || ended.contains("ends"), "{ended}");
    }
}

#[test]
fn what_lies_past_a_buffer_cannot_be_written() {
    for (count, fits) in [(63u32, true), (64, false)] {
        let mut device = Device::default();
        let out = device.buffer(&[0u32; 64]);
        device.launch("writes_past_its_buffer", Shape::line(1, 32), arguments![out, count]);
        let (output, memory) = device.attempt(program(), 0);
        assert_eq!((output.status.success(), memory.is_some()), (fits, fits));
    }
}

#[test]
fn vectors_lie_at_multiples_of_their_size() {
    let refused = |kernel: &str, shape: Shape, device: &Device, arguments: &[Argument], size: u32| {
        let mut device = device.clone();
        device.launch(kernel, shape, arguments);
        let (output, memory) = device.attempt(program(), 0);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && memory.is_none(), "{kernel}");
        let alignment = format!("requires {size} byte alignment");
        assert!(said.contains("misaligned address") && said.contains(&alignment), "{kernel}: {said}");
    };
    let mut device = Device::default();
    let [from, out] = [0, 0].map(|_| device.buffer(&[0u32; 40]));
    let few = Shape::line(1, 32);
    refused("reads_across_multiples_of_16", few, &device, arguments![from, out], 16);
    refused("writes_across_multiples_of_16", few, &device, arguments![out], 16);
    // Keys are read four words at once, values two. One word more moves a matrix's beginning.
    let [queries, out] = [0, 0].map(|_| device.buffer(&[0u32; 32]));
    let [keys, values] = [32, 33].map(|words| device.buffer(&vec![0u32; words]));
    let shape = Shape::line(1, 256).with_shared(4 * (64 * 36 + 32 * 72));
    for (keys, values, size) in [(values, keys, 16), (keys, values, 8)] {
        let arguments = arguments![queries, keys, values, 1u32, 1u32, 64u32, 0.5f32, out];
        refused("attend_64_bf16", shape, &device, arguments, size);
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let mut device = Device::default();
    let out = device.buffer(&[0u32; 64]);
    let arguments: [&[Argument]; 2] = [arguments![out], arguments![out, 1.0f32]];
    for arguments in arguments {
        let mut device = device.clone();
        device.launch("writes_past_its_buffer", Shape::line(1, 32), arguments);
        assert_eq!(device.attempt(program(), 0).0.status.code(), Some(2));
    }
    device.launch("no_such_kernel", Shape::line(1, 32), arguments![]);
    assert_eq!(device.attempt(program(), 0).0.status.code(), Some(2));
}

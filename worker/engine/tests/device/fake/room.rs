//! What encoding prompts and decoding pictures take of a GPU in host memory, and what is left for others.

use std::env;

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::pipeline::LatentSize;
use obsdiff_proto::Accumulate;

use super::{child, counted, counts_alone};
use crate::text::{PROMPTS, encode, encoders, loads};
use crate::{new_device, pictures};

#[test]
fn encoding_takes_the_memory_that_is_predicted_and_gives_all_of_it_back() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::room::encoding_takes_the_memory_that_is_predicted_and_gives_all_of_it_back") {
        return;
    }
    for (name, dtype) in
        [("shapes-sd3", DType::F32), ("shapes-sd3", DType::BF16), ("shapes-flux", DType::F16)]
    {
        let device = new_device();
        let held = counted("fake_cuda_allocations").unwrap();
        for prompts in [1, PROMPTS.len()] {
            let encoders = encoders(name, &device, dtype);
            counted("fake_cuda_passing_bytes");
            let before = counted("fake_cuda_launches").unwrap();
            encode(&encoders, &PROMPTS[..prompts]);
            assert!(counted("fake_cuda_launches").unwrap() > before + 20 * prompts as u64);
            let passing = counted("fake_cuda_passing_bytes").unwrap();
            let predicted = encoders.gpu_bytes(prompts, dtype);
            assert!(
                (passing..2 * passing).contains(&predicted),
                "{name} in {dtype:?}, {prompts} prompts: {passing} bytes, predicted {predicted}"
            );
            drop(encoders);
            assert_eq!(counted("fake_cuda_allocations"), Some(held));
        }
        device.release_unused().unwrap();
    }
}

#[test]
fn decoding_takes_the_memory_that_is_predicted_and_gives_all_of_it_back() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::room::decoding_takes_the_memory_that_is_predicted_and_gives_all_of_it_back") {
        return;
    }
    for (name, size) in pictures::CASES {
        let device = new_device();
        let held = counted("fake_cuda_allocations").unwrap();
        counted("fake_cuda_passing_bytes");
        let vae = pictures::vae(name, &device);
        vae.decode(&pictures::latents(name, size)).unwrap();
        // With the weights, which go now.
        drop(vae);
        let passing = counted("fake_cuda_passing_bytes").unwrap();
        let [height, width] = size;
        let pipeline = pictures::pipeline(name);
        let whole = pipeline.latent_size(None, None).unwrap();
        let predicted = pipeline.gpu_decoding_bytes(LatentSize { height, width, ..whole }).unwrap();
        assert!(
            (passing..2 * passing).contains(&predicted),
            "{name}, {size:?}: {passing} bytes, predicted {predicted}"
        );
        assert_eq!(counted("fake_cuda_allocations"), Some(held));
    }
}

/// What cuBLAS works in: on the first stream, and on three for panels of Grams.
const WORKSPACES: u64 = 4 * (32 << 20);

/// The prompts are encoded on a GPU with this memory.
const ENCODING_MEMORY: u64 = WORKSPACES + (64 << 10);

#[test]
fn prompts_that_a_gpu_has_no_room_for_are_refused() {
    let encoders = encoders("shapes-sd3", &new_device(), DType::F32);
    if env::var_os("FAKE_CUDA_MEMORY").is_none() {
        encode(&encoders, &PROMPTS);
        return;
    }
    let said = encoders.encode(&PROMPTS, &mut |_, _| {}).unwrap_err().to_string();
    assert!(said.contains(" to encode prompts: ") && said.contains("`obsdiff encode`"), "{said}");
}

#[test]
fn too_little_memory_in_host_memory_says_that_it_was_to_encode() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        return;
    }
    let memory = [("FAKE_CUDA_MEMORY", &*ENCODING_MEMORY.to_string())];
    let output = child(&["--exact", "fake::room::prompts_that_a_gpu_has_no_room_for_are_refused"], &memory);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn grams_in_host_memory_have_the_room_that_encoding_has_released() {
    let bytes = encoders("shapes-sd3", &ComputeDevice::Cpu, DType::F32).gpu_bytes(PROMPTS.len(), DType::F32);
    if env::var_os("FAKE_CUDA_MEMORY").is_none() {
        let memory = (WORKSPACES + bytes).to_string();
        let test = "fake::room::grams_in_host_memory_have_the_room_that_encoding_has_released";
        let output = child(&["--exact", test], &[("FAKE_CUDA_MEMORY", &memory)]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let device = new_device();
    encode(&encoders("shapes-sd3", &device, DType::F32), &PROMPTS);
    // Encoding took more than half of what it was said to take; this Gram takes three quarters of that.
    let width = (bytes * 3 / 16).isqrt() as usize;
    let has_room = || device.gram_to_receive(width, Accumulate::Exact, (7, 11), 0).unwrap().is_some();
    assert!(!has_room(), "what was in use may be needed again");
    device.release_unused().unwrap();
    assert!(has_room());
}

#[test]
fn layers_are_loaded_for_each_group_where_there_is_no_room_for_all_in_host_memory() {
    if env::var_os("FAKE_CUDA_MEMORY").is_some() {
        let [first, later] = loads(&new_device(), 1 << 20);
        assert!(first > 7 && later == first, "{first} and {later} copies");
        return;
    }
    // So many prompts take more.
    let test = "fake::room::layers_are_loaded_for_each_group_where_there_is_no_room_for_all_in_host_memory";
    let output = child(&["--exact", test], &[("FAKE_CUDA_MEMORY", &(WORKSPACES + (32 << 20)).to_string())]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn layers_stay_in_memory_that_is_kept_for_the_next_buffer_in_host_memory() {
    // What the prompts and all layers take, at least.
    const KEPT: usize = 384 << 20;
    if env::var_os("FAKE_CUDA_MEMORY").is_none() {
        let test = "fake::room::layers_stay_in_memory_that_is_kept_for_the_next_buffer_in_host_memory";
        let memory = (WORKSPACES + KEPT as u64 + (32 << 20)).to_string();
        let output = child(&["--exact", test], &[("FAKE_CUDA_MEMORY", &memory)]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let device = new_device();
    let rows = Tensor::zeros((KEPT / 4096, 1024), DType::F32, &Device::Cpu).unwrap();
    drop(device.matrix(&rows).unwrap());
    let memory = device.memory().unwrap().unwrap();
    assert!(memory.kept >= KEPT as u64 && memory.free < 64 << 20, "{memory:?}");
    let [first, later] = loads(&device, 1 << 20);
    assert!(later < first, "{first} and {later} copies");
    device.release_unused().unwrap();
    assert_eq!(device.memory().unwrap().unwrap().kept, 0);
}

//! Text encoders on a device agree with the processor's.

use candle_core::{DType, Tensor};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::transfers::{Copies, TransferKind};
use obsdiff_engine::pipeline::{Conditioning, PipelineFolder, TextEncoders};
use obsdiff_tests::shipped;

use crate::{device, new_device};

pub(crate) const PROMPTS: [&str; 4] = ["a red circle", "", "a ring on the left", "on grey"];

pub(crate) fn encoders(name: &str, device: &ComputeDevice, dtype: DType) -> TextEncoders {
    let pipeline = PipelineFolder::open(&shipped(name)).unwrap();
    pipeline.text_encoders(24).unwrap().on(device, dtype)
}

pub(crate) fn encode(encoders: &TextEncoders, prompts: &[&str]) -> Vec<Conditioning> {
    encoders.encode(prompts, &mut |_, _| {}).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The root of the mean square of a difference, over that of what is wanted.
fn off(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.dims(), wanted.dims());
    let square = |x: f64| x * x;
    let (found, wanted) = (numbers(found), numbers(wanted));
    let difference: f64 = found.iter().zip(&wanted).map(|(a, b)| square(f64::from(a - b))).sum();
    (difference / wanted.iter().map(|x| square(f64::from(*x))).sum::<f64>()).sqrt()
}

#[test]
fn prompts_are_encoded_as_by_the_processor() {
    for name in ["shapes-sd3", "shapes-flux"] {
        let wanted = encode(&encoders(name, &ComputeDevice::Cpu, DType::F32), &PROMPTS);
        for (dtype, within) in [(DType::F32, 1e-5), (DType::BF16, 0.02), (DType::F16, 0.02)] {
            let found = encode(&encoders(name, &device(), dtype), &PROMPTS);
            for (found, wanted) in found.iter().zip(&wanted) {
                for (found, wanted) in [(&found.text, &wanted.text), (&found.pooled, &wanted.pooled)] {
                    let off = off(found, wanted);
                    println!("{name} in {dtype:?}: off by {off:e}");
                    assert!(off < within, "{name} in {dtype:?} is off by {off}");
                }
            }
        }
    }
}

#[test]
fn a_prompt_has_the_same_bytes_alone_and_among_others() {
    let encoders = encoders("shapes-sd3", &device(), DType::BF16);
    let together = encode(&encoders, &PROMPTS);
    for (prompt, of_all) in PROMPTS.iter().zip(&together) {
        let alone = encode(&encoders, &[prompt]).remove(0);
        assert!(numbers(&alone.text) == numbers(&of_all.text));
        assert!(numbers(&alone.pooled) == numbers(&of_all.pooled));
    }
}

/// Copies of weights by which two groups of prompts are encoded one after the other, which give the same bytes.
pub(crate) fn loads(device: &ComputeDevice, prompts: usize) -> [u64; 2] {
    let encoders = encoders("shapes-sd3", device, DType::BF16);
    let encoders = encoders.for_prompts(prompts, device, DType::BF16).unwrap();
    let group = || {
        let before = device.transfers().to_device(TransferKind::Weights).count;
        let encoded = encode(&encoders, &PROMPTS);
        let loads = device.transfers().to_device(TransferKind::Weights).count - before;
        (encoded.iter().map(|of| (numbers(&of.text), numbers(&of.pooled))).collect::<Vec<_>>(), loads)
    };
    let [(first, loads), (second, later)] = [group(), group()];
    assert!(first == second);
    [loads, later]
}

#[test]
fn layers_stay_on_a_gpu_from_one_group_of_prompts_to_the_next() {
    let device = device();
    let [all, again] = loads(&device, 1);
    assert_eq!(all, again, "one group needs no layer twice");
    let [first, later] = loads(&device, 1 << 20);
    // What follows the layers is not kept: three last norms, of which two have a bias, and two projections.
    let beside = if device.is_host() { 0 } else { 7 };
    assert_eq!((first, later), (all, beside));
}

#[test]
fn only_what_is_made_of_a_prompt_comes_back() {
    let device = new_device();
    encode(&encoders("shapes-sd3", &device, DType::BF16), &PROMPTS);
    let transfers = device.transfers();
    for kind in [TransferKind::Activations, TransferKind::Results, TransferKind::Figures] {
        assert_eq!((transfers.to_host(kind), transfers.to_device(kind)), Default::default(), "{kind:?}");
    }
    let expected = match device {
        ComputeDevice::Cpu => Copies::default(),
        // Tokens of three encoders, and the pooled features of two.
        #[cfg(feature = "cuda")]
        ComputeDevice::Cuda(_) => {
            let bytes = 4 * PROMPTS.len() * (2 * (24 * 48 + 48) + 24 * 96);
            Copies { count: 5 * PROMPTS.len() as u64, bytes: bytes as u64 }
        }
    };
    assert_eq!(transfers.to_host(TransferKind::Encodings), expected);
}

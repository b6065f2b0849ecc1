//! Decoders on a device agree with the processor's.

use candle_core::{Device, Tensor};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::transfers::{Copies, TransferKind};
use obsdiff_engine::pipeline::{Picture, PipelineFolder, Vae};
use obsdiff_tests::{noise, shipped};

use crate::device;

/// Pipelines, with pictures of these latents' height and width.
pub(crate) const CASES: [(&str, [usize; 2]); 3] =
    [("shapes-sd3", [16, 16]), ("shapes-flux", [16, 16]), ("shapes-sd3", [5, 11])];

pub(crate) fn pipeline(name: &str) -> PipelineFolder {
    PipelineFolder::open_without_text(&shipped(name)).unwrap()
}

pub(crate) fn vae(name: &str, device: &ComputeDevice) -> Vae {
    pipeline(name).vae(device).unwrap()
}

/// Latents of two pictures.
pub(crate) fn latents(name: &str, [height, width]: [usize; 2]) -> Tensor {
    let channels = pipeline(name).latent_size(None, None).unwrap().channels;
    Tensor::from_vec(noise(1, 2 * channels * height * width), (2, channels, height, width), &Device::Cpu)
        .unwrap()
}

#[test]
fn pictures_are_decoded_as_by_the_processor() {
    let device = device();
    for (name, size) in CASES {
        let latents = latents(name, size);
        let [found, wanted] =
            [&device, &ComputeDevice::Cpu].map(|device| vae(name, device).decode(&latents).unwrap());
        assert_eq!(found.dims(), wanted.dims());
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let off = numbers(&found)
            .iter()
            .zip(numbers(&wanted))
            .fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-4, "{name}, {size:?}: a colour of -1 to 1 is off by {off}");
        let [found, wanted] = [found, wanted].map(|decoded| Picture::of_batch(&decoded).unwrap());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!(wanted.rgb.iter().max() > wanted.rgb.iter().min(), "{name}: a picture of one colour");
            let off = found.rgb.iter().zip(&wanted.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 1, "{name}, {size:?}: a level is off by {off}");
        }
        println!("{name}, latents of {size:?}: colours off by {off:e} of 2, levels by 1 at most");
    }
}

#[test]
fn only_latents_go_to_a_decoder_and_only_pictures_come_back() {
    let device = device();
    let crossed = u64::from(device.gpu().is_some());
    for (name, size) in CASES {
        let (vae, latents) = (vae(name, &device), latents(name, size));
        let before = device.transfers();
        let pictures = vae.decode(&latents).unwrap();
        let copied = device.transfers().since(&before);
        let of =
            |tensor: &Tensor| Copies { count: 2 * crossed, bytes: crossed * 4 * tensor.elem_count() as u64 };
        assert_eq!(copied.to_device(TransferKind::Inputs), of(&latents), "{name}");
        assert_eq!(copied.to_host(TransferKind::Pictures), of(&pictures), "{name}");
        for kind in TransferKind::ALL {
            let [to_device, to_host] =
                [copied.to_device(kind), copied.to_host(kind)].map(|copies| copies.count);
            assert!(to_device == 0 || kind == TransferKind::Inputs, "{name}: {to_device} of {kind:?}");
            assert!(to_host == 0 || kind == TransferKind::Pictures, "{name}: {to_host} of {kind:?}");
        }
    }
}

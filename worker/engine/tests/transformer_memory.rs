//! A forward call's activations take what the configuration predicts.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::Result;
use obsdiff_engine::architecture::TransformerConfig;
use obsdiff_engine::architecture::flux::{self, FluxConfig, FluxTransformer};
use obsdiff_engine::architecture::sd3::{BlockSizes, Sd3Config, Sd3Transformer};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap};

/// Counts bytes in use and their peak. Whole pages are left out: faer reserves twice the last cache for each thread, and touches
/// little of it.
struct Counting;

const PAGE: usize = 4096;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() < PAGE {
            let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
            PEAK.fetch_max(now, Ordering::Relaxed);
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if layout.align() < PAGE {
            IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config(qk_norm: Option<&str>, dual_attention_layers: Vec<usize>) -> Sd3Config {
    Sd3Config {
        sample_size: 64,
        patch_size: 2,
        in_channels: 4,
        num_layers: 2,
        attention_head_dim: 64,
        num_attention_heads: 4,
        joint_attention_dim: 32,
        caption_projection_dim: 256,
        pooled_projection_dim: 32,
        out_channels: None,
        pos_embed_max_size: 64,
        dual_attention_layers,
        qk_norm: qk_norm.map(str::to_owned),
        blocks: BlockSizes::default(),
    }
}

fn flux() -> FluxConfig {
    FluxConfig {
        patch_size: 1,
        in_channels: 16,
        out_channels: None,
        num_layers: 1,
        num_single_layers: 2,
        attention_head_dim: 64,
        num_attention_heads: 4,
        joint_attention_dim: 32,
        pooled_projection_dim: 32,
        guidance_embeds: false,
        axes_dims_rope: vec![16, 24, 24],
        blocks: flux::BlockSizes::default(),
    }
}

/// A model of these tensors, all of one small number.
fn load<M>(shapes: Vec<(String, Vec<usize>)>, load: impl FnOnce(&Weights) -> Result<M>) -> M {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor =
        |(name, shape): (String, Vec<usize>)| (name, Tensor::full(0.01f32, shape, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&shapes.into_iter().map(tensor).collect(), &path).unwrap();
    load(&Weights::open_file(&path).unwrap()).unwrap()
}

/// Peak bytes of the second forward call, over those in use before the first.
fn measured(model: &dyn DiffusionModel, batch: usize, side: usize, text: usize) -> f64 {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let [latents, timestep] = [zeros(&[batch, 4, side, side]), zeros(&[batch])];
    let [text, pooled] = [zeros(&[batch, text, 32]), zeros(&[batch, 32])];
    let call =
        Denoise { latents: &latents, timestep: &timestep, text: &text, pooled: &pooled, guidance: None };
    let before = IN_USE.load(Ordering::Relaxed);
    model.forward(&call, &mut NoTap).unwrap();
    PEAK.store(0, Ordering::Relaxed);
    model.forward(&call, &mut NoTap).unwrap();
    (PEAK.load(Ordering::Relaxed) - before) as f64
}

/// One test: a second would count its allocations too.
#[test]
fn peak_is_predicted_within_15_percent() {
    let check = |name: &str, measured: f64, predicted: u64| {
        let predicted = predicted as f64;
        println!("{name}: {:.1} MiB, predicted {:.1}", measured / 1048576., predicted / 1048576.);
        assert!((predicted / measured - 1.0).abs() < 0.15, "{name}: {measured} bytes, predicted {predicted}");
    };
    for (name, config, batch, side, text) in [
        ("buffers that pass", config(None, vec![]), 10, 64, 77),
        ("buffers that pass, dual", config(Some("rms_norm"), vec![0]), 10, 64, 77),
        ("buffers that stay", config(Some("rms_norm"), vec![]), 2, 64, 300),
    ] {
        let image = config.image_tokens(side, side).unwrap();
        let predicted = config.activation_bytes(batch, image, text, DType::F32);
        let loaded = |weights: &Weights| Sd3Transformer::load(config.clone(), weights, DType::F32);
        let model = load(config.shapes(), loaded);
        check(name, measured(&model, batch, side, text), predicted);
    }
    for (name, batch, side, text) in
        [("FLUX, buffers that pass", 10, 64, 77), ("FLUX, buffers that stay", 1, 48, 300)]
    {
        let config = flux();
        let image = config.image_tokens(side, side).unwrap();
        let predicted = config.activation_bytes(batch, image, text, DType::F32);
        let loaded = |weights: &Weights| FluxTransformer::load(config.clone(), weights, DType::F32);
        let model = load(config.shapes(), loaded);
        check(name, measured(&model, batch, side, text), predicted);
    }
}

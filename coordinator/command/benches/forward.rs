//! How much of the machine's matrix product rate a bare forward call reaches, or one of its blocks: the time of the blocks' own products,
//! done alone by the fastest GEMM at each shape, over the time of the whole call.
//!
//! Memory comes as it does in the command, which keeps buffers for the next call.
//!
//! `cargo bench -p obsdiff --bench forward` (or, with `-- shapes`, `-- medium`, `-- double` or `-- single` after it, one of them)
#![allow(clippy::unwrap_used)]

// Its tests run with the command's.
#[allow(dead_code, unused_imports)]
#[path = "../src/arena.rs"]
mod arena;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::Criterion;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use obsdiff_engine::architecture::flux::{self, FluxConfig, FluxTransformer};
use obsdiff_engine::architecture::sd3::{self, Sd3Config, Sd3Transformer};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap, State};
use rayon::prelude::*;

/// What a measurement repeats at most, and for how long.
const ROUNDS: usize = 100;
const BUDGET: Duration = Duration::from_secs(3);

/// A piece of work, and the products that are in it.
struct Case {
    name: &'static str,
    work: Box<dyn FnMut()>,
    products: Products,
}

/// Equal products are counted.
#[derive(Default)]
struct Products(BTreeMap<Product, usize>);

impl Products {
    fn add(&mut self, product: Product) {
        *self.0.entry(product).or_insert(0) += 1;
    }

    /// A linear from n to `out` features.
    fn linear(&mut self, rows: usize, n: usize, out: usize) {
        self.add(Product { count: 1, rows, n, out });
    }

    /// Attention's two for each head: `queries` by `keys`, and what they weigh by the values.
    fn attention(&mut self, heads: usize, head: usize, queries: usize, keys: usize) {
        self.add(Product { count: heads, rows: queries, n: head, out: keys });
        self.add(Product { count: heads, rows: queries, n: keys, out: head });
    }
}

/// The inputs of one forward call.
struct ForwardInputs {
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    pooled: Tensor,
    guidance: Option<Tensor>,
}

impl ForwardInputs {
    fn call(&self) -> Denoise<'_> {
        let Self { latents, timestep, text, pooled, guidance } = self;
        Denoise { latents, timestep, text, pooled, guidance: guidance.as_ref() }
    }
}

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::from_vec(random(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// A whole forward call of a model with so many items, latents on a side and text tokens.
fn sd3_call(name: &'static str, model: Sd3Transformer, batch: usize, side: usize, text: usize) -> Case {
    let config = model.config();
    let products = sd3_products(config, batch, side, text);
    let inputs = ForwardInputs {
        latents: tensor(&[batch, config.in_channels, side, side]),
        timestep: Tensor::full(500f32, batch, &Device::Cpu).unwrap(),
        text: tensor(&[batch, text, config.joint_attention_dim]),
        pooled: tensor(&[batch, config.pooled_projection_dim]),
        guidance: None,
    };
    let work = move || drop(model.forward(&inputs.call(), &mut NoTap).unwrap());
    Case { name, work: Box::new(work), products }
}

/// The products of all blocks: linears that a call reaches, and attention's.
fn sd3_products(config: &Sd3Config, batch: usize, side: usize, text: usize) -> Products {
    let image = config.image_tokens(side, side).unwrap();
    let mut products = Products::default();
    for (name, shape) in config.shapes() {
        let last = name.starts_with(&format!("transformer_blocks.{}.", config.num_layers - 1));
        let unread = last && name.contains("add_q_proj");
        let &[out, n] = shape.as_slice() else { continue };
        if !name.starts_with("transformer_blocks") || unread {
            continue;
        }
        let of_text = name.contains("add_") || name.contains("_context");
        let tokens = if of_text { text } else { image };
        products.linear(if name.contains("norm1") { batch } else { batch * tokens }, n, out);
    }
    let (heads, head) = (config.num_attention_heads, config.attention_head_dim);
    for block in 0..config.num_layers {
        let queries = if block + 1 == config.num_layers { image } else { image + text };
        products.attention(batch * heads, head, queries, image + text);
    }
    products
}

/// `count` products of `rows x n` by `n x out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Product {
    count: usize,
    rows: usize,
    n: usize,
    out: usize,
}

struct Operands {
    x: Tensor,
    weight: Tensor,
    a: Vec<f32>,
    b: Vec<f32>,
    out: Vec<f32>,
}

impl Product {
    fn flops(&self) -> f64 {
        2. * (self.count * self.rows * self.n * self.out) as f64
    }

    /// One run by the GEMM of this number: candle's, faer's on all threads, or faer's on one thread for each product or stripe of
    /// rows.
    fn run(&self, gemm: usize, operands: &mut Operands) {
        let Self { count, rows, n, out: width } = *self;
        let Operands { x, weight, a, b, out } = operands;
        let threads = rayon::current_num_threads();
        match gemm {
            0 => drop(x.matmul(&weight.transpose(1, 2).unwrap()).unwrap()),
            1 => {
                let parts = out.chunks_mut(rows * width).zip(a.chunks(rows * n).zip(b.chunks(width * n)));
                parts.for_each(|(out, (a, b))| product(out, a, b, n, Par::rayon(threads)));
            }
            _ => {
                let parts =
                    out.par_chunks_mut(rows * width).zip(a.par_chunks(rows * n).zip(b.par_chunks(width * n)));
                let stripe = if count > 1 { rows } else { rows.div_ceil(2 * threads) };
                parts.for_each(|(out, (a, b))| {
                    let stripes = out.par_chunks_mut(stripe * width).zip(a.par_chunks(stripe * n));
                    stripes.for_each(|(out, a)| product(out, a, b, n, Par::Seq));
                });
            }
        }
    }

    fn operands(&self) -> Operands {
        let a = random(self.count * self.rows * self.n);
        let b = random(self.count * self.out * self.n);
        let x = Tensor::from_slice(&a, (self.count, self.rows, self.n), &Device::Cpu).unwrap();
        let weight = Tensor::from_slice(&b, (self.count, self.out, self.n), &Device::Cpu).unwrap();
        Operands { x, weight, a, b, out: vec![0.0; self.count * self.rows * self.out] }
    }
}

fn product(out: &mut [f32], a: &[f32], b: &[f32], n: usize, par: Par) {
    let (rows, width) = (a.len() / n, b.len() / n);
    let b = MatRef::from_row_major_slice(b, width, n).transpose();
    let a = MatRef::from_row_major_slice(a, rows, n);
    matmul(MatMut::from_row_major_slice_mut(out, rows, width), Accum::Replace, a, b, 1.0, par);
}

/// Numbers in -1..1 that look random.
fn random(count: usize) -> Vec<f32> {
    obsdiff_tests::noise(1, count)
}

/// The fastest of several rounds of each piece of work, taken in turns so that all see the same machine.
fn fastest<const N: usize>(mut work: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let start = Instant::now();
    let mut best = [Duration::MAX; N];
    let mut rounds = 0;
    while rounds < 5 || (rounds < ROUNDS && start.elapsed() < BUDGET) {
        for (best, work) in best.iter_mut().zip(&mut work) {
            *best = time(work).min(*best);
        }
        rounds += 1;
    }
    best
}

fn time(work: &mut dyn FnMut()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Finds the fastest GEMM for each product, then times all of a call's products by these, one after another, against the call.
fn ratio(case: &mut Case) {
    let mut products = Vec::new();
    for (&product, &times) in &case.products.0 {
        let mut operands = [0, 1, 2].map(|_| product.operands());
        let [a, b, c] = &mut operands;
        let best = fastest([&mut || product.run(0, a), &mut || product.run(1, b), &mut || product.run(2, c)]);
        println!("  {times} x {product:?}: candle, faer, faer by parts {best:.1?}");
        let gemm = (0..3).min_by_key(|gemm| best[*gemm]).unwrap();
        products.push((product, times, gemm, product.operands()));
    }
    let mut alone = || {
        for (product, times, gemm, operands) in &mut products {
            (0..*times).for_each(|_| product.run(*gemm, operands));
        }
    };
    let [alone, forward] = fastest([&mut alone, &mut case.work]).map(|time| time.as_secs_f64());
    let flops: f64 = case.products.0.iter().map(|(product, times)| product.flops() * *times as f64).sum();
    println!(
        "{}: products alone {:.2} ms ({:.0} GFLOP/s), forward {:.2} ms: ratio {:.2}",
        case.name,
        alone * 1e3,
        flops / alone * 1e-9,
        forward * 1e3,
        alone / forward,
    );
}

/// The trained pipeline's transformer, on a shard of 4 prompts with and without guidance.
fn shapes() -> Case {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/shapes-sd3/transformer"));
    let weights = Weights::open(folder, Library::Diffusers).unwrap();
    let config = Sd3Config::read(folder).unwrap();
    let model = Sd3Transformer::load(config, &weights, DType::F32).unwrap();
    sd3_call("shapes-sd3", model, 8, 16, 48)
}

/// A checkpoint of random weights in bf16.
fn random_weights(shapes: Vec<(String, Vec<usize>)>) -> Weights {
    let weight = |(name, shape): (String, Vec<usize>)| {
        (name, (tensor(&shape) * 0.03).unwrap().to_dtype(DType::BF16).unwrap())
    };
    let tensors = shapes.into_iter().map(weight).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, &file).unwrap();
    // What is open stays when the file's name is gone.
    Weights::open_file(&file).unwrap()
}

/// Two blocks of SD3-medium, one whole and the last one, with random weights; 512 x 512 pixels, one prompt with guidance.
fn medium() -> Case {
    let config = Sd3Config {
        sample_size: 64,
        patch_size: 2,
        in_channels: 16,
        num_layers: 2,
        attention_head_dim: 64,
        num_attention_heads: 24,
        joint_attention_dim: 4096,
        caption_projection_dim: 1536,
        pooled_projection_dim: 2048,
        out_channels: Some(16),
        pos_embed_max_size: 32,
        dual_attention_layers: Vec::new(),
        qk_norm: None,
        blocks: sd3::BlockSizes::default(),
    };
    let weights = random_weights(config.shapes());
    let model = Sd3Transformer::load(config, &weights, DType::F32).unwrap();
    sd3_call("SD3-medium blocks", model, 2, 64, 154)
}

/// Latents on a side of a picture of 512 x 512 pixels, which is 1024 image tokens of FLUX.1, and its text tokens.
const FLUX_SIDE: usize = 64;
const FLUX_TEXT: usize = 512;

/// One block of FLUX.1-dev, with random weights: of 1024 image and 512 text tokens.
fn flux_block(name: &'static str, index: usize, products: fn(&FluxConfig, &mut Products)) -> Case {
    let config = FluxConfig {
        patch_size: 1,
        in_channels: 64,
        out_channels: None,
        num_layers: 1,
        num_single_layers: 1,
        attention_head_dim: 128,
        num_attention_heads: 24,
        joint_attention_dim: 4096,
        pooled_projection_dim: 768,
        guidance_embeds: true,
        axes_dims_rope: vec![16, 56, 56],
        blocks: flux::BlockSizes::default(),
    };
    let mut expected = Products::default();
    products(&config, &mut expected);
    let weights = random_weights(config.shapes());
    let inputs = ForwardInputs {
        latents: tensor(&[1, config.in_channels / 4, FLUX_SIDE, FLUX_SIDE]),
        timestep: Tensor::full(500f32, 1, &Device::Cpu).unwrap(),
        text: tensor(&[1, FLUX_TEXT, config.joint_attention_dim]),
        pooled: tensor(&[1, config.pooled_projection_dim]),
        guidance: Some(Tensor::full(3.5f32, 1, &Device::Cpu).unwrap()),
    };
    let model = FluxTransformer::load(config, &weights, DType::F32).unwrap();
    let mut state = model.start(&inputs.call()).unwrap();
    for before in 0..index {
        state = model.block(before, state, &mut NoTap).unwrap();
    }
    // A block's result has the shapes of its input: it is the next round's.
    let mut state: Option<State> = Some(state);
    let work = move || state = state.take().map(|state| model.block(index, state, &mut NoTap).unwrap());
    Case { name, work: Box::new(work), products: expected }
}

fn flux_double() -> Case {
    flux_block("FLUX.1 double-stream block", 0, |config, products| {
        let (image, width, hidden) = (FLUX_SIDE * FLUX_SIDE / 4, config.width(), config.hidden_width());
        for tokens in [image, FLUX_TEXT] {
            products.linear(1, width, 6 * width);
            (0..4).for_each(|_| products.linear(tokens, width, width));
            products.linear(tokens, width, hidden);
            products.linear(tokens, hidden, width);
        }
        let both = image + FLUX_TEXT;
        products.attention(config.num_attention_heads, config.attention_head_dim, both, both);
    })
}

fn flux_single() -> Case {
    flux_block("FLUX.1 single-stream block", 1, |config, products| {
        let (width, hidden) = (config.width(), config.hidden_width());
        let tokens = FLUX_SIDE * FLUX_SIDE / 4 + FLUX_TEXT;
        products.linear(1, width, 3 * width);
        (0..3).for_each(|_| products.linear(tokens, width, width));
        products.linear(tokens, width, hidden);
        products.linear(tokens, width + hidden, width);
        products.attention(config.num_attention_heads, config.attention_head_dim, tokens, tokens);
    })
}

fn main() {
    arena::share();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let cases = [
        ("shapes", shapes as fn() -> Case),
        ("medium", medium),
        ("double", flux_double),
        ("single", flux_single),
    ];
    let asked: Vec<String> =
        std::env::args().filter(|word| cases.iter().any(|(name, _)| name == word)).collect();
    for (name, case) in cases {
        if asked.is_empty() || asked.iter().any(|word| word == name) {
            let mut case = case();
            criterion.bench_function(&format!("{name}/forward"), |bench| bench.iter(|| (case.work)()));
            ratio(&mut case);
        }
    }
    criterion.final_summary();
}

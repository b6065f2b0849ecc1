//! Blocks of transformers with random weights, and the products that are in each.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::{TransformerConfig, read_config};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::transfers::Transfers;
use obsdiff_engine::model::{Denoise, DiffusionModel, NoTap, State};
use obsdiff_proto::{Inventory, LinearId, PartKind};
use obsdiff_tests::{hash, noise};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Timed, USAGE};

/// Runs of a block, one after another without a wait, as a forward call has them.
const RUNS: usize = 8;
const ROUNDS: usize = 3;
/// The largest weight.
const LARGEST: f64 = 0.03;

/// `count` products of `rows x inner` by `inner x columns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Product {
    count: usize,
    rows: usize,
    inner: usize,
    columns: usize,
}

impl Product {
    const fn operations(&self) -> u64 {
        2 * (self.count * self.rows * self.inner * self.columns) as u64
    }
}

/// The sizes of a forward call.
#[derive(Clone, Copy, Debug)]
struct CallTokens {
    batch: usize,
    image: usize,
    text: usize,
}

/// Computes a block of each kind of the transformer that `call` names.
pub(super) fn computed(device: &ComputeDevice, call: &str) -> Result<Vec<Value>> {
    let parts: Vec<&str> = call.split(':').collect();
    let [folder, batch, side, text] = parts[..] else { anyhow::bail!(USAGE) };
    let number = |digits: &str| digits.parse::<usize>().with_context(|| format!("{call}: {USAGE}"));
    let (batch, side, text) = (number(batch)?, number(side)?, number(text)?);
    let config = read_config(Path::new(folder))?.with_fewer_blocks(0);
    let mut model = config.load(&weights(&*config)?, DType::BF16)?;
    model.move_blocks(device);
    let tensor = |shape: &[usize]| Tensor::from_vec(noise(1, shape.iter().product()), shape, &Device::Cpu);
    let (latents, widths) = (config.latents(), config.conditioning());
    let guidance =
        config.guidance(3.5).input.map(|guidance| Tensor::full(guidance as f32, batch, &Device::Cpu));
    let guidance = guidance.transpose()?;
    let state = model.start(&Denoise {
        latents: &tensor(&[batch, latents.channels, side, side])?,
        timestep: &Tensor::full(500f32, batch, &Device::Cpu)?,
        text: &tensor(&[batch, text, widths.text])?,
        pooled: &tensor(&[batch, widths.pooled])?,
        guidance: guidance.as_ref(),
    })?;
    let sizes = CallTokens { batch, image: (side / latents.patch).pow(2), text };
    let shapes: HashMap<String, Vec<usize>> = config.shapes().into_iter().collect();
    let (mut state, mut blocks) = (state, Vec::new());
    for index in 0..model.block_count() {
        let before = model.operations();
        let next = model.block(index, state.copy()?, &mut NoTap)?;
        let operations = model.operations() - before;
        let products = products(model.inventory(), &shapes, index, sizes, operations)?;
        let Timed { seconds, transfers } = timed(device, &*model, index, &state)?;
        let model = config.architecture().transformer_class;
        blocks.push(json!({
            "model": model,
            "block": index,
            "seconds": seconds,
            "operations": operations,
            "transfers": transfers,
            "products": products,
        }));
        state = next;
    }
    Ok(blocks)
}

/// Random weights for all tensors of a transformer, in bf16.
fn weights(config: &dyn TransformerConfig) -> Result<Weights> {
    let mut tensors = HashMap::new();
    for (name, shape) in config.shapes() {
        let numbers = noise(hash(&name), shape.iter().product());
        let tensor = (Tensor::from_vec(numbers, shape, &Device::Cpu)? * LARGEST)?;
        tensors.insert(name, tensor.to_dtype(DType::BF16)?);
    }
    let file = tempfile::NamedTempFile::new()?;
    candle_core::safetensors::save(&tensors, file.path())?;
    // What is open stays when the file's name is gone.
    Ok(Weights::open_file(file.path())?)
}

/// How long one run of a block takes, and what crosses in all that are timed together.
fn timed(device: &ComputeDevice, model: &dyn DiffusionModel, index: usize, state: &State) -> Result<Timed> {
    let mut fastest = Timed { seconds: f64::INFINITY, transfers: Transfers::default() };
    for _ in 0..ROUNDS {
        let states = (0..RUNS).map(|_| Ok(state.copy()?)).collect::<Result<Vec<_>>>()?;
        for state in &states {
            wait(state)?;
        }
        let (before, start) = (device.transfers(), Instant::now());
        let mut last = None;
        for state in states {
            last = Some(model.block(index, state, &mut NoTap)?);
        }
        let transfers = device.transfers().since(&before);
        wait(&last.context("no run")?)?;
        let seconds = start.elapsed().as_secs_f64() / RUNS as f64;
        if seconds < fastest.seconds {
            fastest = Timed { seconds, transfers };
        }
    }
    Ok(fastest)
}

/// Waits until a state is computed: a copy of its smallest matrix comes after all work before it.
fn wait(state: &State) -> Result<()> {
    let sized = state
        .tensors()
        .filter_map(|(_, matrix)| Some((matrix.rows().ok()? * matrix.columns().ok()?, matrix)));
    let (_, smallest) = sized.min_by_key(|(numbers, _)| *numbers).context("a state without matrices")?;
    smallest.to_host()?;
    Ok(())
}

/// The products of a block that takes so many operations: of its linears, of its modulation, and of attention two for each head.
fn products(
    inventory: &Inventory,
    shapes: &HashMap<String, Vec<usize>>,
    block: usize,
    sizes: CallTokens,
    operations: u64,
) -> Result<Vec<Product>> {
    let CallTokens { batch, image, text } = sizes;
    let tokens = |linear: LinearId| -> usize {
        let site = inventory.site(inventory.linear(linear).site);
        inventory.streams[site.stream.0 as usize].tokens(image as u64, text as u64) as usize
    };
    let mut products = Vec::new();
    for unit in inventory.units.iter().filter(|unit| unit.block as usize == block) {
        for site in unit.sites.iter().map(|site| inventory.site(*site)) {
            products.extend(site.linears.iter().map(|linear| Product {
                count: 1,
                rows: batch * tokens(*linear),
                inner: site.width,
                columns: inventory.linear(*linear).rows,
            }));
        }
    }
    let structures = inventory.structures.iter().filter(|structure| structure.block as usize == block);
    let mut module = None;
    for structure in structures {
        // A module's name is its block's, a dot and its own.
        module = structure.name.rsplit_once('.').map(|(block, _)| format!("{block}."));
        if structure.kind != PartKind::Heads {
            continue;
        }
        let size = structure.outputs.first().context("an attention without outputs")?.size;
        let queries: usize = structure.outputs.iter().map(|output| tokens(output.linear)).sum();
        // Queries, keys and values of a stream are linears of one site.
        let mut sites: Vec<_> = structure
            .inputs
            .iter()
            .map(|input| (inventory.linear(input.linear).site, tokens(input.linear)))
            .collect();
        sites.sort_unstable();
        sites.dedup();
        let keys = sites.iter().map(|(_, tokens)| tokens).sum();
        let count = batch * structure.count;
        products.push(Product { count, rows: queries, inner: size, columns: keys });
        products.push(Product { count, rows: queries, inner: keys, columns: size });
    }
    let module = module.context("a block without structures")?;
    for fixed in inventory.fixed.iter().filter(|layer| layer.name.starts_with(&module)) {
        if let Some([rows, width]) = shapes.get(&format!("{}.weight", fixed.name)).map(Vec::as_slice) {
            products.push(Product { count: 1, rows: batch, inner: *width, columns: *rows });
        }
    }
    // Queries of a stream whose attention nobody reads are not computed.
    let most: u64 = products.iter().map(Product::operations).sum();
    if let Some(unread) = most.checked_sub(operations).filter(|unread| *unread > 0) {
        let found = products.iter().position(|product| product.operations() == unread);
        products.remove(found.with_context(|| format!("block {block} does without {unread} operations"))?);
    }
    let all: u64 = products.iter().map(Product::operations).sum();
    ensure!(all == operations, "block {block} takes {operations} operations, but {all} are known");
    Ok(products)
}

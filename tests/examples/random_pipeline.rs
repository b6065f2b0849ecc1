//! Makes a pipeline whose transformer has the sizes of a published one and random weights, in bf16 shards.
//!
//! `random_pipeline PUBLISHED SHIPPED FOLDER [KEY=NUMBER]...`: PUBLISHED is a folder with the transformer's `config.json`, of which keys
//! may be set to other values; SHIPPED is a small pipeline of the same architecture. The other components are SHIPPED's. Its text
//! encoders get random weights and the widths that the transformer asks for.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::{self, TransformerConfig};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_tests::{copy_folder, noise};
use serde_json::{Map, Value, json};

/// Bytes of tensors in a shard, at most, but for a tensor that is larger by itself.
const SHARD: usize = 1 << 30;
/// The largest weight.
const LARGEST: f32 = 0.03;
/// Random numbers, of which every tensor is made of some: a prime, so that rows of a matrix differ.
const NUMBERS: usize = 8_388_593;
/// The width of CLIP's first encoder, where there are two; the second one's fills up the pooled width.
const FIRST_CLIP: usize = 768;
/// Features of a head of T5.
const T5_HEAD: usize = 64;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("random_pipeline PUBLISHED SHIPPED FOLDER [KEY=NUMBER]...");
    let [published, shipped, folder] = [next()?, next()?, next()?].map(PathBuf::from);
    copy_folder(&shipped, &folder);
    let mut config = read(&published.join("config.json"))?;
    for set in args {
        let (key, number) = set.split_once('=').with_context(|| format!("{set} is no KEY=NUMBER"))?;
        config[key] = number.parse::<u64>().with_context(|| set.clone())?.into();
    }
    let transformer = folder.join("transformer");
    fs::remove_dir_all(&transformer)?;
    fs::create_dir(&transformer)?;
    write(&transformer.join("config.json"), &config)?;
    let config = architecture::read_config(&transformer)?;
    fit_components(&folder, &*config)?;
    let bytes = write_shards(&transformer, config.shapes())?;
    println!("{}: a transformer of {} numbers", folder.display(), bytes / 2);
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

fn write(path: &Path, value: &Value) -> Result<()> {
    Ok(fs::write(path, serde_json::to_vec_pretty(value)?)?)
}

/// Gives the autoencoder's configuration the transformer's latent channels, and the text encoders the widths of its conditioning.
fn fit_components(folder: &Path, config: &dyn TransformerConfig) -> Result<()> {
    let path = folder.join("vae/config.json");
    let mut vae = read(&path)?;
    vae["latent_channels"] = config.latents().channels.into();
    write(&path, &vae)?;
    let widths = config.conditioning();
    let mut clips = Vec::new();
    for name in ["text_encoder", "text_encoder_2", "text_encoder_3"] {
        let encoder = folder.join(name);
        if !encoder.exists() {
            continue;
        }
        if read(&encoder.join("config.json"))?.get("d_model").is_some() {
            widen_t5(&encoder, widths.text)?;
        } else {
            clips.push(encoder);
        }
    }
    match &*clips {
        [one] => widen_clip(one, widths.pooled),
        [first, second] => {
            widen_clip(first, FIRST_CLIP)?;
            widen_clip(second, widths.pooled - FIRST_CLIP)
        }
        _ => Err(anyhow!("{} has {} CLIP encoders", folder.display(), clips.len())),
    }
}

fn widen_clip(folder: &Path, width: usize) -> Result<()> {
    let path = folder.join("config.json");
    let mut config = read(&path)?;
    let before = size(&config, "hidden_size")?;
    for key in ["hidden_size", "projection_dim"] {
        config[key] = width.into();
    }
    write(&path, &config)?;
    widen(folder, &BTreeMap::from([(before, width)]))
}

fn widen_t5(folder: &Path, width: usize) -> Result<()> {
    ensure!(width.is_multiple_of(T5_HEAD), "a width of {width} is not made of whole heads");
    let path = folder.join("config.json");
    let mut config = read(&path)?;
    let (before, heads) = (size(&config, "d_model")?, size(&config, "num_heads")?);
    ensure!(before == heads * size(&config, "d_kv")?, "the heads are not as wide as the model");
    let sizes = [("d_model", width), ("num_heads", width / T5_HEAD), ("d_kv", T5_HEAD)];
    sizes.into_iter().for_each(|(key, size)| config[key] = size.into());
    write(&path, &config)?;
    widen(folder, &BTreeMap::from([(before, width), (heads, width / T5_HEAD)]))
}

fn size(config: &Value, key: &str) -> Result<usize> {
    let size = config[key].as_u64().with_context(|| format!("`{key}` is no whole number"))?;
    Ok(usize::try_from(size)?)
}

/// Replaces an encoder's weights by random ones, each side of a tensor that is in `sizes` by another.
fn widen(folder: &Path, sizes: &BTreeMap<usize, usize>) -> Result<()> {
    let file = folder.join("model.safetensors");
    let mut tensors = HashMap::new();
    for (name, entry) in Weights::open_file(&file)?.entries() {
        let sides = entry.shape().iter().map(|side| sizes.get(side).copied().unwrap_or(*side));
        let shape: Vec<usize> = sides.collect();
        let numbers = noise(obsdiff_tests::hash(name), shape.iter().product());
        let tensor = (Tensor::from_vec(numbers, shape, &Device::Cpu)? * f64::from(LARGEST))?;
        tensors.insert(name.to_owned(), tensor.to_dtype(DType::F16)?);
    }
    Ok(candle_core::safetensors::save(&tensors, file)?)
}

/// Writes tensors of random bf16 numbers in shards with their index. Gives their bytes.
fn write_shards(folder: &Path, shapes: Vec<(String, Vec<usize>)>) -> Result<usize> {
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let bytes = 2 * shape.iter().product::<usize>();
        (name, shape, bytes)
    });
    let mut shards: Vec<Vec<(String, Vec<usize>, usize)>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        if shards.is_empty() || tensor.2 > room {
            shards.push(Vec::new());
            room = SHARD;
        }
        room = room.saturating_sub(tensor.2);
        shards.last_mut().context("no shard")?.push(tensor);
    }
    let numbers: Vec<f32> = noise(1, NUMBERS).into_iter().map(|x| LARGEST * x).collect();
    // The upper half of an f32 is a bf16.
    let numbers: Vec<u8> = numbers.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let mut map = Map::new();
    let mut all = 0;
    for (index, tensors) in shards.iter().enumerate() {
        let name = format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_shard(&folder.join(&name), tensors, &numbers)?;
        map.extend(tensors.iter().map(|(tensor, ..)| (tensor.clone(), Value::from(name.clone()))));
        all += tensors.iter().map(|(.., bytes)| bytes).sum::<usize>();
    }
    let index = json!({"metadata": {"total_size": all}, "weight_map": map});
    write(&folder.join("diffusion_pytorch_model.safetensors.index.json"), &index)?;
    Ok(all)
}

fn write_shard(path: &Path, tensors: &[(String, Vec<usize>, usize)], numbers: &[u8]) -> Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape, bytes) in tensors {
        let start = end;
        end += bytes;
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (name, _, bytes) in tensors {
        // Each tensor begins elsewhere among the numbers, and goes around them.
        let mut at = 2 * (obsdiff_tests::hash(name) % NUMBERS as u64) as usize;
        let mut left = *bytes;
        while left > 0 {
            let part = &numbers[at..numbers.len().min(at + left)];
            file.write_all(part)?;
            left -= part.len();
            at = 0;
        }
    }
    file.flush()?;
    Ok(())
}

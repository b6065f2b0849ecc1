//! A pipeline as large as FLUX.1-dev, whose 24 GB of weights are a hole in a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use obsdiff_engine::architecture;
use obsdiff_tests::copy_folder;
use serde_json::{Map, Value, json};

use crate::asset;
use crate::usage::{self, Usage};

/// The memory that looking at a pipeline may take, whatever its size.
const PEAK: u64 = 100 << 20;
/// The bytes that it may read, by calls: headers and configurations, and in `plan` the 64 MiB by which it measures the machine.
const READ: u64 = 100 << 20;
/// The pages that it may touch. Weights that are all read into new memory are 5.8 million, or fewer where the kernel gives
/// large ones.
const PAGES: u64 = 100_000;

/// The shipped FLUX.1 pipeline with a transformer of the published sizes in bf16. Its file has a header, and a hole in place of
/// numbers.
fn flux_dev(folder: &Path) -> u64 {
    copy_folder(&asset("shapes-flux"), folder);
    // What the transformer's sizes ask of the other components. Their weights are not read.
    for (component, key, value) in [
        ("vae", "latent_channels", 16),
        ("text_encoder", "hidden_size", 768),
        ("text_encoder_2", "d_model", 4096),
    ] {
        let path = folder.join(component).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value.into();
        fs::write(&path, config.to_string()).unwrap();
    }
    let transformer = folder.join("transformer");
    fs::copy(asset("published/flux.1-dev/config.json"), transformer.join("config.json")).unwrap();
    let config = architecture::read_config(&transformer).unwrap();
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in config.shapes() {
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(transformer.join("diffusion_pytorch_model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    end
}

fn looked_at(folder: &Path, args: &[&str]) -> String {
    let (text, usage) =
        usage::run(Command::new(env!("CARGO_BIN_EXE_obsdiff")).args(args).current_dir(folder));
    let Usage { peak_bytes, read_bytes, .. } = usage;
    let pages = usage.minor_faults + usage.major_faults;
    println!("{}: {} MiB at most, {read_bytes} bytes read, {pages} pages", args.join(" "), peak_bytes >> 20);
    assert!(peak_bytes < PEAK, "{args:?} took {peak_bytes} bytes");
    assert!(read_bytes < READ, "{args:?} read {read_bytes} bytes");
    assert!(pages < PAGES, "{args:?} touched {pages} pages");
    text
}

#[test]
fn a_pipeline_of_24_gb_is_planned_and_inspected_without_reading_it() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = flux_dev(&folder.path().join("flux"));
    assert_eq!(bytes, 2 * 11_901_408_320);
    let job = "[model]\npath = \"flux\"\ndtype = \"bf16\"\n[sparsity]\npattern = \"unstructured\"\nratio = 0.5\n\
               [calibration]\nprompts = \"prompts.txt\"\ncount = 1\nheight = 1024\nwidth = 1024\n\
               [packages]\nmemory = \"24GB\"\n[output]\npath = \"out\"\n";
    fs::write(folder.path().join("job.toml"), job).unwrap();
    fs::write(folder.path().join("prompts.txt"), "a red circle\n").unwrap();
    let plan = looked_at(folder.path(), &["plan", "job.toml", "--memory", "1TB"]);
    assert!(plan.contains("Grams of all sites: 228,"), "{plan}");
    let found = looked_at(folder.path(), &["inspect", "flux", "--json"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["whole"]["weights"], 11_901_408_320u64);
    assert_eq!(found["whole"]["zeros"], found["whole"]["weights"]);
    // Twelve in each of 19 double-stream blocks, five in each of 38 single-stream blocks.
    assert_eq!(found["prunable"]["tensors"], 19 * 12 + 38 * 5);
    let linears = found["linears"].as_array().unwrap();
    assert!(linears.iter().all(|linear| linear["pattern"] == "all zero"));
}

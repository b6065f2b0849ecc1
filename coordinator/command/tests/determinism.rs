//! A job gives the same bytes whenever it is run, on any number of threads and by any number of workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use obsdiff_tests::copy_folder;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");

/// Runs the same small job in `folder`, into `out`, on a shipped pipeline.
fn run_on(pipeline: &str, folder: &Path, pattern: &str, args: &[&str]) {
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\nmethod = \"obs\"\nallocation = \"uniform\"\npattern = \"{pattern}\"\nratio = 0.5\n\
         [calibration]\nprompts = {:?}\ncount = 4\nsteps = 4\nguidance = 4.0\nmax_sequence_length = 24\nshard_size = 2\n\
         [packages]\ncount = 2\n[evaluation]\ncount = 2\n[output]\npath = \"out\"\n",
        Path::new(ASSETS).join(pipeline),
        Path::new(ASSETS).join("shapes-prompts.txt"),
    );
    fs::write(folder.join("job.toml"), job).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(["run", "job.toml", "--quiet"])
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn run(folder: &Path, pattern: &str, args: &[&str]) {
    run_on("shapes-sd3", folder, pattern, args);
}

/// What the job wrote of its own, and what it said of the held-out prompts.
fn result(pattern: &str, args: &[&str]) -> [Vec<u8>; 2] {
    result_on("shapes-sd3", pattern, args)
}

fn result_on(pipeline: &str, pattern: &str, args: &[&str]) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    run_on(pipeline, folder.path(), pattern, args);
    let files = ["transformer/diffusion_pytorch_model.safetensors", "pruning.json"];
    let [weights, record] = files.map(|file| fs::read(folder.path().join("out").join(file)).unwrap());
    [weights, of_every_run(&record)]
}

/// A record without what differs from run to run.
fn of_every_run(record: &[u8]) -> Vec<u8> {
    let mut record: serde_json::Value = serde_json::from_slice(record).unwrap();
    record.as_object_mut().unwrap().remove("measured");
    serde_json::to_vec_pretty(&record).unwrap()
}

fn always_the_same(pattern: &str) {
    let [weights, record] = result(pattern, &["--threads", "1"]);
    let dense = Path::new(ASSETS).join("shapes-sd3/transformer/diffusion_pytorch_model.safetensors");
    assert!(weights != fs::read(dense).unwrap(), "nothing was pruned");
    let others =
        [["--threads", "1"], ["--threads", "2"], ["--threads", "3"], ["--workers", "2"], ["--workers", "4"]];
    for args in others {
        let [other, other_record] = result(pattern, &args);
        assert!(weights == other, "weights differ with {args:?}");
        assert_eq!(
            String::from_utf8(record.clone()).unwrap(),
            String::from_utf8(other_record).unwrap(),
            "with {args:?}"
        );
    }
}

#[test]
fn half_of_the_weights_unstructured() {
    always_the_same("unstructured");
}

#[test]
fn half_of_the_heads_and_neurons() {
    always_the_same("structured");
}

#[test]
fn two_of_four() {
    always_the_same("2:4");
}

/// Each linear's weights compete as a whole, or those of a part that is solved apart.
#[test]
fn masks_of_alternating_directions() {
    let admm = ["--set", "sparsity.method=admm"];
    for (pattern, sets) in [("unstructured", &["--set", "packages.split_above=60000000"][..]), ("2:4", &[])] {
        let result = |args: &[&str]| result(pattern, &[&admm, sets, args].concat());
        let [weights, record] = result(&["--threads", "1"]);
        for args in [["--threads", "2"], ["--workers", "2"]] {
            let [other, other_record] = result(&args);
            assert!(weights == other, "{pattern}: weights differ with {args:?}");
            assert!(record == other_record, "{pattern}: records differ with {args:?}");
        }
    }
}

/// What is decided by a survey: ratios of linears, whole and in parts, and which linears 2:4 leaves dense.
#[test]
fn shares_where_they_cost_least() {
    let global = ["--set", "sparsity.allocation=global"];
    let parts = ["--set", "sparsity.allocation=global", "--set", "packages.split_above=60000000"];
    let dense = ["--set", "sparsity.dense=0.3"];
    for (pattern, sets) in [("unstructured", &global[..]), ("unstructured", &parts), ("2:4", &dense)] {
        let admm = ["--set", "sparsity.method=admm"];
        let result = |args: &[&str]| result(pattern, &[&admm[..], sets, args].concat());
        let [weights, record] = result(&["--threads", "1"]);
        for args in [["--threads", "2"], ["--workers", "2"], ["--workers", "4"]] {
            let [other, other_record] = result(&args);
            assert!(weights == other, "{sets:?}: weights differ with {args:?}");
            assert!(record == other_record, "{sets:?}: records differ with {args:?}");
        }
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let linears = record["linears"].as_array().unwrap();
        let zeros: u64 = linears.iter().map(|linear| linear["zeros"].as_u64().unwrap()).sum();
        let weights = |linear: &serde_json::Value| {
            linear["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).product::<u64>()
        };
        let share = zeros as f64 / linears.iter().map(weights).sum::<u64>() as f64;
        if pattern == "2:4" {
            assert!((0.35..0.37).contains(&share), "{share} of the weights are zero");
            assert!(linears.iter().any(|linear| linear["zeros"] == 0), "no linear stays dense");
        } else {
            assert!((share - 0.5).abs() < 1e-3, "{share} of the weights are zero");
        }
        // Nobody reads what the text's queries give in the last block.
        let free = linears.iter().filter(|linear| linear["cost"].as_f64().unwrap() == 0.0);
        let free: Vec<_> = free.map(|linear| linear["name"].as_str().unwrap()).collect();
        assert_eq!(free, ["transformer_blocks.5.attn.add_q_proj"]);
        let ratios: Vec<_> = linears.iter().map(|linear| linear["target"].to_string()).collect();
        assert!(ratios.iter().any(|ratio| *ratio != ratios[0]), "all have the same ratio");
    }
}

/// FLUX.1's single-stream blocks have sites that join two activations.
#[test]
fn another_architecture() {
    let small = ["--set", "calibration.height=32", "--set", "calibration.width=32"];
    for pattern in ["unstructured", "2:4"] {
        let result = |args: &[&str]| result_on("shapes-flux", pattern, &[&small[..], args].concat());
        let [weights, record] = result(&["--threads", "1"]);
        let dense = Path::new(ASSETS).join("shapes-flux/transformer/diffusion_pytorch_model.safetensors");
        assert!(weights != fs::read(dense).unwrap(), "nothing was pruned");
        for args in [["--threads", "2"], ["--workers", "2"]] {
            let [other, other_record] = result(&args);
            assert!(weights == other, "{pattern}: weights differ with {args:?}");
            assert!(record == other_record, "{pattern}: records differ with {args:?}");
        }
    }
}

#[test]
fn sites_that_are_solved_in_parts() {
    // So little that every site is cut into parts of a few rows.
    let split = |workers| ["--workers", workers, "--set", "packages.split_above=1000000"];
    let [weights, record] = result("unstructured", &split("1"));
    assert!(weights != result("unstructured", &[])[0], "nothing was split");
    for workers in ["2", "4"] {
        let [other, other_record] = result("unstructured", &split(workers));
        assert!(weights == other && record == other_record, "another result with {workers} workers");
    }
    // Rows of N:M do not compete, whatever they are solved with.
    assert!(result("2:4", &split("2"))[0] == result("2:4", &[])[0], "rows of 2:4 differ");
}

/// A copy of the shipped pipeline, `f32`, whose transformer's weights are in f32.
fn f32_checkpoint(folder: &Path) {
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), &folder.join("f32"));
    let file = folder.join("f32/transformer/diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    // Numbers that no narrower type has.
    let wide = |tensor: Tensor| (tensor.to_dtype(DType::F32).unwrap() * 1.000_1).unwrap();
    let tensors: HashMap<String, Tensor> = tensors.into_iter().map(|(name, t)| (name, wide(t))).collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
}

/// The pruned weights of a copy of the pipeline in f32, with forward calls in `dtype`.
fn computed_in(dtype: &str, pattern: &str, args: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    f32_checkpoint(folder.path());
    let dtype = format!("model.dtype={dtype}");
    let sets = ["--set", "model.path=f32", "--set", &dtype];
    run(folder.path(), pattern, &[&sets, args].concat());
    fs::read(folder.path().join("out/transformer/diffusion_pytorch_model.safetensors")).unwrap()
}

/// The f32 numbers of a file of weights that are neither zero nor numbers of bf16, and all that are not zero.
fn beyond_bf16(file: &[u8]) -> (usize, usize) {
    let tensors = candle_core::safetensors::load_buffer(file, &Device::Cpu).unwrap();
    let values = tensors.into_values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let (mut beyond, mut all) = (0, 0);
    for value in values.filter(|value| *value != 0.0) {
        beyond += usize::from(value.to_bits() & 0xffff != 0);
        all += 1;
    }
    (beyond, all)
}

/// Masks that depend on weights alone: whatever the forward calls compute in, the bytes are the same.
#[test]
fn the_type_of_forward_calls_never_touches_what_is_written() {
    let magnitude = ["--set", "sparsity.method=magnitude", "--set", "sparsity.refine=0"];
    let l1 = ["--set", "sparsity.method=l1", "--set", "output.layout=masked"];
    for (pattern, args) in [("2:4", magnitude), ("structured", l1)] {
        let weights = computed_in("f32", pattern, &args);
        for dtype in ["bf16", "f16"] {
            assert!(computed_in(dtype, pattern, &args) == weights, "{pattern}: {dtype} rounds");
        }
    }
}

/// By OBS the masks may differ, as Grams do; but weights and biases are the solver's own, on any number of workers.
#[test]
fn weights_solved_beside_a_narrow_model_keep_their_precision() {
    for pattern in ["unstructured", "structured"] {
        let weights = computed_in("bf16", pattern, &[]);
        let (beyond, all) = beyond_bf16(&weights);
        assert!(beyond > all * 9 / 10, "{pattern}: {beyond} of {all} weights are no numbers of bf16");
        assert!(computed_in("bf16", pattern, &["--workers", "2"]) == weights, "{pattern}: with two workers");
    }
}

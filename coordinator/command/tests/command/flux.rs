//! FLUX.1 through every command.

use std::fs;
use std::path::Path;

use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_tests::copy_folder;

use crate::setting::{Case, RUN, Setting, refused};
use crate::structured::job;
use crate::{asset, printed};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const JOB: &str = "deploy/jobs/shapes-flux.toml";
/// The job, so small that it takes no time.
const SMALL: [&str; 6] =
    ["--set", "calibration.count=4", "--set", "calibration.steps=3", "--set", "evaluation.count=2"];

/// Those of diffusers' pipeline. A key that the job gives is the stronger one.
#[test]
fn guidance_and_text_length_have_the_models_own_defaults() {
    let calibration = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let plan = printed(Path::new(ROOT), &["plan", JOB].into_iter().chain(sets).collect::<Vec<_>>());
        plan.lines().find(|line| line.starts_with("calibration ")).unwrap_or_default().to_owned()
    };
    let unset = ["calibration.guidance=", "calibration.max_sequence_length="];
    let printed = calibration(&unset);
    assert!(printed.contains(" at guidance 3.5, ") && printed.ends_with(" and 512 text tokens"), "{printed}");
    let given = ["calibration.guidance=2", "calibration.max_sequence_length=48"];
    let printed = calibration(&given);
    assert!(printed.contains(" at guidance 2, ") && printed.ends_with(" and 48 text tokens"), "{printed}");
}

#[test]
fn the_shipped_job_prunes_half_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (out, pruned) = (folder.path().join("out"), folder.path().join("out/transformer"));
    let path = format!("output.path={}", out.display());
    let run = [&["run", JOB, "--quiet", "--workers", "2", "--set", &path][..], &SMALL].concat();
    let said = printed(Path::new(ROOT), &run);
    assert!(said.contains("(L2, relative) on 2 held-out prompts"), "{said}");
    let dense = asset("shapes-flux");
    for file in ["model_index.json", "transformer/config.json", "text_encoder_2/model.safetensors"] {
        assert!(fs::read(out.join(file)).unwrap() == fs::read(dense.join(file)).unwrap(), "{file}");
    }
    let [dense, pruned] =
        [dense.join("transformer"), pruned].map(|folder| Weights::open(&folder, Library::Diffusers).unwrap());
    let shapes = |weights: &Weights| {
        let mut shapes: Vec<_> =
            weights.entries().map(|(name, entry)| (name.to_owned(), entry.shape().to_vec())).collect();
        shapes.sort();
        shapes
    };
    assert_eq!(shapes(&dense), shapes(&pruned));

    let found = printed(Path::new(ROOT), &["inspect", out.to_str().unwrap(), "--json"]);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let linears = found["linears"].as_array().unwrap();
    let prunable: Vec<_> = linears.iter().filter(|linear| linear["prunable"] == true).collect();
    // Twelve in each of 3 double-stream blocks, five in each of 5 single-stream blocks.
    assert_eq!(prunable.len(), 3 * 12 + 5 * 5);
    for linear in prunable {
        let sparsity = linear["sparsity"].as_f64().unwrap();
        assert!((0.19..=0.9).contains(&sparsity), "{linear}");
    }
    let [zeros, weights] = ["zeros", "weights"].map(|key| found["prunable"][key].as_f64().unwrap());
    assert!((zeros / weights - 0.5).abs() < 1e-3, "{zeros} of {weights} weights are zero");

    let (dense, out) = (asset("shapes-flux"), out.display().to_string());
    let compare = ["compare", dense.to_str().unwrap(), &out, "--prompt", "a red circle on white", "--speed"];
    let size = [
        "--steps",
        "3",
        "--guidance",
        "3.5",
        "--height",
        "32",
        "--width",
        "32",
        "--max-sequence-length",
        "24",
    ];
    let table = printed(folder.path(), &[&compare[..], &size].concat());
    assert!(mean(&table) > 1e-3 && mean(&table) < 1.0, "{table}");
    assert!(table.contains("forward call with 64 image and 24 text tokens"), "{table}");
}

/// The mean of a table that `compare` prints: the relative error of the final latents.
pub(crate) fn mean(table: &str) -> f64 {
    let mean = table
        .lines()
        .find_map(|line| line.strip_prefix("mean")?.split_whitespace().next()?.parse::<f64>().ok());
    mean.unwrap_or_else(|| panic!("no mean in {table}"))
}

#[test]
fn heads_and_neurons_go_and_the_pipeline_gets_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let run = |name: &str, sparsity: &str, output: &str| {
        let model = asset("shapes-flux").display().to_string();
        let sparsity = format!("pattern = \"structured\"\n{sparsity}");
        let file = job(folder.path(), name, &model, &sparsity, output);
        let size = ["--set", "calibration.height=32", "--set", "calibration.width=32"];
        printed(folder.path(), &[&["run", &file, "--quiet"][..], &size].concat());
        let json = |file: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(folder.path().join(name).join(file)).unwrap()).unwrap()
        };
        (json("pruning.json"), json("transformer/config.json"))
    };
    let (record, config) = run("small", "ratio = 0.5", "");
    assert_eq!(config["_class_name"], "PrunedFluxTransformer2DModel");
    assert_eq!(config["auto_map"]["AutoModel"], "modeling_pruned_flux.PrunedFluxTransformer2DModel");
    assert!(folder.path().join("small/transformer/modeling_pruned_flux.py").is_file());
    let dense = serde_json::from_slice::<serde_json::Value>(
        &fs::read(asset("shapes-flux").join("transformer/config.json")).unwrap(),
    )
    .unwrap();
    let heads = dense["num_attention_heads"].as_u64().unwrap();
    let neurons = 4 * heads * dense["attention_head_dim"].as_u64().unwrap();
    // The first and the last block keep all.
    let list = |key: &str| -> Vec<u64> {
        config[key].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect()
    };
    let half = heads - heads / 2;
    assert_eq!(list("attention_heads_per_block"), [heads, half, half]);
    assert_eq!(list("ffn_context_width_per_block"), [neurons, neurons / 2, neurons / 2]);
    assert_eq!(list("single_attention_heads_per_block"), [half, half, half, half, heads]);
    let few = neurons / 2;
    assert_eq!(list("single_mlp_width_per_block"), [few, few, few, few, neurons]);
    let structures = record["structures"].as_array().unwrap();
    assert_eq!(structures.len(), 2 * 3 + 4 * 2);
    assert!(structures.iter().all(|structure| structure["error"].as_f64().unwrap() > 0.0));

    run("masked", "ratio = 0.5", "layout = \"masked\"");
    let size = ["--steps", "3", "--height", "32", "--width", "32", "--max-sequence-length", "24"];
    let compare = |one: &str, other: &str| {
        let pair = ["compare", one, other, "--prompt", "a red circle on white", "--guidance", "3.5"];
        mean(&printed(folder.path(), &[&pair[..], &size].concat()))
    };
    assert!(compare(&out("masked"), &out("small")) < 1e-5);
    let error = compare(asset("shapes-flux").to_str().unwrap(), &out("small"));
    assert!(error > 1e-3 && error < 1.0, "{error}");

    let (record, _) = run("budget", "budget = 0.15", "");
    let flops = record["sizes"]["forward_flops"].as_array().unwrap();
    let [before, after] = [0, 1].map(|i: usize| flops[i].as_f64().unwrap());
    assert!(after <= 0.85 * before && after > 0.8 * before, "{after} of {before}");
}

#[test]
fn guidance_is_an_input_and_takes_one_picture() {
    let folder = tempfile::tempdir().unwrap();
    let sample = |[flag, guidance]: [&str; 2]| {
        let pipeline = asset("shapes-flux");
        let sample = ["sample", pipeline.to_str().unwrap(), "--prompt", "a red circle", flag, guidance];
        let size = ["--steps", "2", "--height", "32", "--width", "32", "--max-sequence-length", "24"];
        printed(folder.path(), &[&sample[..], &size].concat());
        fs::read(folder.path().join("sample.png")).unwrap()
    };
    let (low, high) = (sample(["--guidance", "1"]), sample(["--guidance", "6"]));
    assert!(low != high, "guidance changes nothing");
    let [none, free] = ["1", "4"].map(|scale| sample(["--true-guidance", scale]));
    assert!(none != free, "classifier-free guidance changes nothing");
    // One forward pass for each of 4 prompts and 3 steps; two where classifier-free guidance is asked for besides.
    for (guidance, passes) in [
        ("calibration.guidance=1", "12"),
        ("calibration.guidance=6", "12"),
        ("calibration.true_guidance=2", "24"),
    ] {
        let uniform = ["--set", "sparsity.allocation=uniform", "--set", guidance];
        let plan = printed(Path::new(ROOT), &[&["plan", JOB][..], &uniform, &SMALL].concat());
        let all = plan.lines().find(|line| line.starts_with("all ")).unwrap_or_default();
        assert!(all.split_whitespace().any(|cell| cell == passes), "{plan}");
    }
}

fn flux(setting: &mut Setting) {
    fs::remove_dir_all(setting.path("pipeline")).unwrap();
    copy_folder(&asset("shapes-flux"), &setting.path("pipeline"));
    setting.add(&["--set", "calibration.height=32", "--set", "calibration.width=32"]);
}

#[test]
fn bad_input_is_refused_by_name_and_writes_nothing() {
    let run = |name, arrange, says| Case { name, args: RUN, arrange, says };
    refused(&[
        run(
            "a class that nobody knows",
            |s| {
                flux(s);
                s.replace("pipeline/model_index.json", "FluxPipeline", "SanaPipeline");
            },
            &["model_index.json", "SanaPipeline", "supported: StableDiffusion3Pipeline, FluxPipeline"],
        ),
        run(
            "another architecture's transformer",
            |s| {
                flux(s);
                s.replace("pipeline/model_index.json", "FluxTransformer2DModel", "SD3Transformer2DModel");
            },
            &["model_index.json", "FluxPipeline", "SD3Transformer2DModel in a StableDiffusion3Pipeline"],
        ),
        run(
            "a text encoder of another class",
            |s| {
                flux(s);
                s.replace("pipeline/model_index.json", "CLIPTextModel", "CLIPTextModelWithProjection");
            },
            &["model_index.json", "text_encoder", "obsdiff supports CLIPTextModel there"],
        ),
        run(
            "pooled features that do not fit",
            |s| {
                flux(s);
                s.replace("pipeline/text_encoder/config.json", "\"hidden_size\": 48", "\"hidden_size\": 32");
            },
            &["text_encoder", "gives 32 pooled features", "`pooled_projection_dim` is 48"],
        ),
        run(
            "a side that is no whole number of tokens",
            |s| {
                flux(s);
                s.add(&["--set", "calibration.height=34"]);
            },
            &["`calibration.height` is 34", "multiples of 4"],
        ),
        run(
            "channels of another autoencoder",
            |s| {
                flux(s);
                s.replace("pipeline/vae/config.json", "\"latent_channels\": 4", "\"latent_channels\": 16");
            },
            &["vae/config.json", "`latent_channels` is 16", "`in_channels` / 4 is 4"],
        ),
    ]);
}

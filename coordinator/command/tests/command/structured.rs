use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::architecture::sd3::Sd3Config;
use obsdiff_tests::{copy_folder, hash, noise};
use serde_json::{Value, json};

use crate::inspect::row_of;
use crate::{asset, obsdiff, pipeline, printed, text};

/// A small structured job in `folder`, with some lines of its own in `[sparsity]` and `[output]`.
pub(crate) fn job(folder: &Path, name: &str, model: &str, sparsity: &str, output: &str) -> String {
    let file = format!("{name}.toml");
    let job = format!(
        "[model]\npath = {model:?}\n[sparsity]\n{sparsity}\n\
         [calibration]\nprompts = {:?}\ncount = 4\nsteps = 3\nguidance = 4.0\nmax_sequence_length = 24\nshard_size = 2\n\
         [packages]\ncount = 2\n[evaluation]\ncount = 2\n[output]\npath = {name:?}\n{output}\n",
        asset("shapes-prompts.txt"),
    );
    fs::write(folder.join(&file), job).unwrap();
    file
}

const THIRD: &str = "pattern = \"structured\"\nratio = 0.375";

/// What a record says that a structure kept, of how many, and whether these are heads.
fn kept(output: &Path, structure: &str) -> (u64, u64, bool) {
    let record = json_of(&output.join("pruning.json"));
    let name = format!("transformer_blocks.{structure}");
    let structures = record["structures"].as_array().unwrap();
    let found = structures.iter().find(|s| s["name"] == *name).unwrap_or_else(|| panic!("{name}: {record}"));
    (found["kept"].as_u64().unwrap(), found["of"].as_u64().unwrap(), found["heads"] == true)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// `compare`'s mean latent error of two pipelines.
fn latent_error(folder: &Path, dense: &str, pruned: &str) -> f64 {
    let table = printed(
        folder,
        &[
            "compare",
            dense,
            pruned,
            "--prompt",
            "a red circle",
            "--steps",
            "3",
            "--max-sequence-length",
            "24",
            "--quiet",
        ],
    );
    table.lines().find_map(|l| l.strip_prefix("mean")?.split_whitespace().next()?.parse().ok()).unwrap()
}

#[test]
fn heads_and_neurons_leave_the_tensors_and_what_is_left_is_a_model_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    copy_folder(&pipeline(), &folder.join("dense"));
    let report = printed(folder, &["run", &job(folder, "small", "dense", THIRD, ""), "--quiet"]);
    assert_eq!(kept(&folder.join("small"), "1.attn"), (5, 8, true));
    assert_eq!(kept(&folder.join("small"), "2.ff"), (320, 512, false));
    assert!(report.starts_with("Removed 12 of 32 heads and 1536 of 4096 neurons: structured"), "{report}");
    assert!(report.contains("% less arithmetic a forward call") && !report.contains("zero"), "{report}");
    printed(folder, &["run", &job(folder, "masked", "dense", THIRD, "layout = \"masked\""), "--quiet"]);

    // Shapes shrink, the ends stay, and the configuration says so.
    let found: Value = serde_json::from_str(&printed(folder, &["inspect", "small", "--json"])).unwrap();
    let shape = |name: &str| {
        let linears = found["linears"].as_array().unwrap();
        let linear = linears.iter().find(|l| l["name"] == format!("transformer_blocks.{name}")).unwrap();
        (linear["rows"].as_u64().unwrap(), linear["columns"].as_u64().unwrap())
    };
    assert_eq!([shape("1.attn.to_q"), shape("4.attn.add_v_proj")], [(80, 128); 2]);
    assert_eq!([shape("1.attn.to_out.0"), shape("4.attn.to_add_out")], [(128, 80); 2]);
    assert_eq!([shape("1.ff.net.0.proj"), shape("4.ff_context.net.0.proj")], [(320, 128); 2]);
    assert_eq!([shape("1.ff.net.2"), shape("4.ff_context.net.2")], [(128, 320); 2]);
    assert_eq!([shape("0.attn.to_q"), shape("5.attn.to_out.0")], [(128, 128); 2]);
    let config = json_of(&folder.join("small/transformer/config.json"));
    assert_eq!(config["attention_heads_per_block"], json!([8, 5, 5, 5, 5, 8]));
    assert_eq!(config["ffn_context_width_per_block"], json!([512, 320, 320, 320, 320, 0]));
    assert_eq!(config["auto_map"]["AutoModel"], "modeling_pruned_sd3.PrunedSD3Transformer2DModel");
    assert!(folder.join("small/transformer/modeling_pruned_sd3.py").is_file());
    let size = |name: &str| {
        fs::metadata(folder.join(name).join("transformer/diffusion_pytorch_model.safetensors")).unwrap().len()
    };
    assert!(size("small") < size("dense") * 85 / 100 && size("masked") == size("dense"));

    // Zeros in the tensors or no tensors there: the same pictures.
    assert!(latent_error(folder, "dense", "small") > 1e-3);
    assert!(latent_error(folder, "masked", "small") < 1e-3);
    assert_eq!(
        json_of(&folder.join("masked/transformer/config.json")),
        json_of(&folder.join("dense/transformer/config.json"))
    );
    let masked = printed(folder, &["inspect", "masked"]);
    let row = row_of(&masked, "transformer_blocks.1 (f16)", "attn.to_q");
    assert!(row.contains(" 37.50% ") && row.contains(" whole rows "), "{row}");
    printed(
        folder,
        &["sample", "small", "--prompt", "a red circle", "--steps", "2", "--max-sequence-length", "24"],
    );

    // Pruned again, by heads and by weights.
    printed(
        folder,
        &["run", &job(folder, "smaller", "small", "pattern = \"structured\"\nratio = 0.2", ""), "--quiet"],
    );
    assert_eq!(kept(&folder.join("smaller"), "1.attn"), (4, 5, true));
    assert_eq!(kept(&folder.join("smaller"), "2.ff_context"), (256, 320, false));
    assert_eq!(
        json_of(&folder.join("smaller/transformer/config.json"))["attention_heads_per_block"],
        json!([8, 4, 4, 4, 4, 8])
    );
    let said = printed(folder, &["run", &job(folder, "sparse", "small", "pattern = \"2:4\"", ""), "--quiet"]);
    // Its class is still the one that has lost heads.
    let card = fs::read_to_string(folder.join("sparse/README.md")).unwrap();
    assert!(said.contains("trust_remote_code=True"), "{said}");
    assert!(card.contains("from modeling_pruned_sd3 import load_pruned_transformer"), "{card}");
    let sparse = printed(folder, &["inspect", "sparse"]);
    let row = row_of(&sparse, "transformer_blocks.1 (f16)", "ff.net.2");
    assert!(row.contains("128 x 320") && row.contains(" 2:4 "), "{row}");
    // What a masked pipeline no longer uses leaves it when it is pruned to shrink.
    let none = "pattern = \"structured\"\nratio = 0.0";
    printed(folder, &["run", &job(folder, "unmasked", "masked", none, ""), "--quiet"]);
    assert_eq!(json_of(&folder.join("unmasked/transformer/config.json")), config);
}

/// The widths of the feed-forward networks that a shrunk pipeline says it has, of both streams.
fn widths(out: &Path) -> Vec<u64> {
    let config = json_of(&out.join("transformer/config.json"));
    let keys = ["ffn_width_per_block", "ffn_context_width_per_block"];
    let lists = keys.map(|key| config[key].as_array().unwrap_or_else(|| panic!("{key}: {config}")).clone());
    lists.into_iter().flatten().map(|width| width.as_u64().unwrap()).collect()
}

#[test]
fn neurons_are_kept_in_multiples_and_heads_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let model = pipeline().display().to_string();
    for (name, share, pruned) in [("ratio", "ratio = 0.3", 160), ("budget", "budget = 0.2", 511)] {
        let sparsity = |align: &str| format!("pattern = \"structured\"\n{share}\n{align}");
        let odd = format!("{name}-odd");
        printed(folder, &["run", &job(folder, &odd, &model, &sparsity(""), ""), "--quiet"]);
        let report =
            printed(folder, &["run", &job(folder, name, &model, &sparsity("align = 16"), ""), "--quiet"]);
        let (odd, even) = (widths(&folder.join(odd)), widths(&folder.join(name)));
        assert!(odd.iter().any(|width| width % 16 != 0), "{name}: {odd:?}");
        assert!(even.iter().all(|width| width % 16 == 0), "{name}: {even:?}");
        assert!(
            even.iter().any(|width| (1..512).contains(width) && 512 - width <= pruned),
            "{name}: {even:?}"
        );
        let record = json_of(&folder.join(name).join("pruning.json"));
        let [before, after] = [0, 1].map(|i| record["sizes"]["forward_flops"][i].as_f64().unwrap());
        if name == "budget" {
            assert!((0.2..0.22).contains(&(1.0 - after / before)), "{after} of {before}");
        } else {
            // 512 - 154 lies nearer to 352 than to 368. Heads go as they would.
            assert_eq!(kept(&folder.join(name), "1.ff"), (352, 512, false));
            assert_eq!(kept(&folder.join(name), "1.attn"), (6, 8, true));
        }
        // What was written loads, and does what run printed of it.
        let told_error = report.lines().find(|line| line.starts_with("error     final latents ")).unwrap();
        let compared = printed(folder, &["compare", &model, name, "--quiet"]);
        let (error, _) = told_error["error     ".len()..].split_once(" (").unwrap();
        assert!(compared.contains(&format!("{error} (L2, relative) on 2 prompts")), "{compared}");
    }
    let refused = |sparsity: &str| {
        let output = obsdiff(folder, &["run", &job(folder, "never", &model, sparsity, ""), "--quiet"], &[]);
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr)
    };
    let said = refused("pattern = \"structured\"\nratio = 0.3\nalign = 1024");
    assert!(
        said.contains("never.toml: sparsity.align: is 1024, but `transformer_blocks.1.ff` has 512 neurons"),
        "{said}"
    );
    let said = refused("pattern = \"2:4\"\nalign = 16");
    assert!(said.contains("never.toml: sparsity.align: ") && said.contains("structured"), "{said}");
}

#[test]
fn a_budget_is_divided_over_the_blocks_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let model = pipeline().display().to_string();
    let sparsity = "pattern = \"structured\"\nbudget = 0.25\n[[sparsity.rules]]\nmatch = \"transformer_blocks.5.*\"\npattern = \"structured\"";
    let report = printed(folder, &["run", &job(folder, "out", &model, sparsity, ""), "--quiet"]);
    println!("{report}");
    let record = json_of(&folder.join("out/pruning.json"));
    let [before, after] = [0, 1].map(|i| record["sizes"]["forward_flops"][i].as_f64().unwrap());
    let saved = 1.0 - after / before;
    assert!((0.25..0.26).contains(&saved), "{saved}");
    let structures = record["structures"].as_array().unwrap();
    let names: Vec<&str> = structures.iter().map(|s| s["name"].as_str().unwrap()).collect();
    // Three of four blocks in the middle, and of the last what it has.
    assert_eq!(names.len(), 4 * 3 + 2, "{names:?}");
    let shares: Vec<f64> =
        structures.iter().map(|s| s["kept"].as_f64().unwrap() / s["of"].as_f64().unwrap()).collect();
    assert!(shares.iter().all(|share| *share >= 0.05));
    let (least, most) =
        (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
    assert!(most - least > 0.1, "every block lost the same: {shares:?}");

    let out_of_reach = job(folder, "never", &model, "pattern = \"structured\"\nbudget = 0.9", "");
    let refused = obsdiff(folder, &["run", &out_of_reach, "--quiet"], &[]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(
        said.contains("never.toml: sparsity.budget: is 0.9, but the blocks that are pruned can save 0."),
        "{said}"
    );
}

/// What the shipped job writes with so many packages by so many workers, on few prompts: weights and record.
fn shipped_job(packages: u32, workers: u32) -> [Vec<u8>; 2] {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = format!("output.path={}", out.display());
    let packages = format!("packages.count={packages}");
    let settings = ["calibration.count=8", "calibration.steps=3", "evaluation.count=0", &output, &packages];
    let workers = workers.to_string();
    let mut args = vec!["run", "deploy/jobs/shapes-sd3-structured.toml", "--quiet", "--workers", &workers];
    args.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    printed(root, &args);
    let mut record = json_of(&out.join("pruning.json"));
    // It differs from run to run.
    record.as_object_mut().unwrap().remove("measured");
    record["job"]["output"].take();
    record["measured"].take();
    let weights = fs::read(out.join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    [weights, record.to_string().into_bytes()]
}

#[test]
fn a_budget_by_one_package_or_more_gives_the_same_bytes_by_one_worker_and_two() {
    for packages in [1, 2, 4] {
        let [one, two] = [1, 2].map(|workers| shipped_job(packages, workers));
        assert!(one == two, "{packages} packages: two workers give another result than one");
        let record: Value = serde_json::from_slice(&one[1]).unwrap();
        let flops = |i: usize| record["sizes"]["forward_flops"][i].as_f64().unwrap();
        assert!(flops(1) < 0.75 * flops(0), "{packages} packages: {} of {}", flops(1), flops(0));
    }
}

#[test]
fn the_plan_tells_of_structures() {
    let dir = tempfile::tempdir().unwrap();
    let model = pipeline().display().to_string();
    let plan = printed(dir.path(), &["plan", &job(dir.path(), "out", &model, THIRD, "")]);
    assert!(plan.contains("37.5% of each block's heads and neurons by obs"), "{plan}");
    // Four blocks of four linears, each with a site and the constant.
    assert!(
        plan.lines().any(|l| l.starts_with("all") && l.split_whitespace().nth(2) == Some("16")),
        "{plan}"
    );
    let budget = "pattern = \"structured\"\nbudget = 0.2";
    let plan = printed(dir.path(), &["plan", &job(dir.path(), "out", &model, budget, "")]);
    assert!(plan.contains("heads and neurons worth 20% of a forward call by obs"), "{plan}");
    // What each would cost is found out first, on the dense model. The first package to prune goes by the sums of its own survey.
    let (contents, _) = plan.split_once("  Gram work").unwrap();
    let rows: Vec<&str> = contents.lines().filter(|line| line.contains(" (survey) ")).collect();
    assert!(rows.len() == 2 && plan.lines().any(|line| line.starts_with("4 ")), "{plan}");
    let too_much = job(dir.path(), "out", &model, "pattern = \"structured\"\nbudget = 0.9", "");
    let refused = obsdiff(dir.path(), &["plan", &too_much], &[]);
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("sparsity.budget: is 0.9, but"), "{said}");
}

/// The shipped pipeline around a transformer of this configuration with random weights.
fn random_pipeline(to: &Path, keys: &Value) {
    copy_folder(&pipeline(), to);
    let folder = to.join("transformer");
    fs::write(folder.join("config.json"), keys.to_string()).unwrap();
    let config = Sd3Config::read(&folder).unwrap();
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let scale =
            if name.ends_with("weight") && shape.len() > 1 { 1.5 / (shape[1] as f32).sqrt() } else { 0.1 };
        let numbers =
            noise(hash(&name), shape.iter().product()).into_iter().map(|number| scale * number).collect();
        (name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap())
    };
    let tensors: HashMap<_, _> = config.shapes().into_iter().map(tensor).collect();
    candle_core::safetensors::save(&tensors, folder.join("diffusion_pytorch_model.safetensors")).unwrap();
}

fn keys(heads: usize, head: usize, layers: usize, dual: &[usize]) -> Value {
    json!({
        "_class_name": "SD3Transformer2DModel", "attention_head_dim": head, "caption_projection_dim": heads * head,
        "dual_attention_layers": dual, "in_channels": 4, "joint_attention_dim": 96, "num_attention_heads": heads,
        "num_layers": layers, "out_channels": 4, "patch_size": 2, "pooled_projection_dim": 96, "pos_embed_max_size": 32,
        "qk_norm": "rms_norm", "sample_size": 16
    })
}

#[test]
fn a_second_attention_loses_heads_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    random_pipeline(&folder.join("dense"), &keys(6, 8, 4, &[0, 1]));
    for (name, method) in [("obs", "obs"), ("l1", "l1")] {
        let sparsity = format!(
            "method = {method:?}\npattern = \"structured\"\nratio = 0.5\n[[sparsity.rules]]\nmatch = \"*.attn2.*\"\nratio = 0.2"
        );
        let report = printed(folder, &["run", &job(folder, name, "dense", &sparsity, ""), "--quiet"]);
        assert!(report.starts_with("Removed "), "{report}");
        let config = json_of(&folder.join(name).join("transformer/config.json"));
        assert_eq!(config["attention_heads_per_block"], json!([6, 3, 3, 6]));
        assert_eq!(config["attention_2_heads_per_block"], json!([5, 5, 0, 0]));
        assert!(latent_error(folder, "dense", name) > 1e-3);
    }
}

#[test]
fn compare_tells_the_time_of_a_forward_call_beside_its_arithmetic() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    random_pipeline(&folder.join("dense"), &keys(6, 8, 2, &[]));
    let sparsity = "method = \"l1\"\npattern = \"structured\"\nratio = 0.5\n[[sparsity.rules]]\nmatch = \"*\"\nratio = 0.5\n";
    let job = job(folder, "small", "dense", sparsity, "");
    printed(folder, &["run", &job, "--quiet", "--set", "evaluation.count=0"]);
    let prompt = ["--prompt", "a red circle", "--max-sequence-length", "24", "--steps", "1"];
    let printed =
        printed(folder, &[&["compare", "dense", "small", "--speed", "--quiet"], &prompt[..]].concat());
    let lines: Vec<&str> = printed.lines().rev().take(3).collect();
    assert_eq!(lines[2], "forward call with 64 image and 48 text tokens:");
    assert!(lines[1].starts_with("  dense   ") && lines[0].starts_with("  pruned  "), "{printed}");
    // Whether it is faster or slower is the machine's.
    let (time, saved) = lines[0].rsplit_once(", for ").expect(&printed);
    let (_, time) = time.rsplit_once(": ").expect(&printed);
    let (share, change) = time.split_once("% ").expect(&printed);
    assert!(share.parse::<f64>().is_ok() && ["less time", "more time"].contains(&change), "{printed}");
    let saved = saved.strip_suffix("% less arithmetic").expect(&printed);
    // The projections are about half of the arithmetic of so small a model.
    assert!((20.0..50.0).contains(&saved.parse::<f64>().unwrap()), "{printed}");
}

//! Beside the real diffusers and transformers: a shrunk pipeline loads in every way and makes our pictures, the Python that an output,
//! the summary of its job and the pages show runs, where a folder holds several files of weights we read the same, and what a GPU is timed
//! beside is the published method. Needs a Python with venv and a few gigabytes of packages, which it installs; so it runs where
//! OBSDIFF_PY_TESTS=1 alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use common::{assets, job_file, run_job, without_t5};
use obsdiff::clock::monotonic;
use obsdiff::progress::Progress;
use obsdiff::run::Summary;
use obsdiff::sampling::{Sampling, Settings, load_transformer};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_tests::not_tested;
use obsdiff_worker::conditioning::ConditioningFile;

const PACKAGES: [&str; 6] = ["torch", "diffusers", "transformers", "accelerate", "sentencepiece", "protobuf"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/shrunk_pipeline.py");
const DOCUMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/documents.py");
const WHEEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/wheel/build");
const WHICH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/which_weights.py");

const PUBLISHED_GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/published_golden.py");

/// Whether tests with Python are asked for; says so where they are not.
#[track_caller]
fn asked() -> bool {
    let asked = std::env::var_os("OBSDIFF_PY_TESTS").is_some_and(|asked| asked == "1");
    if !asked {
        not_tested("OBSDIFF_PY_TESTS=1 lets this test install PyTorch and diffusers");
    }
    asked
}

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// The Python of an environment with diffusers, made on first use: OBSDIFF_PYTHON, or one beside the build.
fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("OBSDIFF_PYTHON") {
        return python.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("diffusers");
    let python = folder.join("bin/python");
    if !folder.join("ready").exists() {
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        succeed(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES));
        std::fs::write(folder.join("ready"), "").unwrap();
    }
    python
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| {
        t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    norm(&(a - b).unwrap()) / norm(b)
}

/// Our final latents and decoded pictures, with the settings of the script.
fn sampled(pipeline: &Path, [guidance, true_guidance]: [f64; 2], prompts: &[&str]) -> (Tensor, Tensor) {
    let settings = Settings {
        steps: 10,
        guidance,
        true_guidance,
        seed: 11,
        height: Some(32),
        width: Some(32),
        max_sequence_length: 24,
        batch: 1,
        dtype: obsdiff_proto::ComputeType::F32,
    };
    let folder = PipelineFolder::open(pipeline).unwrap();
    let prompts: Vec<String> = prompts.iter().map(|prompt| prompt.to_string()).collect();
    let progress = Progress::lines(std::io::sink(), monotonic());
    let sampling = Sampling::new(
        &folder,
        &prompts,
        settings,
        (pipeline.parent().unwrap(), &ComputeDevice::Cpu),
        &progress,
    )
    .unwrap();
    let model = load_transformer(&folder, DType::F32, &ComputeDevice::Cpu).unwrap();
    let latents = sampling.denoised(&*model, "sample", &progress).unwrap().latents;
    let pictures = folder.vae(&ComputeDevice::Cpu).unwrap().decode(&latents).unwrap();
    (latents, pictures)
}

#[test]
fn what_a_gpu_is_held_to_prunes_as_the_published_code() {
    if !asked() {
        return;
    }
    let names = ["unstructured-30-72x320", "unstructured-50-96x128", "unstructured-70-64x200-dead5"];
    let goldens = names.map(|name| assets().join(format!("goldens/solver/{name}.safetensors")));
    succeed(Command::new(python()).arg(PUBLISHED_GOLDEN).args(goldens));
}

#[test]
fn diffusers_loads_a_shrunk_pipeline_and_makes_our_pictures() {
    if !asked() {
        return;
    }
    let python = python();
    let prompts =
        ["a red circle on white", "a yellow ring at the top and a purple cross at the bottom on grey"];
    // The second scale is that of classifier-free guidance where the model takes guidance as an input besides.
    for (model, guidance, true_guidance) in [("shapes-sd3", 4.0, 1.0), ("shapes-flux", 3.5, 2.5)] {
        let folder = tempfile::tempdir().unwrap();
        let out = |name: &str| folder.path().join(name);
        let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
        let path = format!("model.path={}", assets().join(model).display());
        let guided = format!("calibration.guidance={guidance}");
        let sets = [
            &path,
            &guided,
            "sparsity.pattern=structured",
            "sparsity.ratio=0.3",
            "calibration.count=8",
            "calibration.steps=5",
        ];
        let summary = run_job(&file, &sets).unwrap();

        let theirs = out("theirs.safetensors");
        succeed(Command::new(WHEEL).arg("--module").arg(out("module")));
        let mut script = Command::new(&python);
        script.env("PYTHONPATH", out("module")).arg(SCRIPT).arg(out("out"));
        script.args([guidance, true_guidance].map(|scale: f64| scale.to_string()));
        succeed(script.arg(&theirs).args(prompts));
        let theirs = candle_core::safetensors::load(theirs, &Device::Cpu).unwrap();

        let ours = sampled(&out("out"), [guidance, 1.0], &prompts);
        let [latents, pictures] = ["latents", "pictures"].map(|name| theirs[name].clone());
        let (by_latents, by_pictures) = (relative(&ours.0, &latents), relative(&ours.1, &pictures));
        println!("{model}: latents {by_latents:.1e}, pictures {by_pictures:.1e} apart");
        assert!(by_latents < 1e-3 && by_pictures < 5e-3, "{model}");
        if let Some(theirs) = theirs.get("latents.true_guidance") {
            let (ours, _) = sampled(&out("out"), [guidance, true_guidance], &prompts);
            let apart = relative(&ours, theirs);
            println!("{model}: latents by classifier-free guidance {apart:.1e} apart");
            assert!(apart < 1e-3 && relative(theirs, &latents) > 1e-2, "{model}");
        }
        assert_eq!(theirs.contains_key("latents.true_guidance"), true_guidance > 1.0);
        for other in ["latents.by_function", "latents.by_package", "latents.by_resaving"] {
            assert!(relative(&theirs[other], &latents) < 1e-6, "{model}: {other}");
        }
        let (resaved, _) = sampled(&out("out-resaved"), [guidance, 1.0], &prompts);
        assert!(relative(&resaved, &latents) < 1e-3, "{model}: saved again by diffusers");
        // The page shows how the first model is loaded.
        let page = (model == "shapes-sd3").then(|| shown("jobs/README.md", "\n## Heads and neurons\n"));
        assert_eq!(converted(&python, folder.path(), &summary, page), 0);
    }
}

/// The first Python that a page in `deploy` shows after some text.
fn shown(page: &str, after: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(page);
    let page = std::fs::read_to_string(page).unwrap();
    let rest = page.split_once(after).expect("no such text").1;
    rest.split("```py\n").nth(1).and_then(|rest| rest.split("```").next()).expect("no script").to_owned()
}

/// Runs the Python that the card and the report of the output `out` in this folder show, the summary of its job, the page of the Python package,
/// and another `page`. Returns how many weights the card made semi-structured.
fn converted(python: &Path, folder: &Path, summary: &Summary, page: Option<String>) -> usize {
    let summary = summary.to_string();
    let loading = summary.lines().skip_while(|line| !line.contains("load it in Python")).skip(1);
    let loading = loading.map(|line| format!("{}\n", line.trim_start())).collect::<String>();
    let loading =
        format!("import diffusers, torch\nfrom diffusers import AutoModel, DiffusionPipeline\n{loading}");
    let package = shown("wheel/README.md", "a module that loads a pruned pipeline");
    let scripts =
        [Some(loading), Some(package), page].into_iter().flatten().enumerate().map(|(at, script)| {
            let path = folder.join(format!("script-{at}.py"));
            std::fs::write(&path, script).unwrap();
            path
        });
    succeed(Command::new(WHEEL).arg("--module").arg(folder.join("module")));
    let mut command = Command::new(python);
    command.current_dir(folder).env("PYTHONPATH", folder.join("module"));
    let output = command.args([DOCUMENTS, "out"]).args(scripts).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().parse().unwrap()
}

#[test]
fn the_python_that_a_two_to_four_output_shows_runs() {
    if !asked() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    for source in [assets().join("shapes-sd3"), without_t5(place.path())] {
        let folder = tempfile::tempdir().unwrap();
        let file = job_file(folder.path(), &assets().join("shapes-prompts.txt"), "out");
        let path = format!("model.path={}", source.display());
        let sets = [
            &path,
            "sparsity.pattern=2:4",
            "sparsity.ratio=",
            "calibration.count=8",
            "calibration.steps=5",
            "evaluation.count=1",
        ];
        let summary = run_job(&file, &sets).unwrap();
        let fits = |shape: [usize; 2]| shape[0].is_multiple_of(32) && shape[1].is_multiple_of(64);
        let fitting = summary.record.linears.iter().filter(|linear| fits(linear.shape)).count();
        assert!(fitting > 0 && converted(&python(), folder.path(), &summary, None) == fitting, "{fitting}");
    }
}

/// Files that a folder of weights can hold; a number of the tensor that marks them says which was read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Whole = 1,
    Shards,
    IndexAlone,
    Variant,
}

/// Puts weights into `folder`: all that a component has, with every number of the tensor `marker` being that of `part`.
fn lay(folder: &Path, library: Library, tensors: &HashMap<String, Tensor>, marker: &str, part: Part) {
    let stem = library.stem();
    let mut marked = tensors.clone();
    let mark = (tensors[marker].ones_like().unwrap() * f64::from(part as u8)).unwrap();
    marked.insert(marker.to_owned(), mark);
    let save = |tensors: &HashMap<String, Tensor>, name: String| {
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        // transformers asks for the framework.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors, Some(format), &folder.join(name)).unwrap();
    };
    match part {
        Part::Whole => save(&marked, format!("{stem}.safetensors")),
        Part::Variant => save(&marked, format!("{stem}.fp16.safetensors")),
        Part::Shards | Part::IndexAlone => {
            let shard = format!("{stem}-00001-of-00001.safetensors");
            let names = marked.keys().map(|name| (name.clone(), shard.clone().into()));
            let map: serde_json::Map<String, serde_json::Value> = names.collect();
            let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
            let name = format!("{stem}.safetensors.index.json");
            std::fs::write(folder.join(name), index.to_string()).unwrap();
            if part == Part::Shards {
                save(&marked, shard);
            }
        }
    }
}

#[test]
fn where_a_folder_holds_several_weights_we_read_those_that_the_libraries_read() {
    use Part::{IndexAlone, Shards, Variant, Whole};
    if !asked() {
        return;
    }
    let layouts: [&[Part]; 9] = [
        &[Whole],
        &[Shards],
        &[Whole, Shards],
        &[Whole, IndexAlone],
        &[IndexAlone],
        &[Variant],
        &[Variant, Whole],
        &[Variant, Shards],
        &[],
    ];
    for (library, name, component, marker) in [
        (Library::Diffusers, "diffusers", "transformer", "proj_out.bias"),
        (Library::Transformers, "transformers", "text_encoder", "text_projection.weight"),
    ] {
        let source = assets().join("shapes-sd3").join(component);
        let weights = source.join(format!("{}.safetensors", library.stem()));
        let tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = layouts
            .iter()
            .enumerate()
            .map(|(number, parts)| {
                let folder = root.path().join(number.to_string());
                std::fs::create_dir(&folder).unwrap();
                std::fs::copy(source.join("config.json"), folder.join("config.json")).unwrap();
                parts.iter().for_each(|part| lay(&folder, library, &tensors, marker, *part));
                folder
            })
            .collect();
        let output = Command::new(python()).arg(WHICH).args([name, marker]).args(&folders).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs = String::from_utf8(output.stdout).unwrap();
        let ours = folders.iter().map(|folder| match Weights::open(folder, library) {
            Ok(weights) => {
                let shape = weights.entry(marker).unwrap().shape().to_vec();
                let tensor = weights.tensor(marker, &shape, DType::F32).unwrap();
                format!("{:?}", tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0])
            }
            Err(_) => "refused".to_owned(),
        });
        for ((parts, ours), theirs) in layouts.iter().zip(ours).zip(theirs.lines()) {
            println!("{name}: {parts:?}: {theirs}");
            assert_eq!(ours, theirs, "{name}: {parts:?}");
        }
        assert_eq!(theirs.lines().count(), layouts.len());
    }
}

/// Which weights of a pipeline's transformer are zeros: tensor after tensor, by their names.
fn are_zeros(pipeline: &Path) -> Vec<bool> {
    let weights = Weights::open(&pipeline.join("transformer"), Library::Diffusers).unwrap();
    let mut names: Vec<&str> = weights.entries().map(|(name, _)| name).collect();
    names.sort_unstable();
    let read = |name: &str| {
        let shape = weights.entry(name).unwrap().shape();
        let tensor = weights.tensor(name, shape, DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    names.into_iter().flat_map(read).map(|weight| weight == 0.0).collect()
}

#[test]
fn diffusers_encodes_prompts_as_we_do_by_the_script_of_the_page() {
    if !asked() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    std::fs::write(place("encode.py"), shown("jobs/README.md", "\n## Encoded prompts\n")).unwrap();
    // The last ones get other tokens by the slow tokenizer of transformers 4.
    let prompts = [
        "a red circle on white",
        "a yellow ring at the top",
        "a purple cross on grey",
        "größer",
        "a 你好 circle",
        "a red\u{200b} circle",
        "ΣΑΣ circle",
    ];
    std::fs::write(place("prompts.txt"), prompts.join("\n")).unwrap();
    // CLIP gives 24 tokens of a prompt.
    for (model, guidance, length) in
        [("shapes-sd3", 4.0, 24), ("without-t5", 4.0, 40), ("shapes-flux", 3.5, 24)]
    {
        let theirs = place(&format!("{model}.safetensors"));
        let pipeline =
            if model == "without-t5" { without_t5(&place("source")) } else { assets().join(model) };
        let mut command = Command::new(python());
        command.args([place("encode.py"), pipeline.clone(), place("prompts.txt")]);
        succeed(command.arg(length.to_string()).arg(&theirs));
        let file = ConditioningFile::open(&theirs).unwrap();
        assert_eq!((file.prompts(), file.texts().unwrap()), (7, &prompts.map(str::to_owned)[..]));

        let encoders = PipelineFolder::open(&pipeline).unwrap().text_encoders(length).unwrap();
        let texts: Vec<&str> = prompts.iter().copied().chain([""]).collect();
        let ours = encoders.encode(&texts, &mut |_, _| {}).unwrap();
        for (id, ours) in ours.iter().enumerate() {
            let theirs = match id {
                7 => file.negative(DType::F32).unwrap(),
                _ => file.prompt(id as u32, DType::F32).unwrap(),
            };
            let apart =
                [(&ours.text, &theirs.text), (&ours.pooled, &theirs.pooled)].map(|(a, b)| relative(a, b));
            println!("{model}: prompt {id}: {apart:?} apart");
            assert!(apart.iter().all(|apart| *apart < 1e-5), "{model}: prompt {id}: {apart:?}");
        }

        // A job takes it, and prunes the weights that one prunes which encodes by itself, but where the last digits decide. (A picture of
        // a pruned model shows less: from weights of which 0.1% differ, latents were 4% off each other.)
        let job = job_file(folder.path(), &place("prompts.txt"), model);
        let (path, guided) =
            (format!("model.path={}", pipeline.display()), format!("calibration.guidance={guidance}"));
        let taken = format!("calibration.conditioning={}", theirs.display());
        let length = format!("calibration.max_sequence_length={length}");
        let sets =
            [&path, &guided, &length, "calibration.count=3", "calibration.steps=3", "evaluation.count=0"];
        run_job(&job, &[&sets[..], &[&format!("output.path={}", place("by-us").display())]].concat())
            .unwrap();
        run_job(&job, &[&sets[..], &[&taken, "calibration.prompts="]].concat()).unwrap();
        let [ours, theirs] = [place("by-us"), place(model)].map(|output| are_zeros(&output));
        let pruned = ours.iter().filter(|is_zero| **is_zero).count();
        let others = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        println!("{model}: of {pruned} zeros {others} are others");
        assert!(pruned > ours.len() / 4 && others < pruned / 100, "{model}");
        std::fs::remove_dir_all(place("by-us")).unwrap();
    }
}

//! Prompts that come encoded: `encode`, and jobs that take what it or another program wrote.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors};
use obsdiff_tests::copy_folder;

use crate::{asset, obsdiff, printed, text};

const FILE: &str = "calibration.conditioning=prompts.safetensors";
/// The job without its prompts: the file says which they are.
const ALONE: &str = "calibration.prompts=";

/// A job on a shipped pipeline, so small that it takes no time, in a folder of its own.
fn setting(model: &str, guidance: f64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\npattern = \"unstructured\"\nratio = 0.5\n[calibration]\nprompts = {:?}\ncount = 4\n\
         steps = 3\nguidance = {guidance:?}\nheight = 32\nwidth = 32\nmax_sequence_length = 24\nshard_size = 2\n\
         [evaluation]\ncount = 2\n[output]\npath = \"out\"\n",
        asset(model),
        asset("shapes-prompts.txt"),
    );
    fs::write(folder.path().join("job.toml"), job).unwrap();
    folder
}

fn run(folder: &Path, output: &str, sets: &[&str]) -> Vec<u8> {
    let path = format!("output.path={output}");
    let mut args = vec!["run", "job.toml", "--quiet", "--set", &path];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let said = printed(folder, &args);
    assert!(said.contains("(L2, relative) on 2 held-out prompts"), "{said}");
    fs::read(folder.join(output).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
}

fn encode(folder: &Path) -> PathBuf {
    let said = printed(folder, &["encode", "job.toml", "--out", "prompts.safetensors", "--quiet"]);
    assert!(said.starts_with("prompts.safetensors: 6 prompts of "), "{said}");
    folder.join("prompts.safetensors")
}

/// What `run` says of the job with these keys, which it refuses.
fn refused(folder: &Path, sets: &[&str]) -> String {
    let mut args = vec!["run", "job.toml", "--quiet"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let output = obsdiff(folder, &args, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!folder.join("out").exists() && !folder.join("out.state").exists(), "{said}");
    said
}

/// The same weights come of prompts that the job encodes and of those that were encoded before, with the texts and without, by a
/// pipeline that has no text encoder at all, and by one worker and by two.
#[test]
fn a_job_of_encoded_prompts_gives_the_weights_of_one_that_encodes_them() {
    for (model, guidance) in [("shapes-sd3", 4.0), ("shapes-flux", 3.5)] {
        let folder = setting(model, guidance);
        let here = folder.path();
        let expected = run(here, "out", &[]);
        encode(here);
        assert!(run(here, "with-texts", &[FILE]) == expected, "{model}");

        let bare = here.join("bare");
        copy_folder(&asset(model), &bare);
        for component in
            ["text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"]
        {
            let _ = fs::remove_dir_all(bare.join(component));
        }
        // A text encoder that nobody knows is no obstacle.
        let index = bare.join("model_index.json");
        fs::write(&index, fs::read_to_string(&index).unwrap().replace("CLIPTextModel", "StrangeTextModel"))
            .unwrap();
        assert!(run(here, "alone", &[FILE, ALONE, "model.path=bare"]) == expected, "{model}");
        let args =
            ["run", "job.toml", "--quiet", "--workers", "2", "--set", FILE, "--set", "output.path=two"];
        printed(here, &args);
        let two = fs::read(here.join("two/transformer/diffusion_pytorch_model.safetensors")).unwrap();
        assert!(two == expected, "{model}");
        assert!(!here.join("out.state").exists() && !here.join("two.state").exists());
    }
}

#[test]
fn encode_writes_documented_tensors_and_replaces_only_its_own_files() {
    let folder = setting("shapes-sd3", 4.0);
    let file = encode(folder.path());
    let tensors = safetensors::load(&file, &Device::Cpu).unwrap();
    assert_eq!(tensors.len(), 2 * (6 + 1));
    let shape = |name: &str| tensors[name].dims().to_vec();
    let (text_shape, pooled) = (shape("prompt.0.text"), shape("prompt.0.pooled"));
    assert_eq!((text_shape.len(), pooled.len()), (2, 1));
    for name in ["prompt.5", "negative"] {
        assert_eq!(shape(&format!("{name}.text")), text_shape);
        assert_eq!(shape(&format!("{name}.pooled")), pooled);
    }
    let first = fs::read(&file).unwrap();
    encode(folder.path());
    assert!(fs::read(&file).unwrap() == first, "the same job writes another file");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "a temporary file is left");

    fs::write(&file, "mine").unwrap();
    let output = obsdiff(folder.path(), &["encode", "job.toml", "--out", "prompts.safetensors"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr)
            .contains("prompts.safetensors: exists and is no conditioning that obsdiff wrote")
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_file_that_does_not_fit_is_refused_before_any_work_by_its_tensor_and_the_remedy() {
    let folder = setting("shapes-sd3", 4.0);
    let here = folder.path();
    let file = encode(here);
    let whole = fs::read(&file).unwrap();
    let good = safetensors::load(&file, &Device::Cpu).unwrap();
    let alone = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        safetensors::save(&tensors, &file).unwrap();
        refused(here, &[FILE, ALONE])
    };
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let cases = [
        (
            alone(&|t| drop(t.remove("prompt.3.pooled"))),
            "lacks tensor `prompt.3.pooled`: it must be of shape",
        ),
        (
            alone(&|t| drop(t.remove("prompt.0.text"))),
            "holds no tensor `prompt.0.text`: name the tensors of prompt 0",
        ),
        (
            alone(&|t| drop(t.remove("prompt.2.text"))),
            "calibration.count: is 4, but prompts.safetensors holds 2 prompts: lower",
        ),
        (
            alone(&|t| drop(t.remove("negative.text"))),
            "lacks tensor `negative.text`: classifier-free guidance needs",
        ),
        (
            alone(&|t| drop(t.insert("prompt.1.text".to_owned(), zeros(&[48, 7], DType::F32)))),
            "tensor `prompt.1.text` is [48, 7] of F32, but the model takes [48, ",
        ),
        (
            alone(&|t| drop(t.insert("prompt.1.pooled".to_owned(), zeros(&[32], DType::U8)))),
            "tensor `prompt.1.pooled` is [32] of U8, but the model takes [",
        ),
    ];
    for (said, problem) in cases {
        assert!(said.contains(problem), "{problem}: {said}");
        assert!(said.contains("prompts.safetensors") && said.lines().count() == 1, "{said}");
    }

    fs::write(&file, &whole).unwrap();
    let said = refused(here, &[FILE, "calibration.max_sequence_length=25"]);
    assert!(
        said.contains("has 24 T5 tokens a prompt: set calibration.max_sequence_length = 24, which is 25"),
        "{said}"
    );
    let said = refused(here, &[FILE, "calibration.count=5"]);
    assert!(
        said.contains("which holds 6 prompts, but the job takes 5 to calibrate and 2 held out: encode more"),
        "{said}"
    );
    let said = refused(here, &[FILE, "evaluation.prompts=other.txt", ALONE]);
    assert!(said.contains("evaluation.prompts: has no effect: calibration.conditioning holds"), "{said}");
    fs::write(here.join("other.txt"), "a\nb\nc\nd\ne\nf\n").unwrap();
    let said = refused(here, &[FILE, "calibration.prompts=other.txt"]);
    assert!(said.contains("whose prompt 0 is another than the job's: encode the job's prompts"), "{said}");
    let model = format!("model.path={}", asset("shapes-flux").display());
    let said = refused(here, &[FILE, &model]);
    assert!(
        said.contains(
            "is of a pipeline with SD3Transformer2DModel, but the model has FluxTransformer2DModel"
        ),
        "{said}"
    );
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(refused(here, &[FILE]).contains("prompts.safetensors: is not a whole safetensors file"));
    fs::remove_file(&file).unwrap();
    assert!(
        refused(here, &[FILE]).contains("calibration.conditioning: is prompts.safetensors: No such file")
    );
    fs::write(&file, &whole).unwrap();
    let output = obsdiff(here, &["encode", "job.toml", "--out", "more.safetensors", "--set", FILE], &[]);
    assert!(
        text(&output.stderr).contains("so the prompts are encoded already: unset it by --set"),
        "{output:?}"
    );
}

#[test]
fn a_number_that_is_not_finite_is_named() {
    let folder = setting("shapes-sd3", 4.0);
    let file = encode(folder.path());
    let mut tensors = safetensors::load(&file, &Device::Cpu).unwrap();
    let name = "prompt.2.pooled";
    let spoiled = (tensors[name].ones_like().unwrap() * f64::NAN).unwrap();
    tensors.insert(name.to_owned(), spoiled);
    safetensors::save(&tensors, &file).unwrap();
    let said = refused(folder.path(), &[FILE, ALONE]);
    assert!(
        said.contains("prompts.safetensors: tensor `prompt.2.pooled` holds a value that is not finite"),
        "{said}"
    );
}

#[test]
fn a_plan_says_what_conditioning_takes_and_where_it_lies() {
    let folder = setting("shapes-sd3", 4.0);
    let line = |sets: &[&str]| {
        let mut args = vec!["plan", "job.toml"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let plan = printed(folder.path(), &args);
        plan.lines().find(|line| line.starts_with("Conditioning of ")).unwrap().to_owned()
    };
    let encoded = line(&[]);
    assert!(encoded.starts_with("Conditioning of 6 prompts and the empty one: "), "{encoded}");
    assert!(encoded.ends_with(" in out.state, encoded once, kept in memory by each worker"), "{encoded}");
    encode(folder.path());
    assert_eq!(line(&[FILE]), encoded.replace("encoded once", "taken from prompts.safetensors"));
}

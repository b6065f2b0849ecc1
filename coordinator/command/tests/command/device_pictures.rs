//! Measuring and pictures on a GPU, here one of a fake driver in host memory.
#![cfg(feature = "cuda")]

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::device::weights;
use super::pictures::read;
use super::{asset, obsdiff, text};

/// What the command says on standard output, where CUDA's libraries work in host memory.
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let ran = obsdiff(folder, arguments, &[("LD_LIBRARY_PATH", libraries)]);
    assert!(ran.status.success(), "{arguments:?}: {}", text(&ran.stderr));
    text(&ran.stdout)
}

/// A job in bf16, whose forward calls round elsewhere on a GPU, by a method that works on the processor: the weights are the same on both.
fn job(folder: &Path) -> String {
    let path = folder.join("job.toml");
    let job = format!(
        "[model]\npath = \"{}\"\ndtype = \"bf16\"\n\
         [sparsity]\nmethod = \"magnitude\"\nrefine = 0\nallocation = \"uniform\"\npattern = \"2:4\"\n\
         [[sparsity.rules]]\nmatch = \"transformer_blocks.[1-9].*\"\nskip = true\n\
         [calibration]\nprompts = \"{}\"\ncount = 2\nsteps = 2\nmax_sequence_length = 24\n\
         [evaluation]\ncount = 1\n",
        asset("shapes-sd3").display(),
        asset("shapes-prompts.txt").display(),
    );
    fs::write(&path, job).unwrap();
    path.display().to_string()
}

/// Two figures of the same that were rounded in other places.
fn near_but_not_equal([gpu, processor]: [&Value; 2], what: &str) {
    let [gpu, processor] = [gpu, processor].map(|figure| figure.as_f64().unwrap());
    let off = (gpu / processor - 1.0).abs();
    assert!(off > 0.0 && off < 0.05, "{what}: {gpu} on the GPU, {processor} on the processor");
}

#[test]
fn a_job_on_a_gpu_is_measured_there_and_so_is_its_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = job(folder);
    let [gpu, processor] = ["cuda", "cpu"].map(|device| {
        let path = format!("output.path={device}");
        printed(folder, &["run", "--quiet", "--baseline", "--device", device, "--set", &path, &job]);
        let record = fs::read_to_string(folder.join(device).join("pruning.json")).unwrap();
        serde_json::from_str::<Value>(&record).unwrap()["measured"].clone()
    });
    assert!(weights(folder, "cuda") == weights(folder, "cpu"));
    let of = |part: fn(&Value) -> &Value| [part(&gpu), part(&processor)];
    near_but_not_equal(of(|measured| &measured["held_out"]["relative_error"]), "the job");
    near_but_not_equal(of(|measured| &measured["baseline"]["held_out"]["relative_error"]), "its baseline");
}

#[test]
fn pictures_are_denoised_on_the_device_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    printed(folder, &["run", "--quiet", "--set", "output.path=out", &job(folder)]);
    let [gpu, processor] = ["cuda", "cpu"].map(|device| {
        let out = format!("{device}.png");
        printed(folder, &["sample", "out", "--quiet", "--device", device, "--out", &out]);
        read(&folder.join(out)).2
    });
    let off: Vec<u8> = gpu.iter().zip(&processor).map(|(gpu, processor)| gpu.abs_diff(*processor)).collect();
    let mean = off.iter().map(|off| f64::from(*off)).sum::<f64>() / off.len() as f64;
    assert!(mean > 0.0 && mean < 2.0, "colours are off by {mean} of 255 levels");
    let dense = asset("shapes-sd3").display().to_string();
    let [gpu, processor] = ["cuda", "cpu"].map(|device| {
        let said = printed(folder, &["compare", &dense, "out", "--quiet", "--json", "--device", device]);
        serde_json::from_str::<Value>(&said).unwrap()
    });
    near_but_not_equal([&gpu["relative_error"], &processor["relative_error"]], "a comparison");
    let timed =
        printed(folder, &["compare", &dense, "out", "--quiet", "--speed", "--json", "--device", "cuda"]);
    let timed: Value = serde_json::from_str(&timed).unwrap();
    assert_eq!(timed["relative_error"], gpu["relative_error"]);
    assert!(timed["speed"]["pruned"]["seconds"].as_f64().unwrap() > 0.0, "{timed}");
}

/// A GPU with room for forward calls on latents of 64 x 64, which decoding them takes more than: there 4096 pixels attend to each other, where a
/// transformer has 1024 tokens.
const SMALL_GPU: [(&str, &str); 1] = [("FAKE_CUDA_MEMORY", "257949696")];

/// What the command ends with and says on standard error, on that GPU.
fn on_a_small_gpu(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let environment = [&SMALL_GPU[..], &[("LD_LIBRARY_PATH", libraries)]].concat();
    let ran = obsdiff(folder, arguments, &environment);
    (ran.status.code(), text(&ran.stderr))
}

#[test]
fn pictures_are_decoded_on_the_device_which_says_where_it_has_no_room_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let flux = asset("shapes-flux").display().to_string();
    let size = ["--height", "128", "--width", "128", "--steps", "1", "--max-sequence-length", "24"];
    let arguments = [&["sample", &flux, "--prompt", "a ring", "--device", "cuda"][..], &size].concat();
    let (code, said) = on_a_small_gpu(folder, &arguments);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(" to decode a picture: ") && said.contains("--device cpu"), "{said}");
}

#[test]
fn a_plan_tells_what_decoding_takes_of_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let planned = |sets: &[&str]| {
        let arguments =
            [&["plan", "--device-memory", "80GB", "--set", "output.path=out"][..], sets, &[&*job]];
        let json: Value =
            serde_json::from_str(&printed(folder.path(), &[&arguments.concat()[..], &["--json"]].concat()))
                .unwrap();
        (json["device_memory"].clone(), printed(folder.path(), &arguments.concat()))
    };
    let (memory, words) = planned(&[]);
    let small = memory["decoding_bytes"].as_u64().unwrap();
    assert!(words.contains("; afterwards, ") && words.contains(" to decode a picture)"), "{words}");
    let (larger, _) = planned(&["--set", "calibration.height=64", "--set", "calibration.width=64"]);
    assert!(larger["decoding_bytes"].as_u64().unwrap() > 3 * small, "{memory} {larger}");
    let (without, words) = planned(&["--set", "evaluation.count=0"]);
    assert!(without["decoding_bytes"].is_null() && !words.contains("afterwards"), "{without} {words}");
}

#[test]
fn a_gpu_that_is_not_there_makes_no_picture() {
    let folder = tempfile::tempdir().unwrap();
    let dense = asset("shapes-sd3").display().to_string();
    for words in [&["sample", &dense][..], &["compare", &dense, &dense]] {
        let arguments = [words, &["--prompt", "a ring", "--device", "cuda:1"]].concat();
        let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
        let ran = obsdiff(folder.path(), &arguments, &[("LD_LIBRARY_PATH", libraries)]);
        assert_eq!(ran.status.code(), Some(2));
        let said = text(&ran.stderr);
        assert!(said.contains("--device: cannot be cuda:1: there is no GPU 1: the driver sees 1"), "{said}");
    }
}

//! A run takes the memory that the plan predicts, and little more than the model, the open Grams and one forward call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

use obsdiff_proto::ByteSize;

mod wide;

use wide::{ASSETS, random_pipeline};

/// How much more than a run takes may be predicted.
const MARGIN: f64 = 1.2;

/// What everything but model, Grams and activations may take.
const ALLOWANCE: f64 = (200 << 20) as f64;

fn obsdiff(folder: &Path, command: &str, sets: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args([command, "job.toml"])
        // What a plan says first is the memory of one worker.
        .args(["--workers", "1"].iter().filter(|_| command == "run"))
        .args(sets.iter().flat_map(|set| ["--set", set]))
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The bytes of the last `NUMBER UNIT` before `what` in a text.
fn bytes_of(text: &str, what: &str) -> f64 {
    let before = &text[..text.find(what).unwrap_or_else(|| panic!("no \"{what}\" in {text}"))];
    let words: Vec<&str> = before.split([' ', '(', '\n']).filter(|word| !word.is_empty()).collect();
    words[words.len() - 2..].concat().parse::<ByteSize>().unwrap().0 as f64
}

/// A job on the pipeline `model` in `folder`.
fn job(folder: &Path, model: &Path, counts: [u32; 3]) {
    let [prompts, steps, held_out] = counts;
    let job = format!(
        "[model]\npath = {model:?}\n[sparsity]\npattern = \"unstructured\"\n\
         [calibration]\nprompts = {:?}\ncount = {prompts}\nsteps = {steps}\nguidance = 4.0\nmax_sequence_length = 24\n\
         [evaluation]\ncount = {held_out}\n[output]\npath = \"out\"\n",
        Path::new(ASSETS).join("shapes-prompts.txt"),
    );
    fs::write(folder.join("job.toml"), job).unwrap();
}

/// The bytes that a run takes, no more than are predicted, and these.
fn taken(folder: &Path, name: &str, sets: &[&str]) -> [f64; 2] {
    let run = obsdiff(folder, "run", sets);
    println!("{name}: {}", run.lines().find(|line| line.starts_with("memory ")).unwrap());
    let peak = bytes_of(&run[run.find("memory    peak").unwrap()..], " (");
    let predicted = bytes_of(&run, " predicted");
    assert!(peak <= predicted, "{name}: {peak} bytes, more than predicted, {predicted}");
    assert!(predicted <= MARGIN * peak, "{name}: {peak} bytes, much less than predicted, {predicted}");
    [peak, predicted]
}

#[test]
fn a_run_takes_the_memory_that_the_plan_predicts() {
    let (obs, uniform) = ("sparsity.method=obs", "sparsity.allocation=uniform");
    // Alternating directions take the cube of a width in time, and a survey takes them several times: on a narrower model they take
    // seconds, too, and still more memory than all that surrounds them.
    let kinds: [(&str, &[&str], u32); 4] = [
        ("a package", &[obs, uniform], 12),
        ("4 packages", &[obs, uniform, "packages.count=4"], 12),
        ("alternating directions", &[uniform], 8),
        ("global ratios", &[], 8),
    ];
    for (name, sets, heads) in kinds {
        let folder = tempfile::tempdir().unwrap();
        random_pipeline(&folder.path().join("wide"), &[("num_layers", 2.into())], heads);
        job(folder.path(), Path::new("wide"), [4, 2, 2]);
        let sets = [&["sparsity.ratio=0.5"], sets].concat();
        let plan = obsdiff(folder.path(), "plan", &sets);
        let [peak, _] = taken(folder.path(), name, &sets);
        // Alternating directions keep three squares of the widest site besides.
        if sets.contains(&obs) {
            let needed = bytes_of(&plan, " transformer,") + bytes_of(&plan, " Grams of the largest");
            assert!(peak <= needed + ALLOWANCE, "{peak} bytes, where {needed} are model and Grams");
        }
    }
}

/// Kinds of jobs whose peaks were beyond what was predicted for them.
#[test]
fn the_predicted_peak_is_a_bound_for_every_kind_of_job() {
    let shipped = Path::new(ASSETS).join("shapes-sd3");
    let in_a_folder = |model: &Path, name: &str, sets: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        job(folder.path(), model, [8, 4, 2]);
        taken(folder.path(), name, sets);
        folder
    };
    let (half, uniform) = ("sparsity.ratio=0.5", "sparsity.allocation=uniform");
    let obs = "sparsity.method=obs";
    in_a_folder(&shipped, "four packages", &[half, uniform, obs, "packages.count=4"]);
    in_a_folder(&shipped, "global ratios", &[half]);
    in_a_folder(&shipped, "global ratios by OBS, in four packages", &[half, obs, "packages.count=4"]);
    in_a_folder(&shipped, "alternating directions", &[half, uniform]);
    in_a_folder(&shipped, "the same, thorough", &[half, uniform, "sparsity.effort=thorough"]);
    in_a_folder(&shipped, "2:4 with dense linears", &["sparsity.pattern=2:4", "sparsity.dense=0.2"]);
    let structured = "sparsity.pattern=structured";
    in_a_folder(&shipped, "a budget", &[structured, "sparsity.budget=0.25", "packages.count=4"]);
    let shrunk = in_a_folder(&shipped, "structured", &[structured, "sparsity.ratio=0.3"]);
    let shrunk = shrunk.path().join("out");
    in_a_folder(&shrunk, "a shrunk pipeline", &[half]);
    in_a_folder(&shrunk, "a shrunk pipeline, structured", &[structured, "sparsity.ratio=0.3"]);
    let dual = tempfile::tempdir().unwrap();
    let dual = dual.path().join("dual");
    let keys = [("num_layers", 4.into()), ("dual_attention_layers", vec![0, 1, 2].into())];
    random_pipeline(&dual, &keys, 4);
    in_a_folder(&dual, "dual attention, structured", &[structured, "sparsity.ratio=0.3"]);
    in_a_folder(&dual, "dual attention, alternating directions", &[half, uniform]);
    in_a_folder(&dual, "dual attention, bf16", &[half, "model.dtype=bf16"]);
    let magnitude = [half, "sparsity.method=magnitude", "sparsity.refine=0"];
    in_a_folder(&dual, "dual attention by magnitude", &magnitude);
}

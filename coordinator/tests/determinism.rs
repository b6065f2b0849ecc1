//! A job gives the same bytes whenever it is run, on any number of threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/assets");

/// Runs the same small job in `folder`, into `out`.
fn run(folder: &Path, pattern: &str, threads: &str) {
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\npattern = \"{pattern}\"\nratio = 0.5\n\
         [calibration]\nprompts = {:?}\ncount = 4\nsteps = 4\nguidance = 4.0\nmax_sequence_length = 24\nshard_size = 2\n\
         [packages]\ncount = 2\n[evaluation]\ncount = 2\n[output]\npath = \"out\"\n",
        Path::new(ASSETS).join("shapes-sd3"),
        Path::new(ASSETS).join("shapes-prompts.txt"),
    );
    fs::write(folder.join("job.toml"), job).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(["run", "job.toml", "--quiet", "--threads", threads])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What the job wrote of its own, and what it said of the held-out prompts.
fn result(pattern: &str, threads: &str) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), pattern, threads);
    let files = ["transformer/diffusion_pytorch_model.safetensors", "pruning.json"];
    files.map(|file| fs::read(folder.path().join("out").join(file)).unwrap())
}

fn the_same_on_any_number_of_threads(pattern: &str) {
    let [weights, record] = result(pattern, "1");
    let dense = Path::new(ASSETS).join("shapes-sd3/transformer/diffusion_pytorch_model.safetensors");
    assert!(weights != fs::read(dense).unwrap(), "nothing was pruned");
    for threads in ["1", "2", "3"] {
        let [other, other_record] = result(pattern, threads);
        assert!(weights == other, "weights differ on {threads} threads");
        assert_eq!(
            String::from_utf8(record.clone()).unwrap(),
            String::from_utf8(other_record).unwrap(),
            "on {threads} threads"
        );
    }
}

#[test]
fn half_of_the_weights_unstructured() {
    the_same_on_any_number_of_threads("unstructured");
}

#[test]
fn two_of_four() {
    the_same_on_any_number_of_threads("2:4");
}

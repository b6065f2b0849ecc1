//! A job gives the same bytes whenever it is run, on any number of threads and by any number of workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/assets");

/// Runs the same small job in `folder`, into `out`.
fn run(folder: &Path, pattern: &str, args: &[&str]) {
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\npattern = \"{pattern}\"\nratio = 0.5\n\
         [calibration]\nprompts = {:?}\ncount = 4\nsteps = 4\nguidance = 4.0\nmax_sequence_length = 24\nshard_size = 2\n\
         [packages]\ncount = 2\n[evaluation]\ncount = 2\n[output]\npath = \"out\"\n",
        Path::new(ASSETS).join("shapes-sd3"),
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

/// What the job wrote of its own, and what it said of the held-out prompts.
fn result(pattern: &str, args: &[&str]) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), pattern, args);
    let files = ["transformer/diffusion_pytorch_model.safetensors", "pruning.json"];
    files.map(|file| fs::read(folder.path().join("out").join(file)).unwrap())
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

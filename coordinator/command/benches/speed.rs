//! A forward call of a pipeline that lost 30% of its heads and neurons: its time beside its arithmetic, as `compare --speed` prints them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "../tests/wide/mod.rs"]
mod wide;

use wide::{ASSETS, random_pipeline};

fn obsdiff(folder: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff")).args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// SD3-medium's widths, 1024 image tokens.
fn main() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let keys = [("num_layers", 2.into()), ("pos_embed_max_size", 32.into())];
    random_pipeline(&folder.join("dense"), &keys, 24);
    let job = format!(
        "[model]\npath = \"dense\"\n[sparsity]\nmethod = \"l1\"\npattern = \"structured\"\nratio = 0.3\n\
         [[sparsity.rules]]\nmatch = \"*\"\nratio = 0.3\n\
         [calibration]\nprompts = {:?}\ncount = 4\nsteps = 3\nmax_sequence_length = 24\n\
         [evaluation]\ncount = 0\n[output]\npath = \"small\"\n",
        Path::new(ASSETS).join("shapes-prompts.txt"),
    );
    fs::write(folder.join("job.toml"), job).unwrap();
    obsdiff(folder, &["run", "job.toml", "--quiet"]);
    let prompt =
        ["--prompt", "a red circle", "--max-sequence-length", "24", "--steps", "1", "--guidance", "1"];
    let size = ["--height", "128", "--width", "128"];
    let printed =
        obsdiff(folder, &[&["compare", "dense", "small", "--speed", "--quiet"], &prompt[..], &size].concat());
    printed.lines().rev().take(2).collect::<Vec<_>>().into_iter().rev().for_each(|line| println!("{line}"));
    println!("(at least 0.8 of it)");
}

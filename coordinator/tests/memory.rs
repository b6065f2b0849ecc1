//! A run takes the memory that the plan predicts, and little more than the model, the open Grams and one forward call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

use obsdiff_proto::ByteSize;

mod wide;

use wide::{ASSETS, wide_pipeline};

/// What everything but model, Grams and activations may take.
const ALLOWANCE: f64 = (200 << 20) as f64;

fn obsdiff(folder: &Path, command: &str, packages: u32) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args([command, "job.toml", "--set", &format!("packages.count={packages}")])
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

#[test]
fn a_run_takes_the_memory_that_the_plan_predicts() {
    for packages in [1, 4] {
        let folder = tempfile::tempdir().unwrap();
        wide_pipeline(&folder.path().join("wide"));
        let job = format!(
            "[model]\npath = \"wide\"\n[sparsity]\npattern = \"unstructured\"\nratio = 0.5\n\
             [calibration]\nprompts = {:?}\ncount = 4\nsteps = 2\nguidance = 4.0\nmax_sequence_length = 24\n\
             [evaluation]\ncount = 2\n[output]\npath = \"out\"\n",
            Path::new(ASSETS).join("shapes-prompts.txt"),
        );
        fs::write(folder.path().join("job.toml"), job).unwrap();
        let plan = obsdiff(folder.path(), "plan", packages);
        let run = obsdiff(folder.path(), "run", packages);
        println!("{}", run.lines().find(|line| line.contains("peak memory")).unwrap());
        let peak = bytes_of(&run[run.find("peak memory").unwrap()..], " (");
        let predicted = bytes_of(&run, " predicted");
        assert!((predicted / peak - 1.0).abs() < 0.15, "{peak} bytes, predicted {predicted}");
        let needed = bytes_of(&plan, " transformer,") + bytes_of(&plan, " Grams of the largest");
        assert!(peak <= needed + ALLOWANCE, "{peak} bytes, where {needed} are model and Grams");
    }
}

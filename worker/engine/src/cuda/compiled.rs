//! The record that `tests/cuda` left fits the sources and the PTX.

use std::path::Path;
use std::process::Command;

use crate::export::output_of;

/// A digest as a shell prints it, at the root of the repository.
fn digest(command: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = output_of(Command::new("bash").args(["-c", command]).current_dir(root)).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn the_ptx_was_made_of_these_sources() {
    let record = include_str!("compiled.txt");
    let recorded =
        |name: &str| record.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let folder = "worker/engine/src/cuda";
    let sources = digest(&format!("export LC_ALL=C; sha256sum {folder}/kernels/* tests/cuda | sha256sum"));
    assert_eq!(recorded("files "), sources, "run tests/cuda, and commit what it writes");
    assert_eq!(recorded("ptx "), digest(&format!("export LC_ALL=C; cat {folder}/ptx/*.ptx | sha256sum")));
}

//! The image and the pods of the chart run the shipped job: see `tests/containers`.
#![cfg(all(feature = "gloo", feature = "cuda"))]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use obsdiff_tests::not_tested;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/containers");
/// How the script ends where it cannot have containers.
const NO_CONTAINERS: i32 = 77;

#[test]
fn containers_and_the_charts_pods_give_the_bytes_of_one_process() {
    let output = Command::new(SCRIPT).arg(env!("CARGO_BIN_EXE_obsdiff")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NO_CONTAINERS) {
        not_tested(said.lines().last().unwrap_or("tests/containers says nothing"));
        return;
    }
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.matches("the bytes of one process").count(), 2, "{printed}");
}

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The scripts that the image is built by.
fn scripts() -> Vec<String> {
    let dockerfile = fs::read_to_string(Path::new(SOURCES).join("deploy/Dockerfile")).unwrap();
    let dockerfile = dockerfile.replace("\\\n", " ");
    dockerfile.lines().filter_map(|line| line.strip_prefix("RUN ")).map(str::to_owned).collect()
}

/// The words between two others of the only script that has the first one.
fn words(after: &str, until: char) -> Vec<String> {
    let scripts = scripts();
    let mut found = scripts.iter().filter_map(|script| script.split_once(after));
    let (_, rest) = found.next().unwrap();
    assert!(found.next().is_none(), "{after} is there twice");
    rest.split(until).next().unwrap().split_whitespace().map(str::to_owned).collect()
}

/// What the tests do not run of the Dockerfile, since it takes long: `tests/containers --compile` does.
#[test]
fn the_image_is_compiled_by_commands_that_shells_and_cargo_take() {
    let scripts = scripts();
    assert_eq!(scripts.len(), 2);
    for script in &scripts {
        let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success(), "{script}");
    }
    let arguments = words("cargo build ", ';');
    let value = |name: &str| {
        let at = arguments.iter().position(|word| word == name).unwrap();
        arguments[at + 1].clone()
    };
    let cargo = |args: &[&str]| {
        let output = Command::new(env!("CARGO")).args(args).current_dir(SOURCES).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let tree = ["tree", "--offline", "--locked", "--workspace", "--depth", "0", "--features"];
    cargo(&[&tree[..], &[&value("--features")]].concat());
    let metadata = cargo(&["metadata", "--offline", "--locked", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let root = metadata["workspace_root"].as_str().unwrap();
    let targets =
        metadata["packages"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap());
    let targets: Vec<_> = targets.collect();
    let is_bin =
        |target: &&&serde_json::Value| target["kind"][0] == "bin" && target["name"] == value("--bin");
    assert_eq!(targets.iter().filter(is_bin).count(), 1);
    // Nothing that is compiled is left out of what the build sees.
    let ignored = fs::read_to_string(Path::new(SOURCES).join("deploy/Dockerfile.dockerignore")).unwrap();
    for target in targets {
        let path = Path::new(target["src_path"].as_str().unwrap()).strip_prefix(root).unwrap();
        let left_out = ignored.lines().find(|line| !line.starts_with('#') && path.starts_with(line));
        assert_eq!(left_out, None, "{}", path.display());
    }
}

#[test]
fn debian_has_the_packages_that_the_image_is_compiled_with() {
    let known = |package: &str| {
        let output = Command::new("apt-cache").args(["show", "--no-all-versions", package]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !known("g++") {
        not_tested("apt-cache has no list of Debian's packages: apt-get update brings it");
        return;
    }
    let packages = words("--no-install-recommends ", ';');
    assert!(packages.len() > 2, "{packages:?}");
    let unknown: Vec<_> = packages.iter().filter(|package| !known(package)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

//! The image and the pods of the chart run the shipped job: see `tests/containers`.
#![cfg(all(feature = "gloo", feature = "cuda"))]
#![allow(clippy::unwrap_used)]

use std::process::Command;

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
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told.matches("the bytes of one process").count(), 2, "{told}");
}

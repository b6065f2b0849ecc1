//! tests/large compares the predictions of plan with a run: its judgement, without a run.
#![allow(clippy::unwrap_used)]

use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/large");

#[test]
fn predictions_that_are_off_fail_a_large_run() {
    let output = Command::new(SCRIPT).arg("--dry").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.ends_with("9 runs are judged right\n"), "{printed}");
}

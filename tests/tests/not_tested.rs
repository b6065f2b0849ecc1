//! A test that cannot run on a machine says so, whether its output is shown or not, and is counted.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use obsdiff_tests::{NOT_TESTED_LOG, not_tested};

/// Makes `skips` skip.
const SKIP: &str = "SKIP_IN_A_TEST_OF_SKIPPING";

#[test]
fn skips() {
    if std::env::var_os(SKIP).is_some() {
        not_tested("this test needs a printer");
    }
}

#[test]
fn a_test_that_is_skipped_says_why_and_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let run = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "skips"])
            .env(SKIP, "1")
            .env(NOT_TESTED_LOG, &log)
            .output()
            .unwrap()
    };
    for times in [1, 2] {
        let output = run();
        assert!(output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("NOT TESTED: tests/tests/not_tested.rs:"), "{said}");
        assert!(said.ends_with(": this test needs a printer\n"), "{said}");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), said.repeat(times));
    }
}

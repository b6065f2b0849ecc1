//! Which crates may know which: what `cargo tree` says of each, held to what the crates promise.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A crate of the workspace, and what it is built from.
struct CrateRules {
    name: &'static str,
    /// The other crates of the workspace that it is built from, directly or not; `obsdiff-` is left out.
    knows: &'static [&'static str],
    /// What it is never built from.
    never: &'static [&'static str],
}

const PROMISES: [CrateRules; 8] = [
    CrateRules { name: "proto", knows: &[], never: &["tokio", "tonic", "candle-core", "object_store"] },
    CrateRules { name: "files", knows: &[], never: &["tokio", "tonic", "candle-core", "object_store"] },
    CrateRules { name: "security", knows: &["files", "proto"], never: &["candle-core", "object_store"] },
    CrateRules { name: "store", knows: &["files", "proto"], never: &["tonic", "candle-core"] },
    CrateRules { name: "core", knows: &["proto"], never: &["tokio", "tonic", "candle-core", "object_store"] },
    CrateRules {
        name: "coordinator",
        knows: &["core", "files", "proto", "security", "store"],
        never: &["candle-core", "candle-nn", "faer", "safetensors", "tokenizers"],
    },
    CrateRules { name: "engine", knows: &["files", "proto"], never: &["tokio", "tonic", "object_store"] },
    CrateRules {
        name: "worker",
        knows: &["engine", "files", "proto", "security", "store"],
        never: &["clap"],
    },
];

/// The names of all crates that one of the workspace is built from, itself aside.
fn built_from(name: &str) -> BTreeSet<String> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // Of each by itself: what other crates of the workspace ask of a shared one is not its own.
    let args = ["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--package", name];
    let output = Command::new(env!("CARGO")).args(args).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names = tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
    names.filter(|other| other != name).collect()
}

#[test]
fn every_crate_knows_those_that_it_may_and_no_others() {
    for CrateRules { name, knows, never } in PROMISES {
        let built_from = built_from(&format!("obsdiff-{name}"));
        let known: Vec<&str> = built_from.iter().filter_map(|name| name.strip_prefix("obsdiff-")).collect();
        assert_eq!(known, knows, "obsdiff-{name} knows other crates than it may");
        assert!(!built_from.contains("obsdiff"), "obsdiff-{name} knows the command");
        let met: Vec<_> = never.iter().filter(|never| built_from.contains(**never)).collect();
        assert!(met.is_empty(), "obsdiff-{name} is built from {met:?}");
    }
}

#[test]
fn what_is_never_built_from_is_known_by_these_names() {
    let command = built_from("obsdiff");
    for never in PROMISES.iter().flat_map(|promise| promise.never) {
        assert!(
            command.contains(*never),
            "no crate is built from {never} any more: the promise says nothing"
        );
    }
}

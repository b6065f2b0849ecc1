//! The Helm chart and the other manifests for clusters: each object is valid, the command takes the arguments of each container, and the
//! job that the chart makes can be read.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use obsdiff::cli::{Cli, CliCommand};
use obsdiff::job::JobFile;
use obsdiff_tests::not_tested;

/// How tests/chart ends where it cannot install what it needs.
const NO_PACKAGES: i32 = 77;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn parsed(words: &[String], place: &Path) -> CliCommand {
    let words = std::iter::once("obsdiff").chain(words.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).map_err(|error| format!("{}: {error}", place.display()));
    cli.unwrap().command
}

#[test]
fn each_object_of_the_chart_is_valid_and_the_command_takes_what_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let script = root().join("tests/chart");
    let output = Command::new(script).arg("--rendered").arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NO_PACKAGES) {
        not_tested(format!("tests/chart cannot install its packages: {}", said.lines().last().unwrap_or("")));
        return;
    }
    assert!(output.status.success(), "{said}");
    let (mut coordinators, mut workers, mut jobs) = (0, 0, 0);
    for case in std::fs::read_dir(folder.path()).unwrap() {
        let case = case.unwrap().path();
        let arguments = std::fs::read_to_string(case.join("arguments.json")).unwrap();
        let arguments: Vec<Vec<String>> = serde_json::from_str(&arguments).unwrap();
        for words in arguments {
            match parsed(&words, &case) {
                CliCommand::Coordinator(args) => {
                    coordinators += 1;
                    let job = case.join("job.toml");
                    if job.exists() {
                        jobs += 1;
                        JobFile::load(&job, [], &args.job.sets).unwrap();
                    }
                }
                CliCommand::Worker(_) => workers += 1,
                CliCommand::Status(_) => {}
                other => panic!("{}: {other:?}", case.display()),
            }
        }
    }
    assert!(coordinators > 5 && workers >= coordinators && jobs > 3, "{coordinators} {workers} {jobs}");
}

/// A file of deploy/, with lines that go on made one.
fn deployed(file: &str) -> String {
    std::fs::read_to_string(root().join("deploy").join(file)).unwrap().replace("\\\n", " ")
}

#[test]
fn the_command_takes_what_batch_scripts_give_it() {
    let mut commands = 0;
    for file in ["slurm/obsdiff.sbatch", "skypilot/obsdiff.yaml"] {
        for line in deployed(file).lines().map(str::trim) {
            let starts = ["obsdiff coordinator ", "obsdiff worker "];
            if let Some(at) = starts.iter().find_map(|start| line.find(start))
                && !line.starts_with('#')
            {
                // A variable stands for one word, or at the end for none.
                let words = line[at..].trim_end_matches('&').replace("\"$@\"", "");
                let word = |word: &str| match word.split_once('$') {
                    Some((before, after)) => {
                        let name = |c: char| c.is_alphanumeric() || c == '_';
                        format!("{before}1{}", after.trim_start_matches(name)).replace('"', "")
                    }
                    None => word.replace('"', ""),
                };
                let words: Vec<String> = words.split_whitespace().skip(1).map(word).collect();
                parsed(&words, Path::new(file));
                commands += 1;
            }
        }
    }
    assert_eq!(commands, 4);
}

#[test]
fn the_messages_of_the_troubleshooting_page_stand_in_the_sources() {
    let mut sources = String::new();
    for folder in ["proto", "coordinator", "worker"] {
        collect(&root().join(folder), &mut sources);
    }
    let page = deployed("README.md");
    let (_, page) = page.split_once("\n## Troubleshooting\n").unwrap();
    let (page, _) = page.split_once("\n## ").unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut messages = 0;
    for (message, _) in rows {
        messages += 1;
        for piece in message.split("...").map(str::trim).filter(|piece| piece.len() > 3) {
            assert!(sources.contains(piece), "no source says \"{piece}\"");
        }
    }
    assert!(messages > 10, "{messages}");
}

/// The text of all Rust sources in and below a folder, with strings that go on made one line. Tests print nothing that a user sees.
fn collect(folder: &Path, sources: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["tests", "benches", "target"].contains(&&*stem) {
                collect(&path, sources);
            }
        } else if path.extension().is_some_and(|end| end == "rs") && !stem.ends_with("tests") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let mut parts = text.split("\\\n");
            sources.push_str(parts.next().unwrap_or_default());
            parts.for_each(|part| sources.push_str(part.trim_start()));
        }
    }
}

//! The blocks of code of the pages: a test runs each command, or a list says why none can.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use obsdiff::cli::Cli;
use obsdiff_tests::copy_folder;

use crate::{FIRST, PAGES, ROOT, page, words};

/// What other tests run: how a command or block begins, the file of the test, and words in it.
const RUN_ELSEWHERE: [(&str, &str, &str); 11] = [
    (
        "obsdiff coordinator ",
        "coordinator/command/tests/cluster.rs",
        "fn a_coordinator_ends_with_what_a_run_ends_with",
    ),
    ("obsdiff worker ", "coordinator/command/tests/cluster.rs", "fn two_workers_do_what_one_process_does"),
    (
        "obsdiff status ",
        "coordinator/command/tests/exits/signals.rs",
        "&[\"status\", &coordinator.url, \"--watch\"]",
    ),
    ("obsdiff cache --remove ", "coordinator/command/tests/faults/cache.rs", "cache(&[\"--remove\", URL])"),
    ("deploy/wheel/build", "coordinator/command/tests/command/wheel.rs", "Command::new(BUILD)"),
    ("pip install target/wheels/", "coordinator/command/tests/command/wheel.rs", "\"install\""),
    ("helm install smoke ", "tests/python/chart/__main__.py", "def check_command(command)"),
    (
        "cargo run --release -p obsdiff-tests --example device_times ",
        "tests/tests/device_times.rs",
        "examples/device_times/measured/mod.rs",
    ),
    ("import json, sys", "tests/tests/python.rs", "## Encoded prompts"),
    ("import sys\nimport torch\nfrom diffusers", "tests/tests/python.rs", "## Heads and neurons"),
    ("import obsdiff", "tests/tests/python.rs", "a module that loads a pruned pipeline"),
];

/// What no test runs, and why.
const NOT_RUN: [(&str, &str); 6] = [
    ("docker build ", "needs Docker: tests/containers builds the image of this file by buildah"),
    ("docker push ", "needs a registry"),
    ("helm test ", "needs a cluster: tests/chart checks the pod that it starts"),
    ("kubectl ", "needs a cluster"),
    (
        "python tests/python/published.py ",
        "needs PyTorch and minutes: tests/gpu runs it on a machine with a GPU",
    ),
    ("tests/run", "runs all tests"),
];

/// What is between fences of a page: the language, and the text.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = page.split("```").collect();
    assert!(parts.len() % 2 == 1, "a fence is not closed");
    parts.into_iter().skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect()
}

/// The lines of a page that a shell would run.
fn shell_lines(page: &str) -> Vec<&str> {
    let of_a_shell = blocks(page).into_iter().filter(|(language, _)| *language == "sh");
    of_a_shell.flat_map(|(_, text)| text.lines()).map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// What obsdiff is given by a line that runs it.
fn arguments(line: &str) -> Option<Vec<String>> {
    line.strip_prefix("obsdiff ").or_else(|| line.strip_prefix(FIRST)).map(words)
}

/// The beginnings in both lists with which a command or block begins.
fn listed(command: &str) -> Vec<&'static str> {
    let beginnings = RUN_ELSEWHERE.map(|(beginning, ..)| beginning).into_iter();
    let beginnings = beginnings.chain(NOT_RUN.map(|(beginning, _)| beginning));
    beginnings.filter(|beginning| command.starts_with(beginning)).collect()
}

#[test]
fn every_command_is_run_by_a_test_or_a_list_says_why_not() {
    let mut used = BTreeSet::new();
    for name in PAGES {
        let page = page(name);
        let python =
            blocks(&page).into_iter().filter(|(language, _)| *language == "py").map(|(_, text)| text);
        for command in shell_lines(&page).into_iter().chain(python) {
            let beginnings = listed(command);
            // The next test runs these.
            let here = usize::from(beginnings.is_empty() && arguments(command).is_some());
            assert_eq!(
                beginnings.len() + here,
                1,
                "{name}: no test runs this, and no list says why: {command}"
            );
            used.extend(beginnings);
        }
        for (language, text) in blocks(&page) {
            assert!(["", "sh", "py", "toml", "yaml"].contains(&language), "{name}: {language}: {text}");
        }
    }
    for (beginning, file, words) in RUN_ELSEWHERE {
        assert!(used.contains(beginning), "no page shows {beginning}");
        let test = fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
        assert!(test.contains(words), "{beginning}: {file} does not say {words}");
    }
    for (beginning, reason) in NOT_RUN {
        assert!(used.contains(beginning) && !reason.is_empty(), "no page shows {beginning}");
    }
}

/// A job of `obsdiff init`, cut to what a test has time for.
fn shorten(folder: &Path) {
    let file = folder.join("job.toml");
    let mut job = fs::read_to_string(&file).unwrap();
    for (long, short) in [
        ("steps = 25 ", "steps = 2 "),
        ("count = 8 ", "count = 2 "),
        // A survey would take most of the time.
        ("[calibration]", "allocation = \"uniform\"\n\n[calibration]\nmax_sequence_length = 24"),
    ] {
        assert!(job.contains(long), "the job does not say {long}: {job}");
        job = job.replace(long, short);
    }
    fs::write(file, job).unwrap();
}

/// A folder with what the pages name: a pipeline, a transformer's configuration, and the sources.
fn setting() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let assets = Path::new(ROOT).join("tests/assets").canonicalize().unwrap();
    copy_folder(&assets.join("shapes-sd3"), &place("pipeline"));
    fs::copy(assets.join("published/sd3-medium/config.json"), place("config.json")).unwrap();
    for name in ["tests", "deploy"] {
        symlink(Path::new(ROOT).canonicalize().unwrap().join(name), place(name)).unwrap();
    }
    ran(folder.path(), "obsdiff init pipeline");
    folder
}

/// Runs a line, which must succeed. A page shows several ways to run a job: what an earlier one wrote is moved out of the way.
fn ran(folder: &Path, line: &str) {
    let arguments = arguments(line).unwrap();
    let wrote: &[&str] = match arguments[0].as_str() {
        "init" => &["job.toml", "prompts.txt"],
        "run" => &["pipeline-pruned", "grams"],
        _ => &[],
    };
    for name in wrote.iter().map(|name| folder.join(name)).filter(|name| name.exists()) {
        let _ = if name.is_dir() { fs::remove_dir_all(name) } else { fs::remove_file(name) };
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    command.args(&arguments).current_dir(folder).env("OBSDIFF_CACHE", folder.join("cache"));
    if line.starts_with(FIRST) && arguments[0] == "run" {
        // The shipped job, as short.
        command.env("OBSDIFF_CALIBRATION__COUNT", "4").env("OBSDIFF_CALIBRATION__STEPS", "2");
        command.env("OBSDIFF_EVALUATION__COUNT", "2").env("OBSDIFF_SPARSITY__ALLOCATION", "uniform");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    if arguments[0] == "init" {
        shorten(folder);
    }
}

#[test]
fn the_commands_of_each_page_run_one_after_another() {
    let mut commands = 0;
    for name in PAGES {
        let page = page(name);
        let lines: Vec<&str> = shell_lines(&page)
            .into_iter()
            .filter(|line| listed(line).is_empty() && arguments(line).is_some())
            .collect();
        if !lines.is_empty() {
            let folder = setting();
            lines.iter().for_each(|line| ran(folder.path(), line));
            commands += lines.len();
        }
    }
    assert!(commands > 25, "{commands}");
}

#[test]
fn every_command_can_be_read() {
    for name in PAGES {
        let page = page(name);
        for line in shell_lines(&page) {
            let Some(words) = arguments(line) else { continue };
            if let Err(error) = Cli::try_parse_from([&["obsdiff".to_owned()], &words[..]].concat()) {
                assert!(!error.use_stderr(), "{name}: {line}: {error}");
            }
        }
    }
}

#[test]
fn the_readme_shows_the_shipped_job() {
    let readme = page("README.md");
    let shown: Vec<&str> = blocks(&readme)
        .into_iter()
        .filter(|(language, _)| *language == "toml")
        .map(|(_, text)| text)
        .collect();
    let [shown] = shown[..] else { panic!("{} blocks of TOML", shown.len()) };
    let shipped = fs::read_to_string(Path::new(ROOT).join("deploy/jobs/shapes-sd3.toml")).unwrap();
    let without_comments: Vec<&str> =
        shipped.lines().map(|line| line.split('#').next().unwrap().trim_end()).collect();
    assert_eq!(shown.trim(), without_comments.join("\n").trim());
}

#[test]
fn prometheus_takes_the_configuration_that_a_page_shows() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef").unwrap();
    let mut checked = 0;
    for name in PAGES {
        for (_, text) in blocks(&page(name)).into_iter().filter(|(language, _)| *language == "yaml") {
            let config = folder.path().join("prometheus.yml");
            fs::write(&config, text.replace("/etc/prometheus/obsdiff-token", &token.to_string_lossy()))
                .unwrap();
            let output = Command::new("promtool")
                .args(["check", "config"])
                .arg(&config)
                .output()
                .expect("promtool is not there: tests/run installs it");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            checked += 1;
        }
    }
    assert_eq!(checked, 1);
}

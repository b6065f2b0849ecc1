//! What a run shows on a terminal, by `script`, which gives it one, and by a terminal's emulator.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};

use crate::{asset, job, obsdiff, printed, text};

/// Rows of the terminal: all that is printed fits it.
const ROWS: u16 = 120;
/// Settings of a job that takes a few seconds.
const SHORT: &str = "--set calibration.count=2 --set calibration.steps=2 --set evaluation.count=1";

/// What lines and bars of that run begin with.
const STARTS: [&str; 7] =
    ["encode", "sample the source", "pilot", "package 1/2: ", "package 2/2: ", "note: ", "sample the output"];

/// What a run writes to a terminal of so many columns.
fn written(columns: u16, folder: &Path, flags: &str, environment: &[(&str, &str)]) -> String {
    let (command, job) = (env!("CARGO_BIN_EXE_obsdiff"), job(folder));
    let line =
        format!("stty cols {columns} rows {ROWS}; exec {command} run {} {SHORT} {flags}", job.display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    let ran = script
        .current_dir(asset("."))
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .env_remove("OBSDIFF_LOG")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stdout));
    text(&ran.stdout)
}

#[test]
fn finished_stages_stay_as_lines_and_nothing_is_wider_than_the_terminal() {
    for columns in [80, 100] {
        let folder = tempfile::tempdir().unwrap();
        let written = written(columns, folder.path(), "", &[]);
        let mut terminal = vt100::Parser::new(ROWS, columns, 0);
        let mut bars = 0;
        // Each drawing begins by clearing a line.
        let (shown, _) = written.split_once("Pruned 50").unwrap();
        for drawn in shown.split("\x1b[2K") {
            terminal.process(format!("\x1b[2K{drawn}").as_bytes());
            let screen = terminal.screen();
            let rows: Vec<String> = screen.rows(0, columns).collect();
            // A row that goes on from the one before, because that was too wide, would begin in another way.
            let begun = |row: &String| row.is_empty() || STARTS.iter().any(|start| row.starts_with(start));
            assert!(rows.iter().all(begun), "a line is wider than {columns} columns: {rows:#?}");
            let live = rows.iter().filter(|row| row.contains("=>")).count();
            assert!(live <= 1, "{live} bars: {rows:#?}");
            bars += live;
        }
        assert!(bars > 3, "{bars} drawings had a bar: {written}");
        terminal.process(&written.as_bytes()[shown.len()..]);
        let lines: Vec<String> = terminal.screen().rows(0, columns).filter(|row| !row.is_empty()).collect();
        let found = |start: &str| lines.iter().position(|line| line.starts_with(start));
        let order = [
            "encode: ",
            "sample the source: ",
            "package 1/",
            "package 2/2: solve: ",
            "sample the output: ",
            "Pruned 50",
        ];
        let places = order.map(|start| found(start).unwrap_or_else(|| panic!("no line {start}: {lines:#?}")));
        assert!(places.is_sorted(), "{lines:#?}");
        // Nothing of the live area is left.
        assert!(!lines.iter().any(|line| line.contains(" left") || line.contains("==")), "{lines:#?}");
    }
}

#[test]
fn verbose_tells_more_in_colours_that_a_variable_turns_off() {
    let folder = tempfile::tempdir().unwrap();
    let of = |flags, environment: &[(&str, &str)]| {
        let out = folder.path().join(format!("{flags}{}", environment.len()));
        std::fs::create_dir(&out).unwrap();
        written(100, &out, flags, environment)
    };
    let [plain, verbose, detailed] = ["", "-v", "-vv"].map(|flags| of(flags, &[]));
    assert!(!plain.contains("INFO") && !plain.contains("DEBUG"), "{plain}");
    assert!(verbose.contains("INFO") && !verbose.contains("DEBUG"), "{verbose}");
    assert!(detailed.contains("INFO") && detailed.contains("DEBUG"), "{detailed}");
    // Green.
    assert!(verbose.contains("\x1b[32m"), "{verbose}");
    let [plain, verbose] = ["", "-v"].map(|flags| of(flags, &[("NO_COLOR", "1")]));
    for text in [plain, verbose] {
        assert!(!text.contains("\x1b[3") && !text.contains("\x1b[1m"), "{text}");
    }
}

#[test]
fn what_a_file_holds_cannot_change_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let key = r#"{"_class_name": "FluxTransformer2DModel", "k\u001b[2J\u202e": 1}"#;
    std::fs::write(folder.path().join("config.json"), key).unwrap();
    let output = obsdiff(folder.path(), &["plan", "config.json"], &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("key `k\\u{1b}[2J\\u{202e}` = 1 is not known"), "{said}");

    let name = "block.\u{1b}[31mred\u{9b}\u{202e}";
    let weights = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
    let tensors = HashMap::from([(format!("{name}.weight"), weights)]);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let table = printed(folder.path(), &["inspect", "model.safetensors"]);
    let row = table.lines().find(|line| line.contains("red")).unwrap();
    assert!(row.starts_with("  \\u{1b}[31mred\\u{9b}\\u{202e}  2 x 4"), "{row}");
    // A program gets the name as it is.
    let json = printed(folder.path(), &["inspect", "model.safetensors", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["linears"][0]["name"], name);
}

#[test]
fn a_plan_fits_the_terminal_and_says_the_same_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let plain = printed(&asset("."), &["plan", job.to_str().unwrap(), "--memory", "64GiB"]);
    assert!(plain.lines().any(|line| line.chars().count() > 80), "{plain}");
    let command = env!("CARGO_BIN_EXE_obsdiff");
    let line = format!("stty cols 80 rows 60; exec {command} plan {} --memory 64GiB", job.display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).current_dir(asset("."));
    let shown = text(&script.output().unwrap().stdout);
    let path = job.display().to_string();
    for line in shown.lines().filter(|line| !line.contains(&path)) {
        assert!(line.trim_end().chars().count() <= 80, "{line}");
    }
    // Times are measured anew.
    let words = |text: &str| {
        let until = text.find("Other numbers of packages").unwrap_or(text.len());
        text[..until].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(words(&shown), words(&plain));
}

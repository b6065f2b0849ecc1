//! Rules for the text of all sources: only an architecture's own folder names it, and no file is long.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Of each architecture's folder, what its name looks like in code.
const NAMES: [&str; 3] = ["sd3", "flux", "stablediffusion3"];
/// The crates whose sources are read, and the folder in them that may name architectures.
const CRATES: [&str; 4] = ["proto", "coordinator", "worker", "tests/src"];
const OWN: &str = "worker/engine/src/architecture";
/// The file that says where tensors of candle's lie, candle's name for that, and a name of obsdiff's that ends like it.
const HOST: &str = "worker/engine/src/lib.rs";
const CANDLES_CPU: &str = "device::cpu";
const OWN_CPU: &str = "computedevice::cpu";
/// The folder whose comments are help texts, a program that these may name, and names that they may not use.
const HELP: &str = "coordinator/command/src/cli";
const OTHER_PROGRAM: &str = "stable-diffusion.cpp";
const HELP_NAMES: [&str; 4] = ["sd3", "flux", "stablediffusion", "stable-diffusion"];
/// Tests that `tests/gpu` runs on machines that have no sources, and what would name a path of the sources.
const PACKED: [&str; 4] = [
    "worker/engine/tests/device",
    "worker/engine/tests/golden",
    "worker/engine/src/model/ops/tests",
    "worker/src/collective/nccl",
];
const OF_SOURCES: &str = "CARGO_MANIFEST_DIR";
/// The most lines of a source file.
const MOST_LINES: usize = 400;
/// The folders with sources of any kind, and how the names of source files end.
const FOLDERS: [&str; 5] = ["proto", "coordinator", "worker", "tests", "deploy"];
const SOURCES: [&str; 9] = ["rs", "proto", "py", "cu", "cuh", "cc", "cpp", "h", "sh"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn no_source_file_is_long() {
    let mut files = Vec::new();
    for folder in FOLDERS {
        walk(&root().join(folder), &mut |path| {
            if path.extension().is_some_and(|end| SOURCES.iter().any(|source| end == *source)) {
                files.push(path.to_owned());
            }
        });
    }
    assert!(files.len() > 400, "only {} sources are found", files.len());
    let lines = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count();
    let counted = files.iter().map(|file| (lines(file), file));
    let long: Vec<_> = counted.filter(|(lines, _)| *lines > MOST_LINES).collect();
    assert!(long.is_empty(), "these files have more than {MOST_LINES} lines: split them: {long:#?}");
}

#[test]
fn no_code_outside_the_architectures_folder_names_one() {
    let root = root();
    let mut files = Vec::new();
    CRATES.iter().for_each(|name| collect(&root.join(name), &mut files));
    assert!(files.iter().filter(|file| file.starts_with(root.join(OWN))).count() > 10);
    let mut named = Vec::new();
    for file in files.iter().filter(|file| !file.starts_with(root.join(OWN))) {
        let code = code(&fs::read_to_string(file).unwrap());
        let lines = code.iter().filter(|(_, line)| NAMES.iter().any(|name| line.contains(name)));
        named.extend(lines.map(|(number, line)| format!("{}:{number}: {line}", file.display())));
    }
    assert!(named.is_empty(), "these lines name an architecture:\n{}", named.join("\n"));
}

/// Code that named another place would compute there by candle, past the operations that each device has.
#[test]
fn only_one_file_says_where_tensors_of_candles_lie() {
    let root = root();
    let mut files = Vec::new();
    CRATES.iter().for_each(|name| collect(&root.join(name), &mut files));
    let names = |file: &PathBuf| {
        let code = code(&fs::read_to_string(file).unwrap());
        code.iter().any(|(_, line)| line.replace(OWN_CPU, "").contains(CANDLES_CPU))
    };
    files.retain(names);
    assert_eq!(files, [root.join(HOST)], "take the engine's HOST");
}

#[test]
fn no_test_that_runs_elsewhere_names_a_path_of_the_sources() {
    let (mut read, mut named) = (0, Vec::new());
    for folder in PACKED {
        walk(&root().join(folder), &mut |path| {
            read += 1;
            if fs::read_to_string(path).unwrap().contains(OF_SOURCES) {
                named.push(path.to_owned());
            }
        });
    }
    assert!(read > 30, "only {read} files are read");
    assert!(named.is_empty(), "take obsdiff_tests::goldens or shipped in {named:#?}");
}

#[test]
fn help_texts_name_no_architecture() {
    let mut files = Vec::new();
    collect(&root().join(HELP), &mut files);
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap().to_lowercase().replace(OTHER_PROGRAM, "");
        let named = HELP_NAMES.iter().find(|name| text.contains(*name));
        assert_eq!(named, None, "{}: `obsdiff models` says what is supported", file.display());
    }
}

#[test]
fn comments_and_tests_are_no_code() {
    let source = "let a = SD3; // flux\n// sd3\nlet b = \"http://c\";\n#[cfg(test)]\nuse sd3::{\n    a,\n};\nfn c() {\n    \
                  #[cfg(test)]\n    sd3();\n    FLUX();\n}\n#[cfg(test)]\nmod tests {\n    sd3();\n}\n";
    let lines = [
        (1, "let a = sd3; "),
        (2, ""),
        (3, "let b = \"http://c\";"),
        (8, "fn c() {"),
        (11, "    flux();"),
        (12, "}"),
    ];
    assert_eq!(code(source), lines.map(|(number, line)| (number, line.to_owned())));
}

/// Rust sources in and below a folder, without tests and benches.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let is_code = |path: &Path| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        !stem.ends_with("tests") && stem != "testing"
    };
    let of_tests = |path: &Path| path.iter().any(|part| part == "tests" || part == "benches");
    walk(folder, &mut |path| {
        let inner = path.strip_prefix(folder).unwrap();
        if path.extension().is_some_and(|end| end == "rs") && is_code(path) && !of_tests(inner) {
            files.push(path.to_owned());
        }
    });
}

/// Gives every file in and below a folder to `found`, except build output.
fn walk(folder: &Path, found: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            found(&path);
        } else if !path.ends_with("target") && !path.ends_with("assets") {
            walk(&path, found);
        }
    }
}

/// The lines of a source that are not of its tests, numbered from 1, in lower case and without comments.
fn code(source: &str) -> Vec<(usize, String)> {
    let comment = |line: &str| {
        let starts = line.match_indices("//").map(|(at, _)| at);
        // What follows a colon is an address.
        starts.filter(|at| !line[..*at].ends_with(':')).min().unwrap_or(line.len())
    };
    let (mut lines, mut code) = ((1..).zip(source.lines()), Vec::new());
    while let Some((number, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            skip_item(&mut lines, line.len() - line.trim_start().len());
        } else {
            code.push((number, line[..comment(line)].to_lowercase()));
        }
    }
    code
}

/// Goes past the item that begins in the next line, in formatted code that is indented so far. What it opens is closed by a line that
/// is indented as far and holds nothing but brackets.
fn skip_item<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>, indent: usize) {
    let mut lines = lines.map(|(_, line)| line).skip_while(|line| line.trim().starts_with("#["));
    let opens = lines.next().is_some_and(|line| line.ends_with(['{', '(', '[']));
    let closes = |line: &str| {
        let (before, brackets) = line.split_at_checked(indent).unwrap_or((line, ""));
        before.trim().is_empty()
            && brackets.starts_with(['}', ')', ']'])
            && brackets.chars().all(|letter| "})];,".contains(letter))
    };
    if opens {
        let _ = lines.find(|line| closes(line));
    }
}

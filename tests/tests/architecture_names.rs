//! An architecture is known by name in its own folder alone.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Of each architecture's folder, what its name looks like in code.
const NAMES: [&str; 3] = ["sd3", "flux", "stablediffusion3"];
/// The crates whose sources are read, and the folder in them that may name architectures.
const CRATES: [&str; 4] = ["proto", "coordinator", "worker", "tests/src"];
const OWN: &str = "worker/engine/src/architecture";

#[test]
fn no_code_outside_the_architectures_folder_names_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
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

#[test]
fn comments_and_tests_are_no_code() {
    let source =
        "let a = SD3; // flux\n// sd3\nlet b = \"http://c\";\n#[cfg(test)]\nmod tests {\n    sd3();\n}\n";
    assert_eq!(
        code(source),
        [(1, "let a = sd3; ".to_owned()), (2, String::new()), (3, "let b = \"http://c\";".to_owned())]
    );
}

/// Sources in and below a folder; no tests, no benches.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() && !["tests", "benches", "target"].contains(&name) {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs")
            && !name.ends_with("tests")
            && name != "testing"
        {
            files.push(path);
        }
    }
}

/// The lines of a source before its tests, numbered from 1, in lower case and without comments.
fn code(source: &str) -> Vec<(usize, String)> {
    let lines = source.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    let comment = |line: &str| {
        let starts = line.match_indices("//").map(|(at, _)| at);
        // What follows a colon is an address.
        starts.filter(|at| !line[..*at].ends_with(':')).min().unwrap_or(line.len())
    };
    lines.zip(1..).map(|(line, number)| (number, line[..comment(line)].to_lowercase())).collect()
}

//! What the pages show to type works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod commands;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const FIRST: &str = "cargo run --release --bin obsdiff -- ";
/// All pages for people, from the root.
const PAGES: [&str; 5] = [
    "README.md",
    "deploy/jobs/README.md",
    "deploy/measurements.md",
    "deploy/README.md",
    "deploy/wheel/README.md",
];

/// A page, with lines that go on made one.
fn page(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap().replace("\\\n", " ")
}

/// The words of a command line as a shell splits them: quotes hold words together, and a comment ends the line.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => return words,
            (None, ' ') => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is not closed: {line}");
    words.extend(word);
    words
}

#[test]
fn words_are_those_of_a_shell() {
    assert_eq!(words("a 'b c'  d=\"e 'f\" ''  # g"), ["a", "b c", "d=e 'f", ""]);
}

/// The first command prunes the shipped pipeline: here with fewer prompts and steps, into a folder of the test.
#[test]
fn the_first_command_prunes_the_shipped_pipeline() {
    let readme = page("README.md");
    let line = readme.lines().find_map(|line| line.trim().strip_prefix(FIRST)).expect("no first command");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(words(line))
        .current_dir(ROOT)
        .env("OBSDIFF_CALIBRATION__COUNT", "4")
        .env("OBSDIFF_CALIBRATION__STEPS", "3")
        .env("OBSDIFF_EVALUATION__COUNT", "2")
        .env("OBSDIFF_OUTPUT__PATH", &out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("(L2, relative) on 2 held-out prompts"), "{printed}");
    assert!(printed.contains(&format!("written   {} (see report.html there)\n", out.display())), "{printed}");
    assert!(out.join("model_index.json").is_file() && out.join("pruning.json").is_file());
}

/// Where a link of a Markdown text leads: the file and the heading, either of which may be empty.
fn links(text: &str) -> Vec<(&str, &str)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let own = targets.filter(|target| !target.starts_with("https://"));
    own.map(|target| target.split_once('#').unwrap_or((target, ""))).collect()
}

/// The names by which GitHub links to the headings of a Markdown text.
fn headings(text: &str) -> BTreeSet<String> {
    let mut headings = BTreeSet::new();
    // Every other part is code.
    for line in text.split("```").step_by(2).flat_map(str::lines) {
        let name = line.trim_start_matches('#');
        if name.len() < line.len() && name.starts_with(' ') {
            let name = name.trim().to_lowercase().replace(' ', "-");
            headings.insert(name.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect());
        }
    }
    headings
}

#[test]
fn every_link_leads_somewhere() {
    for page in PAGES {
        let path = Path::new(ROOT).join(page);
        let text = fs::read_to_string(&path).unwrap();
        let links = links(&text);
        assert!(page != "README.md" || links.len() > 10, "{links:?}");
        for (file, heading) in links {
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{page}: there is no {file}");
            if !heading.is_empty() {
                let there = headings(&fs::read_to_string(&target).unwrap());
                assert!(there.contains(heading), "{page}: {file} has no heading {heading}, but {there:?}");
            }
        }
    }
}

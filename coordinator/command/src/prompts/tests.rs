mod dialects;

use std::fs;
use std::path::PathBuf;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A job of `count` calibration prompts of the file `name`, with further assignments.
    fn job(&self, name: &str, count: usize, sets: &[&str]) -> JobFile {
        let prompts = self.0.path().join(name);
        let job = self.file(
            "job.toml",
            format!(
                "[model]\npath = 'm'\n[sparsity]\npattern = '2:4'\n[calibration]\nprompts = '{}'\ncount = {count}\n[output]\npath = 'o'",
                prompts.display()
            ),
        );
        let sets: Vec<String> =
            sets.iter().map(|s| s.replace("DIR", &self.0.path().display().to_string())).collect();
        JobFile::load(&job, [], &sets).unwrap()
    }
}

fn read(path: &Path, column: Option<&str>) -> Result<Vec<String>> {
    read_prompts(path, column, None)
}

#[test]
fn each_format_gives_the_same_prompts() {
    let dir = Folder::new();
    let expected = ["a red circle, on white", "a blue \"square\"", "größer"];
    let files = [
        dir.file("p.txt", "\u{feff}a red circle, on white\r\n\n  a blue \"square\"  \n\ngrößer"),
        dir.file("p.csv", "\u{feff}id,caption\n1,\"a red circle, on white\"\n2,\"a blue \"\"square\"\"\"\n\n4,größer\n"),
        dir.file("p.tsv", "caption\tid\na red circle, on white\t1\na blue \"square\"\t2\ngrößer\t3\n"),
        dir.file(
            "p.JSONL",
            "{\"id\": 1, \"caption\": \"a red circle, on white\"}\n\n{\"caption\": \"a blue \\\"square\\\"\"}\n{\"caption\": \"größer\"}",
        ),
    ];
    for file in files {
        let column = (file.extension().unwrap() != "txt").then_some("caption");
        assert_eq!(read(&file, column).unwrap(), expected, "{}", file.display());
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_file_and_line() {
    let dir = Folder::new();
    let long = [b"a\n".to_vec(), vec![b'x'; (1 << 20) + 1]].concat();
    let open = [b"caption\n\"never closed\n".to_vec(), b"line\n".repeat(1 << 19)].concat();
    let cases: Vec<(PathBuf, Option<&str>, &str)> = vec![
        (dir.file("empty.txt", ""), None, "empty.txt: holds no prompt"),
        (dir.file("blank.txt", " \n\t\n"), None, "blank.txt: holds no prompt"),
        (dir.file("header.csv", "caption\n"), Some("caption"), "header.csv: holds no prompt"),
        (dir.file("p.parquet", "x"), None, "p.parquet: is not a .txt, .csv, .tsv or .jsonl file"),
        (dir.file("p", "x"), None, "is not a .txt"),
        (dir.file("latin.txt", b"good\nbad \xe9\n"), None, "latin.txt: line 2 is not UTF-8 text"),
        (
            dir.file("latin.csv", b"caption\ngood\nbad \xe9\n"),
            Some("caption"),
            "latin.csv: line 3 is not UTF-8 text",
        ),
        (dir.file("long.txt", long), None, "long.txt: line 2 is longer than 1024 KiB: give a prompt a line"),
        (
            dir.file("open.csv", open),
            Some("caption"),
            "open.csv: line 2 opens a quote that does not close within 1024 KiB",
        ),
        (
            dir.file("a.csv", "id,text\n1,x\n"),
            Some("caption"),
            "a.csv: has no column `caption`: its header has id, text",
        ),
        (dir.file("b.csv", "id,text\n1,x\n"), None, "b.csv: needs a column"),
        (
            dir.file("short.csv", "id,text\n1,x\n2\n"),
            Some("text"),
            "short.csv: line 3 has 1 field, but the header has 2: leave a field empty rather than out",
        ),
        (
            dir.file("a.jsonl", "{\"a\": 1, \"b\": 2}"),
            Some("c"),
            "a.jsonl: line 1 has no key `c`: it has a, b",
        ),
        (
            dir.file("b.jsonl", "{\"a\": \"x\"}\n{\"a\": 1}"),
            Some("a"),
            "b.jsonl: line 2 has a `a` that is not a string",
        ),
        (dir.file("c.jsonl", "{\"a\": \"x\"}\n\n[1]"), Some("a"), "c.jsonl: line 3 is not a JSON object"),
        (dir.0.path().join("absent.txt"), None, "absent.txt: No such file"),
        (dir.0.path().to_owned(), None, "is not a .txt"),
    ];
    for (path, column, says) in cases {
        let error = read(&path, column).unwrap_err();
        assert!(error.line().contains(says), "{says} / {}", error.line());
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn prompts_that_follow_the_calibration_are_held_out_without_repeats() {
    let dir = Folder::new();
    dir.file("p.txt", "a\nb\nc\nb\nd\nd\ne\nf\n");
    let prompts = JobPrompts::load(&dir.job("p.txt", 3, &["evaluation.count=3"]), None).unwrap();
    assert_eq!(prompts.calibration, ["a", "b", "c"]);
    assert_eq!(prompts.held_out, ["d", "e", "f"]);
    assert_eq!((prompts.note, prompts.held_out_digest), (None, None));
}

#[test]
fn a_calibration_may_repeat_prompts() {
    let dir = Folder::new();
    dir.file("p.txt", "a\na\nb\n");
    let prompts = JobPrompts::load(&dir.job("p.txt", 2, &["evaluation.count=1"]), None).unwrap();
    assert_eq!((prompts.calibration, prompts.held_out), (vec!["a".into(), "a".into()], vec!["b".into()]));
}

#[test]
fn held_out_prompts_may_have_a_file_of_their_own() {
    let dir = Folder::new();
    dir.file("p.txt", "a\nb\nc\n");
    dir.file("h.csv", "t\nb\nx\ny\n");
    let sets = ["evaluation.prompts=DIR/h.csv", "evaluation.column=t", "evaluation.count=2"];
    let prompts = JobPrompts::load(&dir.job("p.txt", 2, &sets), None).unwrap();
    assert_eq!(prompts.held_out, ["x", "y"]);
    assert!(prompts.held_out_digest.is_some());
}

#[test]
fn too_few_held_out_prompts_are_noted_and_none_asked_for_are_not() {
    let dir = Folder::new();
    dir.file("p.txt", "a\nb\na\n");
    let note = |sets: &[&str], count| JobPrompts::load(&dir.job("p.txt", count, sets), None).unwrap().note;
    assert!(note(&[], 2).unwrap().contains("is left out"));
    assert!(note(&[], 2).unwrap().contains("(1 repeat an earlier one)"));
    assert!(note(&["evaluation.count=5"], 1).unwrap().contains("p.txt has 1 prompt to hold out"));
    assert_eq!(note(&["evaluation.count=0"], 2), None);
}

#[test]
fn too_few_prompts_are_refused_with_both_numbers() {
    let dir = Folder::new();
    dir.file("p.txt", "a\nb\n");
    let error = JobPrompts::load(&dir.job("p.txt", 3, &[]), None).unwrap_err().line();
    assert!(
        error.contains("job.toml: calibration.count: is 3, but") && error.contains("holds 2 prompts"),
        "{error}"
    );
}

#[test]
fn errors_name_the_key_that_is_to_be_changed() {
    let dir = Folder::new();
    dir.file("p.txt", "a\nb\n");
    dir.file("p.csv", "text\na\nb\n");
    let cases: [(&str, &[&str], &str); 6] = [
        ("p.txt", &["calibration.column=text"], "--set calibration.column: "),
        ("absent.txt", &[], "job.toml: calibration.prompts: "),
        ("p.csv", &[], "job.toml: calibration.column: "),
        ("p.csv", &["calibration.column=caption"], "--set calibration.column: "),
        ("p.txt", &["evaluation.prompts=DIR/none.txt"], "--set evaluation.prompts: "),
        ("p.txt", &["evaluation.prompts=DIR/p.csv"], "--set evaluation.column: "),
    ];
    for (name, sets, says) in cases {
        let error = JobPrompts::load(&dir.job(name, 1, sets), None).unwrap_err().line();
        assert!(error.contains(says), "{says} / {error}");
    }
}

#[test]
fn the_digest_is_of_the_whole_file() {
    let dir = Folder::new();
    dir.file("p.txt", "abc");
    let digest =
        || JobPrompts::load(&dir.job("p.txt", 1, &["evaluation.count=0"]), None).unwrap().digest.unwrap();
    assert_eq!(digest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    dir.file("p.txt", format!("abc\n{}", "unread\n".repeat(100_000)));
    assert_ne!(digest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

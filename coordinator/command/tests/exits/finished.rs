//! The same command once more, after the job is done.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use obsdiff_tests::copy_folder;

use crate::process::{ASSETS, Process, setting};

const RUN: &[&str] = &["run", "job.toml", "--quiet"];
const COORDINATOR: &[&str] = &["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
const SOLVED: &str = "transformer/diffusion_pytorch_model.safetensors";

/// Every path below a folder, with its content and when that was written.
fn listing(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let (mut found, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(path) = open.pop() {
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let content = if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(path, (content, written));
    }
    found
}

/// A folder with a job on a copy of the pipeline and of the prompts, which is done.
fn done(grams: bool) -> tempfile::TempDir {
    let folder = setting(2);
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), &folder.path().join("model"));
    fs::copy(Path::new(ASSETS).join("shapes-prompts.txt"), folder.path().join("prompts.txt")).unwrap();
    let job = folder.path().join("job.toml");
    let text = fs::read_to_string(&job).unwrap();
    let text = text.replace(&format!("{ASSETS}/shapes-sd3"), "model");
    let text = text.replace(&format!("{ASSETS}/shapes-prompts.txt"), "prompts.txt");
    let kept = if grams { "[output]\ngrams = \"grams\"" } else { "[output]" };
    fs::write(&job, text.replace("[output]", kept)).unwrap();
    let (code, said) = Process::start(folder.path(), RUN).verdict();
    assert_eq!(code, Some(0), "{said}");
    folder
}

#[test]
fn a_job_that_is_done_is_done_when_its_command_comes_again() {
    for grams in [false, true] {
        let folder = done(grams);
        let before = listing(folder.path());
        for args in [RUN, COORDINATOR, &[RUN, &["--workers", "2"]].concat()[..]] {
            let mut again = Process::start(folder.path(), args);
            assert!(
                again.line(|line| line.starts_with("Pruned 50.00% of ")).is_some(),
                "{args:?}: no summary"
            );
            let (code, said) = again.verdict();
            assert_eq!(code, Some(0), "{said}");
            let words =
                "note: the job is done already, and its result is in out: nothing is run or written again\n";
            assert_eq!(said, words, "{args:?}");
            assert!(listing(folder.path()) == before, "{args:?} touches something");
        }
    }
}

#[test]
fn workers_that_wait_for_the_coordinator_of_a_job_that_is_done_are_told_so() {
    let folder = done(false);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let url = format!("http://{address}");
    let args = ["worker", "--coordinator", &url, "--patience", "60s", "--quiet"];
    let mut worker = Process::start(folder.path(), &args);
    // It looks for its coordinator from now on.
    drop(listener.accept().unwrap());
    drop(listener);
    let mut again = Process::start(folder.path(), &["coordinator", "job.toml", "--listen", &address]);
    let over = worker.line(|line| line == "the job is over: done");
    let (code, said) = worker.verdict();
    assert!(code == Some(0) && over.is_some(), "{code:?}: {said}");
    assert_eq!(again.verdict().0, Some(0));
}

/// A change to the folder of a job that is done.
type Change = (&'static str, fn(&Path));

fn append(path: &Path, text: &str) {
    fs::write(path, [fs::read(path).unwrap(), text.as_bytes().to_vec()].concat()).unwrap();
}

/// Changes a text in the output's record.
fn rewrite(folder: &Path, change: fn(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = folder.join("out/pruning.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(record.as_object_mut().unwrap());
    fs::write(&path, serde_json::to_vec_pretty(&record).unwrap()).unwrap();
}

const CHANGES: &[Change] = &[
    ("the model", |folder| append(&folder.join("model/scheduler/scheduler_config.json"), "\n")),
    ("the prompts", |folder| append(&folder.join("prompts.txt"), "a purple star\n")),
    ("the job", |folder| append(&folder.join("job.toml"), "[workers]\nmixed_hardware = true\n")),
    ("a weight", |folder| {
        let path = folder.join("out").join(SOLVED);
        let mut content = fs::read(&path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(path, content).unwrap();
    }),
    ("a file of the source", |folder| append(&folder.join("out/model_index.json"), "\n")),
    ("a file that is gone", |folder| fs::remove_file(folder.join("out").join(SOLVED)).unwrap()),
    ("a folder in the place of a file", |folder| {
        fs::remove_file(folder.join("out").join(SOLVED)).unwrap();
        fs::create_dir(folder.join("out").join(SOLVED)).unwrap();
    }),
    ("the record", |folder| fs::write(folder.join("out/pruning.json"), "{}").unwrap()),
    ("the record's files", |folder| rewrite(folder, |record| drop(record.remove("files")))),
    ("the release", |folder| {
        rewrite(folder, |record| drop(record.insert("obsdiff".to_owned(), "0.0.9".into())));
    }),
    ("the Grams", |folder| fs::remove_file(folder.join("grams/grams.json")).unwrap()),
    ("the Grams of another job", |folder| {
        fs::copy(folder.join("other-grams/grams.json"), folder.join("grams/grams.json")).unwrap();
    }),
];

#[test]
fn what_is_not_what_the_job_wrote_is_refused_as_ever() {
    let (done, kept) = (done(true), tempfile::tempdir().unwrap());
    let folder = done.path();
    let other = ["calibration.seed=7", "output.path=other", "output.grams=other-grams"];
    let other = other.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>();
    assert_eq!(Process::start(folder, &[RUN, &other].concat()).verdict().0, Some(0));
    copy_folder(folder, kept.path());
    // In its own place: the record names that of the Grams in full.
    let restore = || {
        fs::remove_dir_all(folder).unwrap();
        copy_folder(kept.path(), folder);
    };
    for (what, change) in CHANGES {
        restore();
        change(folder);
        let before = listing(folder);
        for args in [RUN, COORDINATOR] {
            let (code, said) = Process::start(folder, args).verdict();
            assert_eq!(code, Some(2), "{what}: {said}");
            assert!(said.contains("job.toml: output.path: is out, which exists already: "), "{what}: {said}");
            let says = "(it is the output of another job: workers.mixed_hardware was false and is true)\n";
            assert_eq!(said.ends_with(says), *what == "the job", "{what}: {said}");
            assert!(listing(folder) == before, "{what}: {args:?} touches something");
        }
    }
    restore();
    let (code, said) = Process::start(folder, RUN).verdict();
    assert_eq!(code, Some(0), "without a change: {said}");
    // Nobody has computed what this asks for.
    let (code, said) = Process::start(done.path(), &[RUN, &["--baseline"]].concat()).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("output.path: is out, which exists already: "), "{said}");
}

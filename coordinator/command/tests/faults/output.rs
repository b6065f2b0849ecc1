//! Outputs in an object store: written while servers fail and writers are killed, they are what a directory has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use obsdiff_tests::copy_folder;

use crate::process::{LONG, Process, of_every_run, setting};
use crate::s3::Later;
use crate::store::StoreServer;

const RUN: &[&str] = &["run", "job.toml", "--quiet"];

/// Files that describe a run: they name the output, or what was measured.
const TELLING: [&str; 3] = ["pruning.json", "report.html", "README.md"];

/// Files by their paths in a folder, with their content.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn files(folder: &Path) -> Files {
    let mut files = BTreeMap::new();
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.exists() {
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// A job whose output goes to the server, and its state beside it.
fn job() -> tempfile::TempDir {
    let folder = setting(2);
    let job = folder.path().join("job.toml");
    let words = fs::read_to_string(&job).unwrap();
    fs::write(job, words.replace("path = \"out\"", "path = \"s3://bucket/some/out\"")).unwrap();
    folder
}

/// What an undisturbed process writes into a directory.
fn expected() -> &'static Files {
    static EXPECTED: OnceLock<Files> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let folder = setting(2);
        let (code, said) = Process::start(folder.path(), RUN).verdict();
        assert_eq!(code, Some(0), "{said}");
        files(&folder.path().join("out"))
    })
}

impl StoreServer {
    /// The objects of a prefix.
    fn objects(&self, prefix: &str) -> Files {
        files(&self.folder.path().join("bucket").join(prefix))
    }

    /// That the record counts the bytes of the output. Those of the documents are counted before they say what was measured.
    fn assert_counted(&self) {
        let written = self.objects("some/out");
        let record: serde_json::Value = serde_json::from_slice(&written["pruning.json"]).unwrap();
        let counted =
            record["measured"]["course"]["written_bytes"].as_u64().expect("the record has no bytes");
        let bytes = |wanted: &dyn Fn(&str) -> bool| -> u64 {
            written.iter().filter(|(name, _)| wanted(name)).map(|(_, content)| content.len() as u64).sum()
        };
        let others = bytes(&|name| !TELLING.contains(&name) && name != "metrics.prom");
        assert!(others < counted && counted < bytes(&|_| true), "{others} of others: {counted}");
    }

    /// That the output is what one process writes into a directory, and these files.
    fn assert_written(&self, when: &str, and: &[&str]) {
        let (mut written, mut expected) = (self.objects("some/out"), expected().clone());
        and.iter().for_each(|name| assert!(written.remove(*name).is_some(), "{when}: {name} is missing"));
        let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&written), names(&expected), "{when}");
        for name in TELLING {
            let [own, other] = [&mut written, &mut expected].map(|files| files.remove(name).unwrap());
            if name == "pruning.json" {
                let own = String::from_utf8(of_every_run(&own)).unwrap();
                let same = own.replace("s3://bucket/some/out", "out");
                assert_eq!(same, String::from_utf8(of_every_run(&other)).unwrap(), "{when}");
            }
        }
        assert!(written == expected, "{when}: other bytes");
        assert_eq!(names(&self.objects("some/out.state")), [""; 0], "{when}: the state is left behind");
    }
}

/// The URL of a coordinator, once it listens.
pub(crate) fn until_listening(coordinator: &mut Process) -> String {
    let line = coordinator.line(|line| line.starts_with("listening on "));
    line.expect("it does not listen").replace("listening on ", "http://")
}

/// Waits until the server holds a request.
pub(crate) fn until_held(server: &StoreServer, process: &mut Process) {
    let end = Instant::now() + LONG;
    while server.server().held() == 0 {
        assert!(Instant::now() < end, "nothing is held");
        if let Some(status) = process.ended() {
            panic!("it ended before: {status}");
        }
        thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn a_cluster_writes_to_the_store_what_one_process_writes_into_a_directory() {
    let (folder, server) = (job(), StoreServer::new());
    let away = tempfile::tempdir().unwrap();
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let mut coordinator = server.start(folder.path(), &args);
    let url = until_listening(&mut coordinator);
    let worker = ["worker", "--coordinator", &url, "--quiet"];
    let mut workers = [(); 2].map(|()| server.start(away.path(), &worker));
    let printed = coordinator.line(|line| line.contains("torch_dtype")).expect("nothing says how to load it");
    assert!(printed.contains("\"out\", torch_dtype="), "{printed}");
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    for worker in &mut workers {
        assert!(worker.end().success());
    }
    server.assert_written("a cluster", &["metrics.prom"]);
    server.assert_counted();
    let card = String::from_utf8(server.objects("some/out").remove("README.md").unwrap()).unwrap();
    assert!(card.contains("# out is a folder that holds what lies at s3://bucket/some/out.\n"), "{card}");

    // The job is done: whoever starts again says so, and writes nothing.
    let before = server.objects("");
    for args in [RUN, &args] {
        let (code, said) = server.start(folder.path(), args).verdict();
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("the job is done already, and its result is in s3://bucket/some/out: "),
            "{said}"
        );
        assert!(server.objects("") == before);
    }
    // Not where an object is another one by now.
    let changed = server.folder.path().join("bucket/some/out/transformer/config.json");
    fs::write(&changed, [fs::read(&changed).unwrap(), b" ".to_vec()].concat()).unwrap();
    // A second job does not overwrite the output of the first one, either.
    let before = server.objects("");
    for args in [RUN, &[RUN, &["--set", "calibration.seed=7"]].concat()[..]] {
        let (code, said) = server.start(folder.path(), args).verdict();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("output.path: is s3://bucket/some/out, which holds "), "{said}");
        assert!(server.objects("") == before);
    }
}

#[test]
fn a_prefix_with_foreign_objects_is_refused_before_any_work() {
    let (folder, server) = (job(), StoreServer::new());
    let place = server.folder.path().join("bucket/some/out/notes");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("thesis.tex"), "mine").unwrap();
    // Objects beside the prefix are nobody's business.
    fs::write(server.folder.path().join("bucket/some/outline.tex"), "mine").unwrap();
    let before = server.objects("");
    let (code, said) = server.start(folder.path(), RUN).verdict();
    assert_eq!(code, Some(2), "{said}");
    let says =
        "output.path: is s3://bucket/some/out, which holds notes/thesis.tex already: choose another prefix";
    assert!(said.contains(says), "{said}");
    assert!(server.objects("") == before, "something was written or removed");

    // Not even beside what the job itself has begun to write.
    fs::remove_file(place.join("thesis.tex")).unwrap();
    server.server().pass("some/out/", 3, Later::Held);
    let mut killed = server.start(folder.path(), RUN);
    until_held(&server, &mut killed);
    killed.kill();
    server.server().pass_all();
    fs::write(place.join("thesis.tex"), "mine").unwrap();
    let before = server.objects("");
    let (code, said) = server.start(folder.path(), RUN).verdict();
    assert_eq!(code, Some(2), "{said}");
    let says = "which holds notes/thesis.tex, which the job did not write: choose another output.path";
    assert!(said.contains(says), "{said}");

    // Another job does not take over what this one has begun.
    fs::remove_file(place.join("thesis.tex")).unwrap();
    let other: Vec<&str> = RUN.iter().copied().chain(["--set", "calibration.seed=7"]).collect();
    let (code, said) =
        server.start(folder.path(), &[&other[..], &["--set", "output.state=state"]].concat()).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("which holds what another job has begun to write"), "{said}");
    fs::write(place.join("thesis.tex"), "mine").unwrap();
    assert!(server.objects("") == before, "something was written or removed");
}

#[test]
fn a_writer_that_is_killed_at_any_object_is_followed_by_one_that_writes_the_same() {
    let changes = expected().len() + 2;
    // Everything is solved, and nothing is written.
    let (folder, solved) = (job(), StoreServer::new());
    solved.server().pass("some/out/", 0, Later::Held);
    let mut killed = solved.start(folder.path(), RUN);
    until_held(&solved, &mut killed);
    killed.kill();
    assert!(solved.objects("some/out").is_empty());
    // After the marker, some files, all but two, all but the index that completes it, all of them, and a document that says what was
    // measured.
    for passing in [1, changes / 2, changes - 3, changes - 2, changes - 1, changes] {
        let server = StoreServer::new();
        copy_folder(solved.folder.path(), server.folder.path());
        server.server().pass("some/out/", passing, Later::Held);
        let mut killed = server.start(folder.path(), RUN);
        until_held(&server, &mut killed);
        killed.kill();
        let there = server.objects("some/out");
        let complete = there.contains_key("model_index.json");
        assert_eq!(complete, passing >= changes - 1, "{passing}: {:?}", there.keys());
        server.server().pass_all();
        let (code, said) = server.start(folder.path(), RUN).verdict();
        assert_eq!(code, Some(0), "killed after {passing}: {said}");
        server.assert_written(&format!("killed after {passing}"), &[]);
    }
}

#[test]
fn a_store_that_fails_while_the_output_is_written_ends_the_job_which_goes_on_later() {
    let (folder, server) = (job(), StoreServer::new());
    server.server().pass("some/out/", 4, Later::Refused);
    let (mut coordinator, mut worker, mut watch) = server.job(folder.path());
    let line = watch.line(|line| line.contains("export ") && line.contains(" failed 1 time: "));
    let line = line.expect("nobody misses it");
    assert!(line.contains("s3://bucket/some/out/") && line.contains("503"), "{line}");
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(3), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.contains("s3://bucket/some/out: could not be written")
            && last.contains("kept in s3://bucket/some/out.state"),
        "{said}"
    );
    assert_eq!(worker.end().code(), Some(3));
    assert!(!server.objects("some/out").contains_key("model_index.json"), "half a pipeline");
    server.server().pass_all();
    let (mut coordinator, mut worker, _) = server.job(folder.path());
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    server.assert_written("after a failure", &["metrics.prom"]);
}

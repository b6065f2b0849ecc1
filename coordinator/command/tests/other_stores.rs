//! Jobs whose model, output and state lie in stores of Azure's and Google's kinds, which `tests/stores` starts on this machine. They are
//! installed from PyPI and npm, so this runs where OBSDIFF_PY_TESTS=1 alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use candle_core::{DType, Device, Tensor, safetensors};
use obsdiff_tests::{copy_folder, not_tested};
use process::{ASSETS, FIRST, Process, setting};

const STORES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/stores");
const WEIGHTS: &str = "text_encoder/model.safetensors";
const RUN: &[&str] = &["run", "job.toml", "--quiet", "--cache", "cache"];
/// What differs from one place of the output to another, and from run to run.
const TELLING: [&str; 5] = ["pruning.json", "report.html", "README.md", "metrics.prom", "metrics.json"];

/// Files by their paths in a folder, with their content.
type Files = BTreeMap<String, Vec<u8>>;

/// A store of another kind than S3, with the bucket `box` and a model in it.
struct Store {
    scheme: &'static str,
    server: Child,
    asked: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    variables: BTreeMap<String, String>,
}

impl Store {
    /// Starts one; none where nobody wants it installed.
    #[track_caller]
    fn start(scheme: &'static str, model: &Path) -> Option<Self> {
        if std::env::var_os("OBSDIFF_PY_TESTS").is_none_or(|asked| asked != "1") {
            not_tested("OBSDIFF_PY_TESTS=1 lets this test install stores of other kinds than S3");
            return None;
        }
        let mut command = Command::new(STORES);
        command.arg(scheme).arg(model).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let variables = lines.next().expect("it does not start").unwrap();
        let variables = serde_json::from_str(&variables).unwrap();
        Some(Self { scheme, asked: server.stdin.take(), server, lines, variables })
    }

    fn url(&self, prefix: &str) -> String {
        format!("{}://box/{prefix}", self.scheme)
    }

    /// The objects below a prefix.
    fn objects(&mut self, prefix: &str) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let asked = self.asked.as_mut().unwrap();
        writeln!(asked, "{prefix}/ {}", folder.path().display()).unwrap();
        let lines: usize = self.lines.next().expect("it does not answer").unwrap().parse().unwrap();
        let mut found = Files::new();
        collect(folder.path(), folder.path(), &mut found);
        assert_eq!(found.len(), lines);
        found
    }

    fn process(&self, folder: &Path, args: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        Process::spawn(command.args(args).envs(&self.variables).current_dir(folder))
    }

    /// That an output has the files of one that was written into a directory, and that its state is gone.
    fn assert_written(&mut self, output: &str, expected: &Files) {
        let mut written = self.objects(output);
        let said = |files: &Files| {
            let record: serde_json::Value = serde_json::from_slice(&files["pruning.json"]).unwrap();
            record["linears"].clone()
        };
        assert_eq!(said(&written), said(expected), "{output}");
        TELLING.iter().for_each(|name| drop(written.remove(*name)));
        let same: Vec<_> = written.keys().filter(|name| written.get(*name) == expected.get(*name)).collect();
        let wanted: Vec<_> = expected.keys().filter(|name| !TELLING.contains(&name.as_str())).collect();
        assert_eq!(same, wanted, "{output}: of {:?}", written.keys());
        assert_eq!(written.len(), wanted.len(), "{output}: {:?}", written.keys());
        assert_eq!(self.objects(&format!("{output}.state")).keys().collect::<Vec<_>>(), [""; 0], "{output}");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It ends with its input, and its server with it.
        drop(self.asked.take());
        let _ = self.server.wait();
    }
}

fn collect(root: &Path, folder: &Path, found: &mut Files) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// The shipped pipeline, with a file that is put in several parts.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), &model);
    let weights = model.join(WEIGHTS);
    let mut tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    let unused = Tensor::arange(0f32, (10 << 20) as f32, &Device::Cpu).unwrap();
    assert_eq!(unused.dtype(), DType::F32);
    tensors.insert("unused".to_owned(), unused);
    safetensors::save(&tensors, &weights).unwrap();
    assert!(weights.metadata().unwrap().len() > 40 << 20);
    model
}

/// A job of that model with this output, in a folder of its own.
fn job(model: &str, output: &str) -> tempfile::TempDir {
    let folder = setting(4);
    let job = folder.path().join("job.toml");
    let words = fs::read_to_string(&job).unwrap();
    let words = words.replace("path = \"out\"", &format!("path = {output:?}"));
    let source = format!("path = {:?}", Path::new(ASSETS).join("shapes-sd3"));
    assert!(words.contains(&source), "{words}");
    fs::write(job, words.replace(&source, &format!("path = {model:?}"))).unwrap();
    folder
}

fn jobs_of(scheme: &'static str) {
    let place = tempfile::tempdir().unwrap();
    let model = model(place.path());
    let Some(mut store) = Store::start(scheme, &model) else { return };

    let here = job(model.to_str().unwrap(), "out");
    let (code, said) = Process::start(here.path(), RUN).verdict();
    assert_eq!(code, Some(0), "{said}");
    let mut expected = Files::new();
    collect(&here.path().join("out"), &here.path().join("out"), &mut expected);
    assert!(expected[WEIGHTS].len() > 40 << 20 && expected.contains_key("pruning.json"));

    let url = store.url("some/out");
    let folder = job(&store.url("model"), &url);
    let (code, said) = store.process(folder.path(), RUN).verdict();
    assert_eq!(code, Some(0), "{said}");
    store.assert_written("some/out", &expected);

    // What is there stays.
    let before = store.objects("some");
    let (code, said) = store.process(folder.path(), RUN).verdict();
    assert!(code == Some(0) && said.contains(&format!("its result is in {url}: ")), "{said}");
    assert!(store.objects("some") == before);
    let other = ["--set", "calibration.seed=7"];
    let (code, said) = store.process(folder.path(), &[RUN, &other].concat()).verdict();
    assert!(code == Some(2) && said.contains(&format!("is {url}, which holds ")), "{said}");
    assert!(store.objects("some") == before);

    let nowhere = ["--set", &format!("output.path={scheme}://nowhere/out")];
    let (code, said) = store.process(folder.path(), &[RUN, &nowhere].concat()).verdict();
    assert!(code == Some(2) && said.contains("there is no such bucket or container"), "{said}");

    // A cluster whose coordinator is killed, and followed by another one.
    let folder = job(&store.url("model"), &store.url("some/other"));
    let mut args = ["coordinator", "job.toml", "--quiet", "--cache", "cache", "--listen", "127.0.0.1:0"];
    let mut coordinator = store.process(folder.path(), &args);
    let line = coordinator.line(|line| line.starts_with("listening on ")).expect("it does not listen");
    let address = line.replace("listening on ", "");
    let url = format!("http://{address}");
    let worker = ["worker", "--coordinator", &url, "--quiet", "--cache", "cache"];
    let mut watch = store.process(folder.path(), &["status", &url, "--watch"]);
    let mut workers = [(); 2].map(|()| store.process(folder.path(), &worker));
    assert!(watch.line(FIRST).is_some());
    coordinator.kill();
    assert!(store.objects("some/other.state").keys().any(|name| name.starts_with("lives/")));
    args[6] = &address;
    let (code, said) = store.process(folder.path(), &args).verdict();
    assert_eq!(code, Some(0), "{said}");
    for worker in &mut workers {
        assert!(worker.end().success());
    }
    store.assert_written("some/other", &expected);
}

#[test]
fn jobs_in_azures_blob_storage_give_the_bytes_of_one_in_a_directory() {
    jobs_of("az");
}

#[test]
fn jobs_in_googles_cloud_storage_give_the_bytes_of_one_in_a_directory() {
    jobs_of("gs");
}

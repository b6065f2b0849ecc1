//! Bad input: each case is refused by name with exit code 2, in one line, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use obsdiff_tests::copy_folder;

use crate::checkpoint::Checkpoint;
use crate::{asset, obsdiff, pipeline, text};

/// A folder with a pipeline, prompts and a job that would work, and the command that works on it.
pub(crate) struct Setting {
    pub(crate) dir: tempfile::TempDir,
    args: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Setting {
    pub(crate) fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(&pipeline(), &dir.path().join("pipeline"));
        fs::copy(asset("shapes-prompts.txt"), dir.path().join("prompts.txt")).unwrap();
        fs::write(dir.path().join("job.toml"), JOB).unwrap();
        Self { dir, args: args.iter().map(|a| a.to_string()).collect(), environment: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&mut self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn remove(&mut self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn replace(&mut self, name: &str, from: &str, to: &str) {
        let old = fs::read_to_string(self.path(name)).unwrap();
        assert!(old.contains(from), "{name} lacks {from}");
        self.write(name, old.replacen(from, to, 1));
    }

    /// Changes the weights of the transformer.
    pub(crate) fn weights(&mut self, change: impl FnOnce(&mut Checkpoint)) {
        let mut checkpoint = Checkpoint::read(&self.path(WEIGHTS));
        change(&mut checkpoint);
        self.write(WEIGHTS, checkpoint.bytes());
    }

    pub(crate) fn cut(&mut self, name: &str, bytes: usize) {
        let old = fs::read(self.path(name)).unwrap();
        self.write(name, &old[..bytes.min(old.len())]);
    }

    pub(crate) fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }

    pub(crate) fn add(&mut self, more: &[&str]) {
        self.args.extend(more.iter().map(|a| a.to_string()));
    }

    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }
}

pub(crate) const WEIGHTS: &str = "pipeline/transformer/diffusion_pytorch_model.safetensors";

const JOB: &str = r#"
[model]
path = "pipeline"
[sparsity]
pattern = "unstructured"
ratio = 0.5
[calibration]
prompts = "prompts.txt"
count = 8
steps = 4
max_sequence_length = 24
[output]
path = "out"
"#;

/// Runs the job, made so small that it takes no time, without a survey.
pub(crate) const RUN: &[&str] = &[
    "run",
    "job.toml",
    "--quiet",
    "--set",
    "calibration.count=2",
    "--set",
    "calibration.steps=2",
    "--set",
    "packages.count=2",
    "--set",
    "sparsity.allocation=uniform",
    "--set",
    "evaluation.count=2",
];

/// A command on input that it has to refuse.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) args: &'static [&'static str],
    /// Spoils the setting.
    pub(crate) arrange: fn(&mut Setting),
    /// Parts of the one line that it says.
    pub(crate) says: &'static [&'static str],
}

/// Each case is refused by name with exit code 2, in one line, and nothing is written.
pub(crate) fn refused(cases: &[Case]) {
    for case in cases {
        let mut setting = Setting::new(case.args);
        (case.arrange)(&mut setting);
        let before = listing(setting.dir.path());
        let environment: Vec<_> = setting.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let output = obsdiff(setting.dir.path(), &setting.args(), &environment);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{}: {said}", case.name);
        assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{}: {said}", case.name);
        assert!(
            !said.contains("os error") || !said.trim_end().ends_with(')'),
            "{}: no next step: {said}",
            case.name
        );
        for part in case.says {
            assert!(said.contains(part), "{}: \"{part}\" is not in: {said}", case.name);
        }
        assert_eq!(listing(setting.dir.path()), before, "{}: wrote something", case.name);
    }
}

/// Every path below a folder, with its length.
pub(crate) fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
        found.push((entry.path(), metadata.len()));
    }
    found.sort();
    found
}

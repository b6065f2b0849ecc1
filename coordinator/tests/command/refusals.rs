//! Bad input: each case is refused by name with exit code 2, in one line, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{obsdiff, pipeline, text};

/// A folder with a pipeline, prompts and a job that would work, and the command that works on it.
pub(crate) struct Setting {
    dir: tempfile::TempDir,
    args: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Setting {
    fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&pipeline(), &dir.path().join("pipeline"));
        Self { dir, args: args.iter().map(|a| a.to_string()).collect(), environment: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&mut self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn remove(&mut self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn replace(&mut self, name: &str, from: &str, to: &str) {
        let old = fs::read_to_string(self.path(name)).unwrap();
        assert!(old.contains(from), "{name} lacks {from}");
        self.write(name, old.replacen(from, to, 1));
    }

    fn cut(&mut self, name: &str, bytes: usize) {
        let old = fs::read(self.path(name)).unwrap();
        self.write(name, &old[..bytes.min(old.len())]);
    }

    fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }
}

struct Case {
    name: &'static str,
    args: &'static [&'static str],
    arrange: fn(&mut Setting),
    says: &'static [&'static str],
}

const fn inspect(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    Case { name, args: &["inspect", "pipeline"], arrange, says }
}

const WEIGHTS: &str = "pipeline/transformer/diffusion_pytorch_model.safetensors";

const CASES: &[Case] = &[
    Case {
        name: "no folder",
        args: &["inspect", "absent"],
        arrange: |_| {},
        says: &["absent", "No such file"],
    },
    inspect(
        "no weights",
        |s| s.remove(WEIGHTS),
        &["transformer: has neither diffusion_pytorch_model.safetensors nor"],
    ),
    inspect(
        "weights cut off",
        |s| s.cut(WEIGHTS, 100_000),
        &["safetensors: is not a whole safetensors file", "again"],
    ),
    inspect("header cut off", |s| s.cut(WEIGHTS, 100), &["safetensors: is not a whole safetensors file"]),
    inspect("no bytes", |s| s.cut(WEIGHTS, 0), &["diffusion_pytorch_model.safetensors: "]),
    inspect("hostile header", |s| s.write(WEIGHTS, [0xff; 64]), &["is not a whole safetensors file"]),
    inspect(
        "pickled weights",
        |s| {
            s.remove(WEIGHTS);
            s.write("pipeline/transformer/diffusion_pytorch_model.bin", "pickle");
        },
        &["pickled weights only, which obsdiff never reads"],
    ),
    inspect(
        "shard outside of the folder",
        |s| {
            let index = "pipeline/transformer/diffusion_pytorch_model.safetensors.index.json";
            s.write(index, r#"{"weight_map": {"a": "../../secret.safetensors"}}"#);
        },
        &["../../secret.safetensors", "same folder"],
    ),
    inspect("log level", |s| s.env("OBSDIFF_LOG", "obsdiff=loud"), &["OBSDIFF_LOG: is \"obsdiff=loud\""]),
];

#[test]
fn bad_input_is_refused_by_name_and_writes_nothing() {
    for case in CASES {
        let mut setting = Setting::new(case.args);
        (case.arrange)(&mut setting);
        let before = listing(setting.dir.path());
        let args: Vec<&str> = setting.args.iter().map(String::as_str).collect();
        let environment: Vec<_> = setting.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let output = obsdiff(setting.dir.path(), &args, &environment);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{}: {said}", case.name);
        assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{}: {said}", case.name);
        for part in case.says {
            assert!(said.contains(part), "{}: \"{part}\" is not in: {said}", case.name);
        }
        assert_eq!(listing(setting.dir.path()), before, "{}: wrote something", case.name);
    }
}

/// Every path below a folder, with its length.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
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

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.metadata().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

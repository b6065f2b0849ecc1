use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{PoisonError, RwLock};

use candle_core::DType;
use obsdiff_proto::Method;

use super::*;
use crate::checkpoint::{Library, read_json};

const NAMES: [&str; 3] = ["a.weight", "b.weight", "c.bias"];

pub(super) fn pipeline(root: &Path, sharded: bool) -> PathBuf {
    let source = root.join("dense");
    for folder in ["transformer", "vae/deep", "unlisted"] {
        fs::create_dir_all(source.join(folder)).unwrap();
    }
    for (file, text) in [
        ("model_index.json", r#"{"transformer": ["diffusers", "X"], "vae": ["diffusers", "Y"]}"#),
        ("LICENSE", "free"),
        ("single.safetensors", "a single-file copy of everything"),
        ("transformer/config.json", "{}"),
        ("transformer/diffusion_pytorch_model.fp16.safetensors", "a dense variant"),
        ("transformer/diffusion_pytorch_model.safetensors.index.fp16.json", "{}"),
        ("vae/deep/file", "kept"),
    ] {
        fs::write(source.join(file), text).unwrap();
    }
    let folder = source.join("transformer");
    let tensor = |k: usize| {
        let values = Tensor::arange(1f32, 7., &crate::HOST).unwrap().reshape((2, 3)).unwrap();
        (values * (k + 1) as f64).unwrap().to_dtype(DType::F16).unwrap()
    };
    let save = |names: &[(usize, &str)], file: &str| {
        let tensors: HashMap<_, _> = names.iter().map(|(k, n)| (n.to_string(), tensor(*k))).collect();
        candle_core::safetensors::save(&tensors, folder.join(file)).unwrap();
    };
    let all: Vec<_> = NAMES.into_iter().enumerate().collect();
    if sharded {
        save(&all[..1], "diffusion_pytorch_model-00001-of-00002.safetensors");
        save(&all[1..], "diffusion_pytorch_model-00002-of-00002.safetensors");
        let map: HashMap<_, _> = all
            .iter()
            .map(|(k, name)| {
                (name, format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", 1 + (*k).min(1)))
            })
            .collect();
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
    } else {
        save(&all, "diffusion_pytorch_model.safetensors");
    }
    source
}

pub(super) fn record() -> PruningRecord {
    let job = serde_json::json!({
        "model": { "path": "dense" }, "sparsity": { "pattern": "2:4" }, "calibration": { "prompts": "p.txt" }, "output": { "path": "out" }
    });
    PruningRecord {
        hardware: "a processor".to_owned(),
        obsdiff: "0".into(),
        job: serde_json::from_value(job).unwrap(),
        inputs: vec![],
        held_out: vec![],
        linears: vec![],
        structures: vec![],
        sizes: None,
        files: Vec::new(),
        measured: None,
    }
}

pub(super) fn export(source: &Path, destination: &Path, link: bool, scale: f64) -> Result<()> {
    export_by(&Disk::default(), source, destination, link, scale)
}

/// Held by an export that runs, and wholly by who starts a process: until that is another program it holds all locks of this one, and
/// a writer that is gone would seem to live.
static FORKS: RwLock<()> = RwLock::new(());

/// Runs a program to its end while exports are tested, and gives what it says.
pub(crate) fn output_of(program: &mut Command) -> io::Result<Output> {
    program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = {
        let _no_export = FORKS.write().unwrap_or_else(PoisonError::into_inner);
        program.spawn()
    };
    started?.wait_with_output()
}

pub(super) fn export_by(
    disk: &Disk,
    source: &Path,
    destination: &Path,
    link: bool,
    scale: f64,
) -> Result<()> {
    let _no_fork = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    let weights = Weights::open(&source.join("transformer"), Library::Diffusers)?;
    let record = record();
    Export {
        source,
        destination,
        link,
        weights: &weights,
        read: None,
        record: &record,
        documents: &[],
        shrink: None,
    }
    .write(disk, &|name| {
        let new = || Ok(Tensor::new(&[[0f32, 1., 0.], [2., 0., 3.]], &crate::HOST)?.affine(scale, 0.)?);
        if name == "b.weight" { new().map(Some) } else { Ok(None) }
    })
}

pub(super) fn listing(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_pruned_pipeline_is_whole_and_differs_in_the_pruned_tensors_only() {
    for (sharded, link) in [(false, false), (true, true)] {
        let root = tempfile::tempdir().unwrap();
        let source = pipeline(root.path(), sharded);
        let out = root.path().join("made/out");
        export(&source, &out, link, 1.0).unwrap();
        assert_eq!(listing(&out), ["LICENSE", "model_index.json", "pruning.json", "transformer", "vae"]);
        assert_eq!(fs::read_to_string(out.join("vae/deep/file")).unwrap(), "kept");
        for stale in ["fp16.safetensors", "safetensors.index.fp16.json"] {
            let path = out.join(format!("transformer/diffusion_pytorch_model.{stale}"));
            assert!(!path.exists(), "{stale} of a variant");
        }
        assert_eq!(out.join("transformer/diffusion_pytorch_model.safetensors.index.json").exists(), sharded);
        let (old, new) = [&source, &out]
            .map(|p| Weights::open(&p.join("transformer"), Library::Diffusers).unwrap())
            .into();
        for name in NAMES {
            assert_eq!(new.entry(name).unwrap().dtype(), DType::F16);
            assert_eq!(new.bytes(name).unwrap() == old.bytes(name).unwrap(), name != "b.weight", "{name}");
        }
        let b = new.tensor("b.weight", &[2, 3], DType::F32).unwrap();
        assert_eq!(b.to_vec2::<f32>().unwrap(), [[0., 1., 0.], [2., 0., 3.]]);
        let read: PruningRecord = read_json(&out.join(RECORD_FILE)).unwrap();
        assert_eq!(PruningRecord { files: Vec::new(), ..read }, record());
    }
}

#[test]
fn a_failed_export_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    let error = export(&source, &root.path().join("out"), false, 1e30).unwrap_err().to_string();
    assert!(error.contains("pruned tensor `b.weight` leaves the range of "), "{error}");
    assert_eq!(listing(root.path()), ["dense"]);
}

/// A directory as a writer of `out` leaves it that was killed.
pub(super) fn left(root: &Path, number: u32, destination: &str) -> PathBuf {
    left_beside(&root.join("out"), number, destination)
}

/// The same of a writer of what lies at this path.
fn left_beside(written: &Path, number: u32, destination: &str) -> PathBuf {
    let name = written.file_name().unwrap().to_str().unwrap();
    let folder = written.with_file_name(format!(".{name}.obsdiff-{number}"));
    fs::create_dir_all(folder.join("pipeline/vae")).unwrap();
    fs::write(folder.join("pipeline/vae/half"), "written").unwrap();
    let marker = serde_json::json!({ "holds": "", "destination": destination });
    fs::write(folder.join("obsdiff.json"), marker.to_string()).unwrap();
    fs::write(folder.join("obsdiff.lock"), "").unwrap();
    folder
}

#[test]
fn an_existing_destination_is_refused_and_a_stale_one_replaced() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    let out = root.path().join("out");
    left(root.path(), 1, "out");
    // Killed before it could say whose it is, and before it had a lock.
    fs::create_dir(root.path().join(".out.obsdiff-2")).unwrap();
    fs::write(root.path().join(".out.obsdiff-2/obsdiff.lock"), "").unwrap();
    fs::create_dir(root.path().join(".out.obsdiff-3")).unwrap();
    export(&source, &out, false, 1.0).unwrap();
    assert!(!out.join("vae/half").exists());
    assert_eq!(listing(root.path()), ["dense", "out"]);
    // Written by another exporter of the same job, who could not say so and left something.
    left(root.path(), 7, "out");
    export(&source, &out, false, 1.0).unwrap();
    assert_eq!(listing(root.path()), ["dense", "out"]);
    fs::write(out.join(RECORD_FILE), "{}").unwrap();
    let error = export(&source, &out, false, 1.0).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(listing(root.path()), ["dense", "out"]);
}

#[test]
fn a_job_removes_no_directory_of_another_destination_of_a_live_writer_or_of_a_user() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    for folder in [".out.5.obsdiff-1", ".out.abc.partial", ".out.obsdiff-12345", "out.5"] {
        fs::create_dir(root.path().join(folder)).unwrap();
        fs::write(root.path().join(folder).join("half"), "written").unwrap();
    }
    let alive = left(root.path(), 1, "out");
    let lock = obsdiff_files::Lock::take(&alive.join("obsdiff.lock")).unwrap();
    left(root.path(), 2, "another");
    let more = left(root.path(), 3, "out");
    fs::write(more.join("thesis.tex"), "mine").unwrap();
    let before = listing(root.path());
    export(&source, &root.path().join("out"), false, 1.0).unwrap();
    let left: Vec<_> = listing(root.path()).into_iter().filter(|name| name != "out").collect();
    assert_eq!(left, before);
    assert!(alive.join("pipeline/vae/half").exists() && more.join("pipeline/vae/half").exists());
    drop(lock);
}

#[test]
fn the_space_an_export_needs_counts_its_parts_only() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    let before = required_bytes(&source).unwrap();
    fs::write(source.join("unlisted/large"), vec![0; 5000]).unwrap();
    assert_eq!(required_bytes(&source).unwrap(), before);
    fs::write(source.join("vae/large"), vec![0; 5000]).unwrap();
    assert_eq!(required_bytes(&source).unwrap(), before + 5000);
}

#[test]
fn what_is_not_kept_leaves_the_tensors_and_the_header() {
    for sharded in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let source = pipeline(root.path(), sharded);
        fs::write(source.join("transformer/config.json"), "{}").unwrap();
        let out = root.path().join("out");
        let weights = Weights::open(&source.join("transformer"), Library::Diffusers).unwrap();
        let kept = [("a.weight", KeptIndices::Rows(vec![1])), ("b.weight", KeptIndices::Columns(vec![0, 2]))];
        let shrink = Shrink {
            kept: kept.map(|(name, kept)| (name.to_owned(), kept)).into(),
            files: vec![
                ("config.json".to_owned(), b"new".to_vec()),
                ("module.py".to_owned(), b"pass".to_vec()),
            ],
        };
        let record = record();
        let export = Export {
            source: &source,
            destination: &out,
            link: false,
            weights: &weights,
            read: None,
            record: &record,
            documents: &[],
            shrink: Some(&shrink),
        };
        let new = Tensor::new(&[[0f32, 1., 0.], [2., 0., 3.]], &crate::HOST).unwrap();
        export.write(&Disk::default(), &|name| Ok((name == "b.weight").then(|| new.clone()))).unwrap();
        assert_eq!(fs::read_to_string(out.join("transformer/config.json")).unwrap(), "new");
        assert_eq!(fs::read_to_string(out.join("transformer/module.py")).unwrap(), "pass");
        let written = Weights::open(&out.join("transformer"), Library::Diffusers).unwrap();
        let shapes: Vec<Vec<usize>> = written.entries().map(|(_, e)| e.shape().to_vec()).collect();
        let old = weights.entry("a.weight").unwrap().shape().to_vec();
        assert_eq!(shapes[..2], [vec![1, old[1]], vec![2, 2]]);
        let b = written.tensor("b.weight", &[2, 2], DType::F32).unwrap();
        assert_eq!(b.to_vec2::<f32>().unwrap(), [[0., 0.], [2., 3.]]);
        let read = |w: &Weights, rows| {
            w.tensor("a.weight", &[rows, old[1]], DType::F32).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(read(&written, 1)[0], read(&weights, old[0])[1]);
        assert_eq!(written.bytes("c.bias").unwrap(), weights.bytes("c.bias").unwrap());
        if sharded {
            let index: serde_json::Value =
                read_json(&out.join("transformer/diffusion_pytorch_model.safetensors.index.json")).unwrap();
            let total: usize = written.entries().map(|(_, e)| e.bytes().len()).sum();
            assert_eq!(index["metadata"]["total_size"], total);
        }
    }
}

/// What a run measured in so many seconds.
fn measured(seconds: f64) -> PruningRecord {
    let pictures = Some(PictureError { count: 1, mean_psnr_decibels: Some(31.5) });
    let held_out = HeldOutError { relative: 0.25, per_prompt: vec![0.25], per_step: vec![0.125], pictures };
    let baseline = Baseline { method: Method::Magnitude, weights: 8, zeros: 4, held_out: held_out.clone() };
    let phases = vec![MeasuredPhase { phase: "solve".into(), calls: 2, seconds, beside_seconds: 0.1 }];
    let measured = Measured {
        expected_velocity_error: Some(0.25),
        held_out: Some(held_out),
        baseline: Some(baseline),
        seconds,
        other_seconds: 0.0,
        phases,
        peak_memory_bytes: Some(1 << 30),
        course: Some(JobCourse { groups: 1, packages: vec![Default::default()], ..Default::default() }),
    };
    PruningRecord { measured: Some(measured), ..record() }
}

#[test]
fn what_was_measured_joins_the_record_and_the_pipeline_stays_the_jobs() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    let out = root.path().join("out");
    export(&source, &out, false, 1.0).unwrap();
    // Files of a user, whatever they are called.
    fs::write(out.join(".pruning.json.obsdiff"), "mine").unwrap();
    let record = out.join(RECORD_FILE);
    fs::write(left_beside(&record, 2, RECORD_FILE).join("mine"), "mine").unwrap();
    let files = listing(&out);
    // An earlier process ended while it wrote the new record.
    left_beside(&record, 1, RECORD_FILE);
    for seconds in [2.5, 3.5] {
        let written = measured(seconds).replace(&out, &[], &Disk::default()).unwrap();
        assert_eq!(PruningRecord::read(&out).unwrap().unwrap(), written);
        assert!(written.is_unchanged(&out));
        assert_eq!(PruningRecord { files: Vec::new(), ..written }, measured(seconds));
        assert_eq!(listing(&out), files);
    }
    let measured_last = PruningRecord::read(&out).unwrap();
    export(&source, &out, false, 1.0).unwrap();
    assert_eq!(PruningRecord::read(&out).unwrap(), measured_last, "an export of the same job");

    let other = PruningRecord { hardware: "another".to_owned(), ..measured(1.0) };
    let error = other.replace(&out, &[], &Disk::default()).unwrap_err().to_string();
    assert!(error.contains("pruning.json: is not what the job has written"), "{error}");
    assert_eq!(PruningRecord::read(&out).unwrap(), measured_last);
}

#[test]
fn a_record_names_each_file_that_was_written_and_knows_it_again() {
    for (sharded, link) in [(false, false), (true, true)] {
        let root = tempfile::tempdir().unwrap();
        let source = pipeline(root.path(), sharded);
        let out = root.path().join("out");
        export(&source, &out, link, 1.0).unwrap();
        let record = PruningRecord::read(&out).unwrap().unwrap();
        let mut named: Vec<_> = record.files.iter().map(|file| file.path.clone()).collect();
        named.sort();
        let transformer =
            listing(&out.join("transformer")).into_iter().map(|file| format!("transformer/{file}"));
        let others = ["LICENSE", "model_index.json", "vae/deep/file"].map(str::to_owned);
        let mut there: Vec<_> = transformer.chain(others).collect();
        there.sort();
        assert_eq!(named, there);
        assert!(record.is_unchanged(&out));
        // The same bytes elsewhere are not the pipeline's.
        let mut outside = record.files.iter().find(|file| file.path == "model_index.json").unwrap().clone();
        outside.path = "../dense/model_index.json".to_owned();
        assert_eq!(
            fs::read(out.join(&outside.path)).unwrap(),
            fs::read(out.join("model_index.json")).unwrap()
        );
        assert!(!PruningRecord { files: vec![outside], ..record.clone() }.is_unchanged(&out));
        for file in &named {
            let path = out.join(file);
            let content = fs::read(&path).unwrap();
            // A new file: the old one may be a link to the source's.
            fs::remove_file(&path).unwrap();
            assert!(!record.is_unchanged(&out), "{file} is gone");
            let mut other = content.clone();
            *other.last_mut().unwrap() ^= 1;
            fs::write(&path, other).unwrap();
            assert!(!record.is_unchanged(&out), "{file} has other bytes");
            fs::write(&path, content).unwrap();
        }
        assert!(record.is_unchanged(&out));
        // A file of a user beside them, and a record of an export that named none.
        fs::write(out.join("notes"), "mine").unwrap();
        assert!(record.is_unchanged(&out));
        assert!(!PruningRecord { files: Vec::new(), ..record }.is_unchanged(&out));
    }
}

#[test]
fn a_destination_is_tried_without_a_trace() {
    let root = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    fs::create_dir(root.path().join("there")).unwrap();
    fs::write(root.path().join("file"), "mine").unwrap();
    left_beside(&root.path().join("new"), 1, "new");
    let before = listing(root.path());
    for out in ["there", "there/new", "a/b/new"] {
        try_writing(&root.path().join(out), &disk).unwrap();
        assert_eq!(listing(root.path()), before, "{out}");
    }
    // Like an export, it removes what a writer of that output has left.
    try_writing(&root.path().join("new"), &disk).unwrap();
    assert!(listing(root.path()).len() < before.len());
    let error = try_writing(&root.path().join("file/new"), &disk).unwrap_err().to_string();
    assert!(error.contains("file: File exists"), "{error}");
}

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::Error;
use candle_core::{DType, Tensor};
use rustix::fs::{CWD, FileType, Mode, mknodat};
fn sample(folder: &std::path::Path, file: &str, names: &[&str]) {
    let tensors: std::collections::HashMap<_, _> = names
        .iter()
        .map(|n| (n.to_string(), Tensor::arange(0f32, 6., &crate::HOST).unwrap().reshape((2, 3)).unwrap()))
        .collect();
    candle_core::safetensors::save(&tensors, folder.join(file)).unwrap();
}

#[test]
fn reads_a_single_file_and_checks_the_shape() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "model.safetensors", &["a", "b"]);
    let weights = Weights::open(dir.path(), Library::Transformers).unwrap();
    let a = weights.tensor("a", &[2, 3], DType::F64).unwrap();
    assert_eq!(a.to_vec2::<f64>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
    let error = weights.tensor("a", &[3, 2], DType::F32).unwrap_err().to_string();
    assert!(error.contains("`a` has shape [2, 3], but the configuration asks for [3, 2]"), "{error}");
    let error = weights.tensor("c", &[1], DType::F32).unwrap_err().to_string();
    assert!(error.contains("`c` is missing"), "{error}");
}

#[test]
fn reads_shards_by_their_index_and_keeps_inside_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "m-1.safetensors", &["a"]);
    sample(dir.path(), "m-2.safetensors", &["b"]);
    let index = |map: &str| {
        fs::write(dir.path().join("model.safetensors.index.json"), format!("{{\"weight_map\": {map}}}"))
            .unwrap()
    };
    index(r#"{"a": "m-1.safetensors", "b": "m-2.safetensors"}"#);
    let weights = Weights::open(dir.path(), Library::Transformers).unwrap();
    assert_eq!((weights.entry("a").unwrap().file(), weights.entry("b").unwrap().file()), (0, 1));
    for (map, said) in [
        (r#"{"a": "../m-1.safetensors"}"#, "same folder"),
        (r#"{"a": "/etc/passwd"}"#, "same folder"),
        (r#"{"a": "m-2.safetensors"}"#, "`a` is missing"),
        (r#"{"a": "m-3.safetensors"}"#, "names `m-3.safetensors`, which is missing: complete the download"),
        (r#"{}"#, "names no tensor"),
    ] {
        index(map);
        let error = Weights::open(dir.path(), Library::Transformers).unwrap_err().to_string();
        assert!(error.contains(said), "{map}: {error}");
    }
}

#[test]
fn refuses_damaged_and_hostile_files() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "ok.safetensors", &["a"]);
    let ok = fs::read(dir.path().join("ok.safetensors")).unwrap();
    let huge = [&u64::MAX.to_le_bytes()[..], &ok[8..]].concat();
    let header = br#"{"a":{"dtype":"F32","shape":[9000000000000000000,9],"data_offsets":[0,24]}}"#;
    let overflow = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 24]].concat();
    for (case, bytes) in
        [("empty", &[][..]), ("cut", &ok[..ok.len() - 1]), ("huge header", &huge), ("overflow", &overflow)]
    {
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let error = Weights::open(dir.path(), Library::Transformers).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{case}: {error}");
    }
    let error = Weights::open(dir.path(), Library::Diffusers).unwrap_err().to_string();
    assert!(error.contains("neither diffusion_pytorch_model.safetensors nor"), "{error}");
    fs::write(dir.path().join("diffusion_pytorch_model.bin"), "pickle").unwrap();
    let error = Weights::open(dir.path(), Library::Diffusers).unwrap_err().to_string();
    assert!(error.contains("never reads"), "{error}");
}

/// Files that a folder of weights can hold. The first number of a tensor says which of them was read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Whole,
    Shards,
    IndexAlone,
    Variant,
    ShardsOfVariant,
    Pickle,
}

fn lay(folder: &std::path::Path, stem: &str, part: Part) {
    let marked = |file: String, names: &[&str]| {
        let value = part as u8 as f32;
        let tensors: std::collections::HashMap<_, _> =
            names.iter().map(|n| (n.to_string(), Tensor::new(&[value], &crate::HOST).unwrap())).collect();
        candle_core::safetensors::save(&tensors, folder.join(file)).unwrap();
    };
    let shard = |variant: &str, number: u8| format!("{stem}{variant}-0000{number}-of-00002.safetensors");
    let index = |name: String, variant: &str| {
        let map = format!(r#""a": "{}", "b": "{}""#, shard(variant, 1), shard(variant, 2));
        fs::write(folder.join(name), format!(r#"{{"weight_map": {{{map}}}}}"#)).unwrap();
    };
    match part {
        Part::Whole => marked(format!("{stem}.safetensors"), &["a", "b"]),
        Part::Shards | Part::IndexAlone => {
            if part == Part::Shards {
                marked(shard("", 1), &["a"]);
                marked(shard("", 2), &["b"]);
            }
            index(format!("{stem}.safetensors.index.json"), "");
        }
        Part::Variant => marked(format!("{stem}.fp16.safetensors"), &["a", "b"]),
        Part::ShardsOfVariant => {
            marked(shard(".fp16", 1), &["a"]);
            marked(shard(".fp16", 2), &["b"]);
            index(format!("{stem}.safetensors.index.fp16.json"), ".fp16");
        }
        Part::Pickle => fs::write(folder.join(format!("{stem}.bin")), "pickle").unwrap(),
    }
}

/// The parts that lie in a folder, and what diffusers and transformers read of them.
type Layout<'a> = (&'a [Part], [Result<Part, &'a str>; 2]);

/// What is read where several files could be. The expectations are what diffusers 0.33.1 and transformers 4.51.3 load, which
/// `tests/tests/python.rs` asks for the same folders; but neither pickles nor a part of the shards is ever read here.
#[test]
fn each_library_reads_the_file_that_it_would_read_in_python() {
    use Part::*;
    let refused = Err("");
    let variant = Err("the variant \"fp16\" only");
    let cases: &[Layout] = &[
        (&[Whole], [Ok(Whole), Ok(Whole)]),
        (&[Shards], [Ok(Shards), Ok(Shards)]),
        (&[Whole, Shards], [Ok(Shards), Ok(Whole)]),
        (&[Whole, IndexAlone], [Err("remove the index if it is left over"), Ok(Whole)]),
        (&[IndexAlone], [Err("which is missing"), Err("which is missing")]),
        (&[Variant], [variant, variant]),
        (&[ShardsOfVariant], [variant, variant]),
        (&[Variant, Whole], [Ok(Whole), Ok(Whole)]),
        (&[Variant, Shards], [Ok(Shards), Ok(Shards)]),
        (&[ShardsOfVariant, Whole], [Ok(Whole), Ok(Whole)]),
        (&[Pickle, Whole], [Ok(Whole), Ok(Whole)]),
        (&[Pickle, Shards], [Ok(Shards), Ok(Shards)]),
        (&[Pickle], [Err("pickled weights only"), Err("pickled weights only")]),
        (&[], [refused, refused]),
    ];
    for (parts, expected) in cases {
        for (library, expected) in [Library::Diffusers, Library::Transformers].into_iter().zip(expected) {
            let dir = tempfile::tempdir().unwrap();
            parts.iter().for_each(|part| lay(dir.path(), library.stem(), *part));
            let read = Weights::open(dir.path(), library);
            match expected {
                Ok(part) => {
                    let tensor = read.unwrap().tensor("b", &[1], DType::F32).unwrap();
                    let found = tensor.to_vec1::<f32>().unwrap()[0];
                    assert_eq!(found, *part as u8 as f32, "{library:?}: {parts:?}");
                }
                Err(said) => {
                    let error = read.unwrap_err().to_string();
                    assert!(error.contains(said), "{library:?}: {parts:?}: {error}");
                }
            }
        }
    }
}

/// The index of shards has their names in it.
#[test]
fn renaming_is_advised_for_a_single_file_of_a_variant_alone() {
    for (part, is_advised) in [(Part::Variant, true), (Part::ShardsOfVariant, false)] {
        for library in [Library::Diffusers, Library::Transformers] {
            let dir = tempfile::tempdir().unwrap();
            lay(dir.path(), library.stem(), part);
            let error = Weights::open(dir.path(), library).unwrap_err().to_string();
            let advice = format!("or rename it to {}.safetensors", library.stem());
            assert!(
                error.contains("save it again") && error.contains(&advice) == is_advised,
                "{part:?}: {error}"
            );
        }
    }
}

#[test]
fn what_is_no_regular_file_is_refused_where_weights_and_configurations_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "config.json"] {
        mknodat(CWD, dir.path().join(name), FileType::Fifo, Mode::RUSR, 0).unwrap();
    }
    let said = "is a FIFO: give a regular file";
    let error = Weights::open(dir.path(), Library::Transformers).unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
    let error = read_json::<serde_json::Value>(&dir.path().join("config.json")).unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
    let error = sha256(&dir.path().join("config.json")).unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
}

#[test]
fn whoever_has_to_know_is_told_of_each_tensor_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "model.safetensors", &["a", "b"]);
    let weights = Weights::open(dir.path(), Library::Transformers).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    weights.call_on_read(Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    weights.tensor("a", &[2, 3], DType::F32).unwrap();
    weights.rows("b", [2, 3], 1..2).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn a_file_that_becomes_shorter_is_named_and_ends_no_process() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "model.safetensors", &["a", "b"]);
    let path = dir.path().join("model.safetensors");
    let weights = Weights::open(dir.path(), Library::Transformers).unwrap();
    let b = weights.entry("b").unwrap().bytes();
    File::options().write(true).open(&path).unwrap().set_len(b.end as u64 - 1).unwrap();
    weights.tensor("a", &[2, 3], DType::F32).unwrap();
    let errors = [
        weights.tensor("b", &[2, 3], DType::F32).map(drop).unwrap_err(),
        weights.rows("b", [2, 3], 1..2).map(drop).unwrap_err(),
        weights.bytes("b").map(drop).unwrap_err(),
        weights.copy(weights.entry("b").unwrap(), 0..b.len(), &mut |_| Ok(())).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, Error::Changed { path: found } if *found == path), "{error}");
    }
    assert_eq!(weights.rows("b", [2, 3], 0..1).unwrap().len(), 3);
    assert!(weights.rows("b", [2, 3], 1..3).unwrap_err().to_string().contains("has no rows 1..3"));
}

use std::fs;

use candle_core::{DType, Device, Tensor};

use super::*;

fn sample(folder: &std::path::Path, file: &str, names: &[&str]) {
    let tensors: std::collections::HashMap<_, _> = names
        .iter()
        .map(|n| (n.to_string(), Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((2, 3)).unwrap()))
        .collect();
    candle_core::safetensors::save(&tensors, folder.join(file)).unwrap();
}

#[test]
fn reads_a_single_file_and_checks_the_shape() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "model.safetensors", &["a", "b"]);
    let weights = Weights::open(dir.path(), "model").unwrap();
    let a = weights.tensor("a", &[2, 3], DType::F64, &Device::Cpu).unwrap();
    assert_eq!(a.to_vec2::<f64>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
    let error = weights.tensor("a", &[3, 2], DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("`a` has shape [2, 3], but the configuration asks for [3, 2]"), "{error}");
    let error = weights.tensor("c", &[1], DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("`c` is missing"), "{error}");
}

#[test]
fn reads_shards_by_their_index_and_keeps_inside_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), "m-1.safetensors", &["a"]);
    sample(dir.path(), "m-2.safetensors", &["b"]);
    let index = |map: &str| {
        fs::write(dir.path().join("m.safetensors.index.json"), format!("{{\"weight_map\": {map}}}")).unwrap()
    };
    index(r#"{"a": "m-1.safetensors", "b": "m-2.safetensors"}"#);
    let weights = Weights::open(dir.path(), "m").unwrap();
    assert_eq!((weights.entry("a").unwrap().file(), weights.entry("b").unwrap().file()), (0, 1));
    for (map, said) in [
        (r#"{"a": "../m-1.safetensors"}"#, "same folder"),
        (r#"{"a": "/etc/passwd"}"#, "same folder"),
        (r#"{"a": "m-2.safetensors"}"#, "`a` is missing"),
        (r#"{"a": "m-3.safetensors"}"#, "No such file"),
        (r#"{}"#, "names no tensor"),
    ] {
        index(map);
        let error = Weights::open(dir.path(), "m").unwrap_err().to_string();
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
        fs::write(dir.path().join("m.safetensors"), bytes).unwrap();
        let error = Weights::open(dir.path(), "m").unwrap_err().to_string();
        assert!(error.contains("m.safetensors"), "{case}: {error}");
    }
    let error = Weights::open(dir.path(), "absent").unwrap_err().to_string();
    assert!(error.contains("neither absent.safetensors nor"), "{error}");
    fs::write(dir.path().join("absent.bin"), "pickle").unwrap();
    let error = Weights::open(dir.path(), "absent").unwrap_err().to_string();
    assert!(error.contains("never reads"), "{error}");
}

//! Copies of the shipped pipeline to damage, and checkpoints whose weights follow a formula, so that PyTorch can fill the same.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;
use tempfile::TempDir;

/// A component of the shipped pipeline; the pipeline itself for "".
pub(crate) fn asset(component: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/shapes-sd3")).join(component)
}

/// A copy of a component, or of the whole pipeline for "".
pub(crate) fn copy_folder(component: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    obsdiff_tests::copy_folder(&asset(component), target.path());
    target
}

/// Changes a JSON file.
pub(crate) fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Saves tensors whose number i is sin(0.9 i + the sum of the bytes of the tensor's name) / 2.
pub(crate) fn save_formula(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let fill = |(name, shape): &(String, Vec<usize>)| {
        let phase: f64 = name.bytes().map(f64::from).sum();
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (0.5 * (0.9 * i as f64 + phase).sin()) as f32).collect();
        (name.clone(), Tensor::from_vec(values, shape.as_slice(), &crate::HOST).unwrap())
    };
    let tensors: HashMap<String, Tensor> = tensors.iter().map(fill).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// Holds numbers against those that PyTorch printed.
pub(crate) fn assert_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "{found} for {expected}");
    }
}

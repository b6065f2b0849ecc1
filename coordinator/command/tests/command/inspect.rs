use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{asset, pipeline, told};

#[test]
fn a_pipeline_is_shown_linear_by_linear() {
    let path = pipeline();
    let table = told(Path::new("."), &["inspect", path.to_str().unwrap()]);
    let row = table.lines().find(|line| line.starts_with("transformer_blocks.3.ff.net.2 ")).unwrap();
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>()[1..],
        ["128", "x", "512", "f16", "0", "0.00%", "dense"]
    );
    assert!(table.contains("linears that obsdiff prunes (69)"), "{table}");
    let at = |name: &str| table.find(name).unwrap();
    assert!(at("transformer_blocks.2.attn.to_q") < at("transformer_blocks.3.attn.to_q"));
}

#[test]
fn a_pipeline_its_transformer_and_its_file_are_the_same_model() {
    let path = pipeline().join("transformer");
    let file = path.join("diffusion_pytorch_model.safetensors");
    let totals = [pipeline(), path, file].map(|p| {
        let json: serde_json::Value =
            serde_json::from_str(&told(Path::new("."), &["inspect", p.to_str().unwrap(), "--json"])).unwrap();
        (json["prunable"].clone(), json["whole"].clone())
    });
    assert_eq!(totals[0], totals[1]);
    assert_eq!(totals[0], totals[2]);
    assert_eq!(totals[0].0["weights"], 2_211_840);
}

#[test]
fn golden_pruned_weights_show_their_pattern() {
    let json = |name: &str| -> serde_json::Value {
        let path = asset("goldens/shapes-sd3").join(name);
        serde_json::from_str(&told(Path::new("."), &["inspect", path.to_str().unwrap(), "--json"])).unwrap()
    };
    for (file, pattern) in
        [("pruned-2-4.safetensors", "2:4"), ("pruned-unstructured-50.safetensors", "unstructured")]
    {
        let found = json(file);
        let linears = found["linears"].as_array().unwrap();
        assert_eq!(linears.len(), 69, "{file}");
        for linear in linears {
            assert_eq!(linear["pattern"], pattern, "{file}: {linear}");
            assert!((linear["sparsity"].as_f64().unwrap() - 0.5).abs() < 0.01, "{file}: {linear}");
        }
    }
}

#[test]
fn any_folder_of_safetensors_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let half = Tensor::new(&[[0f32, 1., 0., 2.], [3., 0., 4., 0.]], &Device::Cpu)
        .unwrap()
        .to_dtype(DType::BF16)
        .unwrap();
    let tensors =
        HashMap::from([("layer.10.weight".to_owned(), half.clone()), ("layer.9.weight".to_owned(), half)]);
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    let table = told(dir.path(), &["inspect", "."]);
    let rows: Vec<Vec<&str>> =
        table.lines().filter(|l| l.starts_with("layer")).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["layer.9", "2", "x", "4", "bf16", "4", "50.00%", "1:2"]);
    assert_eq!(rows[1][0], "layer.10");
    fs::copy(dir.path().join("model.safetensors"), dir.path().join("other.safetensors")).unwrap();
    let output = crate::obsdiff(dir.path(), &["inspect", "."], &[]);
    assert!(
        crate::text(&output.stderr)
            .contains("holds several models without an index (model.safetensors, other.safetensors)")
    );
}

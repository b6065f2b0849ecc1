use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{asset, pipeline, printed};

#[test]
fn a_pipeline_is_shown_linear_by_linear() {
    let path = pipeline();
    let table = printed(Path::new("."), &["inspect", path.to_str().unwrap()]);
    let row = row_of(&table, "transformer_blocks.3 (f16)", "ff.net.2");
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["ff.net.2", "128", "x", "512", "0.00%", "dense"]);
    let row = row_of(&table, "time_text_embed.timestep_embedder (f16)", "linear_1");
    assert!(row.ends_with(" (dense)"), "{row}");
    assert!(row_of(&table, "top level (f16)", "context_embedder").contains(" x "));
    let says = "\nlinears that obsdiff prunes (69): 0.00% of 2.21 M weights are zeros\nall tensors (";
    assert!(table.contains(says), "{table}");
    let at = |name: &str| table.find(name).unwrap();
    assert!(at("\ntransformer_blocks.2 (f16)\n") < at("\ntransformer_blocks.3 (f16)\n"));
}

/// The row of a linear below the heading of its block.
pub(crate) fn row_of<'t>(table: &'t str, block: &str, name: &str) -> &'t str {
    let mut rows = table.lines().skip_while(|line| *line != block).skip(1);
    let row = rows
        .by_ref()
        .take_while(|line| line.starts_with("  "))
        .find(|row| row.split_whitespace().next() == Some(name));
    row.unwrap_or_else(|| panic!("no {name} in {block}: {table}"))
}

/// A pruned FLUX.1-dev of which the files are holes: names, shapes and figures are as wide as they get.
#[test]
fn the_table_fits_80_columns_whatever_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let transformer = folder.path().join("transformer");
    fs::create_dir(&transformer).unwrap();
    let config = asset("published/flux.1-dev/config.json");
    fs::copy(config, transformer.join("config.json")).unwrap();
    let linears = ["single_transformer_blocks.37.proj_out", "transformer_blocks.18.ff_context.net.0.proj"];
    let others = [
        "time_text_embed.guidance_embedder.linear_1",
        "some_other.part_of.which_nobody.knows.anything_at_all",
    ];
    let (mut end, mut header) = (0_u64, serde_json::Map::new());
    for name in linears.iter().chain(&others) {
        let begin = end;
        end += 12288 * 15360 * 2;
        let entry =
            serde_json::json!({ "dtype": "BF16", "shape": [12288, 15360], "data_offsets": [begin, end] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let path = transformer.join("diffusion_pytorch_model.safetensors");
    fs::write(&path, &bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes.len() as u64 + end).unwrap();
    let width = |table: &str| {
        table.lines().take_while(|line| !line.is_empty()).map(|line| line.chars().count()).max()
    };
    let table = printed(folder.path(), &["inspect", "transformer"]);
    assert!(width(&table) <= Some(80) && table.contains("12288 x 15360"), "{table}");
}

#[test]
fn a_pipeline_its_transformer_and_its_file_are_the_same_model() {
    let path = pipeline().join("transformer");
    let file = path.join("diffusion_pytorch_model.safetensors");
    let totals = [pipeline(), path, file].map(|p| {
        let json: serde_json::Value =
            serde_json::from_str(&printed(Path::new("."), &["inspect", p.to_str().unwrap(), "--json"]))
                .unwrap();
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
        serde_json::from_str(&printed(Path::new("."), &["inspect", path.to_str().unwrap(), "--json"]))
            .unwrap()
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
    let table = printed(dir.path(), &["inspect", "."]);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("  "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["9", "2", "x", "4", "50.00%", "1:2"]);
    assert_eq!(rows[1][0], "10");
    assert!(table.contains("\nlayer (bf16)\n"), "{table}");
    fs::copy(dir.path().join("model.safetensors"), dir.path().join("other.safetensors")).unwrap();
    let output = crate::obsdiff(dir.path(), &["inspect", "."], &[]);
    assert!(
        crate::text(&output.stderr)
            .contains("holds several models without an index (model.safetensors, other.safetensors)")
    );
}

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use candle_core::{Device, Tensor};
use obsdiff_tests::copy_folder;

use crate::{obsdiff, pipeline, printed, text};

/// Width, height and bytes of a PNG file.
pub(crate) fn read(path: &Path) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgb).unwrap();
    (info.width, info.height, rgb)
}

const QUICK: [&str; 6] = ["--steps", "2", "--max-sequence-length", "24", "--threads", "1"];

#[test]
fn samples_are_the_same_in_a_grid_and_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = pipeline();
    let prompts = ["--prompt", "a red circle", "--prompt", "a blue square"];
    let common = [&["sample", path.to_str().unwrap()][..], &prompts, &QUICK].concat();
    assert_eq!(printed(dir.path(), &[&common[..], &["--out", "g.png"]].concat()), "g.png\n");
    let listed = printed(dir.path(), &[&common[..], &["--out", "pictures", "--batch", "1"]].concat());
    assert_eq!(listed, "pictures/0000.png  a red circle\npictures/0001.png  a blue square\n");
    let (width, height, grid) = read(&dir.path().join("g.png"));
    assert_eq!((width, height), (32 + 4 + 32, 32));
    let (_, _, second) = read(&dir.path().join("pictures/0001.png"));
    let right: Vec<u8> = grid.chunks_exact(68 * 3).flat_map(|row| &row[36 * 3..]).copied().collect();
    assert_eq!(right, second);
}

#[test]
fn a_comparison_tells_equal_models_from_different_ones() {
    let dir = tempfile::tempdir().unwrap();
    copy_folder(&pipeline(), &dir.path().join("dense"));
    copy_folder(&pipeline(), &dir.path().join("pruned"));
    let weights = dir.path().join("pruned/transformer/diffusion_pytorch_model.safetensors");
    let compare = |says: &str| {
        let prompts = ["compare", "dense", "pruned", "--prompt", "a red circle"];
        let table = printed(dir.path(), &[&prompts[..], &QUICK].concat());
        assert!(table.contains(says), "{table}");
        assert_eq!(read(&dir.path().join("compare.png")).1, 32 + 4 + 32);
        table
    };
    compare("mean                0.0000  equal");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let down = tensors.get_mut("transformer_blocks.2.ff.net.2.weight").unwrap();
    *down = down.zeros_like().unwrap();
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let table = compare(" dB");
    let mean: f64 =
        table.lines().find_map(|l| l.strip_prefix("mean")?.split_whitespace().next()?.parse().ok()).unwrap();
    assert!(mean > 1e-3, "{table}");
}

#[test]
fn progress_is_lines_where_it_is_piped_and_nothing_where_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let path = pipeline();
    let args = [&["sample", path.to_str().unwrap(), "--prompt", "a red circle"][..], &QUICK].concat();
    let said = text(&obsdiff(dir.path(), &args, &[]).stderr);
    let phases: Vec<&str> = said.lines().map(|line| line.split(" in ").next().unwrap()).collect();
    assert_eq!(phases, ["encode: 2 prompts", "sample: 2 prompt steps"]);
    assert_eq!(text(&obsdiff(dir.path(), &[&args[..], &["--quiet"]].concat(), &[]).stderr), "");
    fs::remove_file(dir.path().join("sample.png")).unwrap();
}

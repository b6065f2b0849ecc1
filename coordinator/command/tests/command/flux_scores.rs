//! FLUX.1 by methods that score each weight once: whole jobs, held to scores that are computed here.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::DType;
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::pipeline::PipelineFolder;
use serde_json::Value;

use crate::flux::mean;
use crate::structured::job;
use crate::{asset, printed};

/// Columns whose weights `magnitude` compares with each other, those of all rows together.
const BLOCK: usize = 128;

/// The squares of the norms of what each linear reads, by the name of the site, from the Grams that a job kept in `folder`.
fn energies(folder: &Path) -> HashMap<String, Vec<f64>> {
    let index: Value = serde_json::from_slice(&fs::read(folder.join("grams.json")).unwrap()).unwrap();
    let of_site = |site: &Value| {
        let n = site["width"].as_u64().unwrap() as usize;
        let object = format!("grams/{}.safetensors", site["gram"]["sha256"].as_str().unwrap());
        let gram = Weights::open_file(&folder.join(object)).unwrap();
        let sums = gram.bytes("sums").unwrap();
        let upper: Vec<i64> = sums.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        assert_eq!(upper.len(), n * (n + 1) / 2);
        // Row after row, each from its diagonal on.
        let diagonal = (0..n).map(|j| upper[j * n - j * j.saturating_sub(1) / 2] as f64);
        (site["name"].as_str().unwrap().to_owned(), diagonal.collect())
    };
    index["content"]["sites"].as_array().unwrap().iter().map(of_site).collect()
}

/// How many weights go of each group whose scores are compared with each other, and their places in a weight of `rows x n`.
fn groups(method: &str, pattern: &str, rows: usize, n: usize) -> Vec<(usize, Vec<usize>)> {
    let of_columns = |rows: std::ops::Range<usize>, first: usize, end: usize| -> Vec<usize> {
        rows.flat_map(|row| (first..end.min(n)).map(move |column| row * n + column)).collect()
    };
    let groups: Vec<Vec<usize>> = match (pattern, method) {
        ("2:4", _) => (0..rows)
            .flat_map(|row| (0..n).step_by(4).map(move |first| (row, first)))
            .map(|(row, first)| of_columns(row..row + 1, first, first + 4))
            .collect(),
        (_, "magnitude") => {
            (0..n).step_by(BLOCK).map(|first| of_columns(0..rows, first, first + BLOCK)).collect()
        }
        _ => (0..rows).map(|row| of_columns(row..row + 1, 0, n)).collect(),
    };
    groups.into_iter().map(|places| (places.len() / 2, places)).collect()
}

/// Runs a job by a method, and holds every tensor of its output: the lowest scores of each group are zero, all else is as it was.
fn holds(method: &str, pattern: &str) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let source = asset("shapes-flux");
    let ratio = if pattern == "2:4" { "" } else { "ratio = 0.5\n" };
    let sparsity = format!("method = {method:?}\nrefine = 0\npattern = {pattern:?}\n{ratio}");
    let grams = if method == "wanda" { "grams = \"grams\"" } else { "" };
    let file = job(folder, "out", source.to_str().unwrap(), &sparsity, grams);
    let sets = ["calibration.height=32", "calibration.width=32", "packages.count=1"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let said = printed(folder, &[&["run", &file, "--quiet"][..], &sets].concat());
    assert!(said.contains("50.00%") && said.contains(method), "{said}");

    let [dense, pruned] = [source.join("transformer"), folder.join("out/transformer")]
        .map(|folder| Weights::open(&folder, Library::Diffusers).unwrap());
    let inventory = PipelineFolder::open(&source).unwrap().transformer_config().inventory();
    let energies = if grams.is_empty() { HashMap::new() } else { energies(&folder.join("grams")) };
    // Twelve in each of 3 double-stream blocks, five in each of 5 single-stream blocks.
    assert_eq!(inventory.linears.len(), 3 * 12 + 5 * 5);
    for linear in &inventory.linears {
        let site = inventory.site(linear.site);
        let (rows, n) = (linear.rows, site.width);
        let name = format!("{}.weight", linear.name);
        let [before, after] = [&dense, &pruned].map(|weights| {
            let weight = weights.tensor(&name, &[rows, n], DType::F32).unwrap();
            weight.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        let score = |at: usize| {
            let norm = energies.get(&site.name).map_or(1.0, |energies| energies[at % n].sqrt());
            f64::from(before[at].abs()) * norm
        };
        for (going, places) in groups(method, pattern, rows, n) {
            let (gone, kept): (Vec<usize>, Vec<usize>) = places.into_iter().partition(|at| after[*at] == 0.0);
            assert_eq!(gone.len(), going, "{name}");
            let highest = gone.into_iter().map(score).fold(0.0, f64::max);
            let lowest = kept.iter().map(|at| score(*at)).fold(f64::INFINITY, f64::min);
            // Scores are of 32 bits there.
            assert!(highest <= lowest * (1.0 + 1e-6), "{name}: {highest} goes and {lowest} stays");
            assert!(kept.iter().all(|at| after[*at] == before[*at]), "{name}: a weight that stays has moved");
        }
    }
    let is_pruned =
        |name: &str| inventory.linears.iter().any(|linear| name == format!("{}.weight", linear.name));
    for (name, _) in dense.entries().filter(|(name, _)| !is_pruned(name)) {
        assert!(dense.bytes(name).unwrap() == pruned.bytes(name).unwrap(), "{name}");
    }
    seen(folder, source.to_str().unwrap());
}

/// The output is a pipeline: `sample` draws by it, and `compare` finds it near the dense one and not equal.
fn seen(folder: &Path, source: &str) {
    let size = [
        "--prompt",
        "a red circle on white",
        "--guidance",
        "3.5",
        "--steps",
        "3",
        "--height",
        "32",
        "--width",
        "32",
    ];
    let size = [&size[..], &["--max-sequence-length", "24"]].concat();
    let picture = |pipeline: &str| {
        printed(folder, &[&["sample", pipeline][..], &size].concat());
        let file = folder.join("sample.png");
        let picture = fs::read(&file).unwrap();
        fs::remove_file(file).unwrap();
        picture
    };
    assert!(picture(source) != picture("out"), "the picture of the pruned pipeline is the dense one's");
    let error = mean(&printed(folder, &[&["compare", source, "out"][..], &size].concat()));
    assert!(error > 1e-3 && error < 1.0, "{error}");
}

#[test]
fn half_of_the_weights_go_by_magnitude() {
    holds("magnitude", "unstructured");
}

#[test]
fn two_of_four_go_by_magnitude() {
    holds("magnitude", "2:4");
}

#[test]
fn half_of_the_weights_of_each_row_go_by_wanda() {
    holds("wanda", "unstructured");
}

#[test]
fn two_of_four_go_by_wanda() {
    holds("wanda", "2:4");
}

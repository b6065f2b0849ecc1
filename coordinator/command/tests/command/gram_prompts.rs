//! Grams over fewer prompts, kept beside those over all, and Grams that are kept as floats.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::grams::{SMALL, keep, refused, weights, with_sets};
use crate::setting::{Case, refused as refused_cases};
use crate::{asset, printed};

/// A job of six prompts that keeps the Grams of the first two and four besides.
const SIX: [&str; 2] = ["calibration.count=6", "output.gram_prompts=[2, 4]"];

/// The sites of kept Grams.
fn sites(folder: &Path) -> Value {
    let index: Value = serde_json::from_slice(&fs::read(folder.join("grams/grams.json")).unwrap()).unwrap();
    let sites = index["content"]["sites"].clone();
    assert!(sites.is_array(), "{index}");
    sites
}

/// The record of a pruned pipeline.
fn record(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("pruning.json")).unwrap()).unwrap()
}

#[test]
fn grams_over_fewer_prompts_prune_as_a_whole_job_of_so_few() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &SIX);
    let (grams, file) = (dir.path().join("grams"), dir.path().join("job.toml"));
    for prompts in [2, 4, 6] {
        let (solved, whole) =
            (dir.path().join(format!("solved-{prompts}")), dir.path().join(format!("whole-{prompts}")));
        let of_solved = format!("output.path={}", solved.display());
        let of_prompts = format!("calibration.gram_prompts={prompts}");
        let sets = ["sparsity.ratio=0.6", &of_prompts, &of_solved];
        printed(&asset("."), &with_sets(&["solve", grams.to_str().unwrap()], &sets));
        let count = format!("calibration.count={prompts}");
        let of_whole = format!("output.path={}", whole.display());
        let sets = ["sparsity.ratio=0.6", &count, &of_whole];
        printed(&asset("."), &with_sets(&with_sets(&["run", file.to_str().unwrap()], &SMALL), &sets));
        assert!(weights(&solved) == weights(&whole), "{prompts} prompts: the weights differ");
    }
    assert!(
        weights(&dir.path().join("solved-2")) != weights(&dir.path().join("solved-4")),
        "more prompts prune otherwise"
    );
}

#[test]
fn workers_that_share_the_prompts_keep_the_same_grams_of_fewer() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for (folder, workers) in [(&one, "1"), (&two, "2")] {
        fs::create_dir(folder).unwrap();
        let file = crate::job(folder);
        let grams = format!("output.grams={}", folder.join("grams").display());
        let arguments = with_sets(&["run", file.to_str().unwrap(), "--workers", workers], &SMALL);
        printed(&asset("."), &with_sets(&with_sets(&arguments, &SIX), &[&grams]));
    }
    let kept = sites(&one);
    assert_eq!(kept, sites(&two));
    let of_fewer = kept[0]["of_fewer"].as_array().unwrap();
    assert_eq!(of_fewer.iter().map(|one| one["prompts"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4]);
    let named: usize = kept.as_array().unwrap().len() * 3;
    assert_eq!(
        fs::read_dir(one.join("grams/grams")).unwrap().count(),
        named,
        "all that is named, and no more"
    );
}

#[test]
fn a_sweep_over_prompts_shows_errors_against_them() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &[&SIX[..], &["sparsity.allocation=uniform"]].concat());
    let (grams, out) = (dir.path().join("grams"), dir.path().join("sweep"));
    let options = ["--ratios", "0.6", "--prompts", "2,4,6", "--out", out.to_str().unwrap()];
    let text = printed(&asset("."), &[&["sweep", grams.to_str().unwrap()], &options[..]].concat());
    let csv = fs::read_to_string(out.join("sweep.csv")).unwrap();
    let fields: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(fields[0][..4], ["pattern", "ratio", "prompts", "expected_velocity_error"]);
    let prompts: Vec<&str> = fields[1..].iter().map(|row| row[2]).collect();
    assert_eq!(prompts, ["2", "4", "6"]);
    let errors: Vec<f64> = fields[1..].iter().map(|row| row[4].parse().unwrap()).collect();
    assert!(errors[0] > errors[2], "six prompts are better than two: {csv}");
    for (row, error) in fields[1..].iter().zip(&errors) {
        let printed = text.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&"unstructured")
                && words.get(2) == Some(&row[2])
                && words.last() == Some(&format!("{error:.4}").as_str())
        });
        assert!(printed, "{row:?} is not in {text}");
    }
    assert!(out.join("sweep.png").is_file());
    let none = ["--ratios", "0.6", "--prompts", "3", "--out", "none"];
    let said = refused(dir.path(), &[&["sweep", grams.to_str().unwrap()], &none[..]].concat());
    assert!(said.contains("holds Grams over 2, 4, 6 prompts: give one of these"), "{said}");
}

#[test]
fn settings_that_the_kept_job_had_by_default_follow_the_new_method() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &[]);
    let grams = dir.path().join("grams");
    let sparsity = |name: &str, sets: &[&str]| {
        let out = dir.path().join(name);
        let output = format!("output.path={}", out.display());
        printed(&asset("."), &with_sets(&with_sets(&["solve", grams.to_str().unwrap()], sets), &[&output]));
        record(&out)["job"]["sparsity"].clone()
    };
    // Ratios by probe are a default of alternating directions alone.
    let wanda = sparsity("wanda", &["sparsity.method=wanda"]);
    assert_eq!((&wanda["method"], &wanda["allocation"]), (&"wanda".into(), &"uniform".into()));
    let pattern = sparsity("pattern", &["sparsity.pattern=2:4"]);
    assert_eq!((&pattern["method"], &pattern["allocation"]), (&"admm".into(), &Value::Null));
    let same = sparsity("same", &["sparsity.ratio=0.4"]);
    assert_eq!((&same["method"], &same["allocation"]), (&"admm".into(), &"global".into()));
}

#[test]
fn numbers_of_prompts_that_no_grams_can_be_kept_of_are_refused() {
    const GRAMS: &str = "output.grams=grams";
    refused_cases(&[
        Case {
            name: "part of a shard",
            args: &["run", "job.toml", "--set", GRAMS, "--set", "output.gram_prompts=[3]"],
            arrange: |_| {},
            says: &[
                "output.gram_prompts: holds 3",
                "a multiple of calibration.shard_size, 4, below calibration.count, 8",
            ],
        },
        Case {
            name: "all prompts",
            args: &["run", "job.toml", "--set", GRAMS, "--set", "output.gram_prompts=[4, 8]"],
            arrange: |_| {},
            says: &["output.gram_prompts: holds 8"],
        },
        Case {
            name: "not ascending",
            args: &[
                "run",
                "job.toml",
                "--set",
                GRAMS,
                "--set",
                "calibration.shard_size=1",
                "--set",
                "output.gram_prompts=[4, 2]",
            ],
            arrange: |_| {},
            says: &["output.gram_prompts: is [4, 2], but numbers of prompts must ascend"],
        },
        Case {
            name: "sums of floats",
            args: &[
                "run",
                "job.toml",
                "--set",
                GRAMS,
                "--set",
                "output.gram_prompts=[4]",
                "--set",
                "hessian.accumulate=f32",
            ],
            arrange: |_| {},
            says: &["output.gram_prompts: needs hessian.accumulate = \"exact\""],
        },
        Case {
            name: "several packages",
            args: &[
                "run",
                "job.toml",
                "--set",
                GRAMS,
                "--set",
                "output.gram_prompts=[4]",
                "--set",
                "packages.count=2",
            ],
            arrange: |_| {},
            says: &["output.gram_prompts: needs one package"],
        },
        Case {
            name: "nothing is kept",
            args: &["run", "job.toml", "--set", "output.gram_prompts=[4]"],
            arrange: |_| {},
            says: &["output.gram_prompts: has no effect: there is no output.grams"],
        },
    ]);
}

#[test]
fn grams_kept_as_floats_take_half_the_bytes_and_prune_nearly_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (exact, floats) = (dir.path().join("exact"), dir.path().join("floats"));
    let mut bytes = Vec::new();
    let mut solved = Vec::new();
    for (folder, sets) in [(&exact, &[][..]), (&floats, &["output.gram_precision=f32"][..])] {
        fs::create_dir(folder).unwrap();
        keep(folder, sets);
        let files = fs::read_dir(folder.join("grams/grams")).unwrap();
        bytes.push(files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>());
        let output = format!("output.path={}", folder.join("solved").display());
        let kept = folder.join("grams");
        let sets = ["sparsity.ratio=0.6", &output];
        let run = crate::obsdiff(&asset("."), &with_sets(&["solve", kept.to_str().unwrap()], &sets), &[]);
        let said = crate::text(&run.stderr);
        assert!(run.status.success(), "{said}");
        assert_eq!(said.contains("these Grams were kept as 32-bit floats"), folder == &floats, "{said}");
        solved.push(weights(&folder.join("solved")));
    }
    assert!((0.45..0.6).contains(&(bytes[1] as f64 / bytes[0] as f64)), "{bytes:?}");
    let zero =
        |weights: &[u8]| -> Vec<bool> { weights.as_chunks::<2>().0.iter().map(|w| *w == [0, 0]).collect() };
    let (before, after) = (zero(&solved[0]), zero(&solved[1]));
    assert_eq!(before.len(), after.len());
    let same = before.iter().zip(&after).filter(|(a, b)| a == b).count() as f64 / before.len() as f64;
    assert!(same > 0.999, "{same} of the mask agrees");
}

//! Ratios where they cost least: what plan, run and inspect show of them.

use serde_json::Value;

use crate::{asset, job, obsdiff, pipeline, printed, text};

/// A small job by which linears are surveyed.
const GLOBAL: [&str; 8] = [
    "--set",
    "calibration.count=2",
    "--set",
    "calibration.steps=2",
    "--set",
    "calibration.height=32",
    "--set",
    "calibration.width=32",
];

#[test]
fn the_plan_calibrates_once_for_a_survey_and_the_package_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = job(dir.path());
    let plan = printed(&asset("."), &[&["plan", file.to_str().unwrap()], &GLOBAL[..]].concat());
    assert!(
        plan.contains("50% unstructured, of each linear as much as costs least over the model"),
        "{plan}"
    );
    let row = |start: &str| -> Vec<&str> {
        let row = plan.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{plan}"));
        row.split_whitespace().collect()
    };
    let (survey, pruning) = (row("1 (survey)"), row("2 "));
    assert_eq!(survey[4], "69");
    assert_eq!(pruning[3], "69");
    // 2 prompts of 2 steps with guidance; those steps of the probe's prompt; and for each linear, at 2 points with guidance, the blocks from
    // its own on, 0.58 of a call on average. Then none.
    assert_eq!([survey.last(), pruning.last()], [Some(&"174"), Some(&"0")], "{plan}");
}

#[test]
fn what_each_linear_costs_is_told_by_the_summary_and_by_inspect() {
    let dir = tempfile::tempdir().unwrap();
    let file = job(dir.path());
    let arguments = [&["run", file.to_str().unwrap(), "--set", "evaluation.count=0"], &GLOBAL[..]].concat();
    let output = obsdiff(&asset("."), &arguments, &[]);
    let (summary, progress) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{progress}");
    assert!(
        progress.contains("package 1/2: 69 linears, on the source to find what pruning each costs"),
        "{progress}"
    );
    assert!(!progress.contains("package 2/2: calibrate"), "the second package calibrates again: {progress}");
    let expected = |text: &str, start: &str| {
        let line = text.lines().find_map(|line| line.split_once(start)).unwrap_or_else(|| panic!("{text}"));
        line.1.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let of_progress = expected(&progress, "the velocity is expected to differ from the source's by ");
    assert_eq!(of_progress, expected(&summary, "velocity differs from the source's by "));
    assert!(of_progress > 0.0 && of_progress < 1.0, "{of_progress}");
    let header = summary.lines().find(|line| line.starts_with("moving the velocity most")).unwrap();
    assert!(header.ends_with("moves it by"), "{header}");
    let bars = summary.lines().filter(|line| line.starts_with("transformer_blocks.") && line.contains('█'));
    assert_eq!(bars.count(), 6, "{summary}");
    let json = |path: &std::path::Path| -> Value {
        serde_json::from_str(&printed(dir.path(), &["inspect", path.to_str().unwrap(), "--json"])).unwrap()
    };
    let pruned = json(&dir.path().join("out"));
    let linears = pruned["linears"].as_array().unwrap();
    let prunable: Vec<_> = linears.iter().filter(|linear| linear["prunable"] == true).collect();
    assert!(prunable.iter().all(|l| l["cost"].is_number() && l["relative_error"].is_number()));
    assert!(linears.iter().any(|linear| linear.get("cost").is_none()), "modulation has no cost");
    let table = printed(dir.path(), &["inspect", "out"]);
    assert!(table.lines().next().unwrap().ends_with("cost"), "{table}");
    let rows = table.lines().take_while(|line| !line.is_empty());
    assert!(rows.map(|row| row.chars().count()).max() <= Some(80), "{table}");
    // Of a pipeline that obsdiff never pruned nothing is recorded.
    assert!(
        json(&pipeline())["linears"].as_array().unwrap().iter().all(|linear| linear.get("cost").is_none())
    );
}

#[test]
fn a_pattern_that_cannot_be_allocated_is_refused_with_the_key_that_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = job(dir.path());
    for (sets, says) in [
        (
            &["sparsity.pattern=2:4", "sparsity.allocation=global"][..],
            "leave it out, or unset it by --set sparsity.allocation=; where some linears are to stay dense, set sparsity.dense",
        ),
        (&["sparsity.pattern=structured", "sparsity.allocation=global"], "allocated by sparsity.budget"),
        (
            &["sparsity.allocation=global", "sparsity.method=magnitude", "sparsity.refine=0"],
            "needs activations",
        ),
    ] {
        let mut arguments = vec!["plan", file.to_str().unwrap()];
        arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let output = obsdiff(&asset("."), &arguments, &[]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{sets:?}: {said}");
    }
}

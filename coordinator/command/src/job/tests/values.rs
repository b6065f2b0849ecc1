//! Values of the wrong type, out of range, or without effect: each is refused by its key.

use super::overrides::{assignments, whole};
use super::*;

/// A job with one key set in TOML, over whatever the file says.
fn with(job: &str, key: &str, value: &str) -> String {
    let mut table: toml::Table = job.parse().unwrap();
    let (section, name) = key.split_once('.').unwrap();
    let value = toml::from_str::<toml::Table>(&format!("value = {value}")).unwrap().remove("value").unwrap();
    let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().unwrap().insert(name.to_owned(), value);
    toml::to_string(&table).unwrap()
}

const STRUCTURED: &str = r#"
    [model]
    path = "pipeline"
    [sparsity]
    pattern = "structured"
    budget = 0.25
    [calibration]
    prompts = "prompts.txt"
    [output]
    path = "out"
"#;

#[test]
fn every_key_refuses_other_types_by_its_name() {
    let types =
        [("text", "\"0.5\""), ("number", "1"), ("flag", "true"), ("list", "[1]"), ("table", "{ a = 1 }")];
    for (key, value) in assignments(&whole()) {
        // Items of a list differ by their place, which the list's own test does.
        if key.contains('[') {
            continue;
        }
        let own = match value.as_str() {
            "true" | "false" => "flag",
            number if number.parse::<f64>().is_ok() => "number",
            _ => "text",
        };
        for (_, value) in types.iter().filter(|(kind, _)| *kind != own) {
            let error = refused(&with(JOB, &key, value), &[], &[]);
            assert!(error.contains(&format!("job.toml: {key}: is ")), "{key} = {value}: {error}");
            assert!(error.contains("expected"), "{key} = {value}: {error}");
        }
    }
}

#[test]
fn every_number_refuses_what_is_no_number_of_its_kind() {
    let number = |value: &str| value.parse::<f64>().is_ok();
    for (key, _) in
        assignments(&whole()).into_iter().filter(|(key, value)| !key.contains('[') && number(value))
    {
        let job = if key == "sparsity.budget" { STRUCTURED } else { JOB };
        for value in ["nan", "inf", "-inf", "-1", "-0.5", "1e300"] {
            let error = refused(&with(job, &key, value), &[], &[]);
            assert!(error.contains(&key), "{key} = {value}: {error}");
        }
    }
}

#[test]
fn a_value_out_of_range_is_refused_with_the_range() {
    for (key, value, says) in [
        ("sparsity.ratio", "1.0001", "is 1.0001, but a ratio lies within 0..1"),
        ("sparsity.refine", "10001", "is 10001, but"),
        ("calibration.count", "0", "is 0, but must be at least 1"),
        ("calibration.steps", "0", "is 0, but must be at least 1"),
        ("calibration.height", "0", "is 0, but must be at least 1"),
        ("calibration.width", "0", "is 0, but must be at least 1"),
        ("calibration.max_sequence_length", "0", "is 0, but must be at least 1"),
        ("calibration.shard_size", "0", "is 0, but must be at least 1"),
        ("calibration.shard_size", "2.0", "is 2.0, but a whole number"),
        (
            "calibration.guidance",
            "1e39",
            "is 1000000000000000000000000000000000000000, but must be 0 or more",
        ),
        ("hessian.low", "0", "is 0 with hessian.high 1.2, but 0 < low <= high must hold"),
        ("hessian.low", "1e-50", "but 0 < low <= high must hold"),
        ("hessian.high", "0.5", "is 0.8 with hessian.high 0.5"),
        ("hessian.low", "1e-3", "is 0.001, but must be within 0.01 and 100"),
        ("hessian.high", "1e36", "but must be within 0.01 and 100"),
        ("hessian.damping", "0", "is 0, but must be above 0 and at most 1"),
        ("hessian.mask_damping", "2", "is 2, but must be above 0 and at most 1"),
        ("packages.count", "0", "is 0, but must be at least 1"),
        ("packages.memory", "\"0\"", "\"0\" is not a size"),
        ("packages.memory", "4096", "is 4096, but text in quotes is expected"),
        ("sparsity.pattern", "\"1:99999999\"", "has groups of 99999999 columns: M is at most 1048576"),
        ("sparsity.pattern", "\"-1:4\"", "is not \"unstructured\""),
        (
            "sparsity.min_ratio",
            "0.95",
            "is 0.95 with sparsity.max_ratio 0.9, but 0 <= min_ratio <= max_ratio",
        ),
        ("sparsity.dense", "1.0", "is 1, but must be at least 0 and below 1"),
        ("sparsity.dense", "0.2", "needs an N:M pattern"),
        ("probe.points", "0", "is 0, but must be at least 1"),
    ] {
        let error = refused(&with(JOB, key, value), &[], &[]);
        assert!(error.contains(says), "{key} = {value}: {error}");
    }
    let seed = refused(JOB, &[], &["calibration.seed=18446744073709551615"]);
    assert!(seed.contains("--set calibration.seed: is 18446744073709551615, but prompt i starts"), "{seed}");
}

#[test]
fn a_key_without_effect_is_refused_where_it_is_written() {
    let magnitude: &[&str] = &["sparsity.method=magnitude", "sparsity.refine=0"];
    let wanda: &[&str] = &["sparsity.method=wanda", "sparsity.refine=0"];
    let obs: &[&str] = &["sparsity.method=obs", "sparsity.refine=0"];
    let uniform: &[&str] = &["sparsity.allocation=uniform"];
    let structured: &[&str] = &["sparsity.pattern=structured", "sparsity.rules="];
    let l1: &[&str] = &["sparsity.pattern=structured", "sparsity.rules=", "sparsity.method=l1"];
    let cases: [(&[&str], &str, &str); 30] = [
        (structured, "sparsity.refine=5", "structured pruning refines nothing"),
        (structured, "sparsity.refine=0", "structured pruning refines nothing"),
        (structured, "hessian.mask_damping=0.2", "with refinement"),
        (structured, "hessian.precision=f64", "in f64 throughout"),
        (structured, "packages.split_above=1000", "never split"),
        (l1, "sparsity.head_score=exact", "sparsity.method = \"obs\""),
        (l1, "sparsity.fold_bias=true", "sparsity.method = \"obs\""),
        (l1, "hessian.accumulate=exact", "gathers no Hessian"),
        (&[], "sparsity.head_score=exact", "sparsity.pattern = \"structured\""),
        (structured, "sparsity.budget_by=errors", "it is for sparsity.budget"),
        (&[], "sparsity.align=1", "sparsity.pattern = \"structured\""),
        (uniform, "sparsity.max_ratio=0.8", "sparsity.allocation = \"global\""),
        (uniform, "probe.points=4", "linears are probed for"),
        (obs, "sparsity.effort=thorough", "sparsity.method = \"admm\""),
        (&[], "hessian.mask_damping=0.1", "with refinement"),
        (&[], "sparsity.fold_bias=true", "sparsity.pattern = \"structured\""),
        (&[], "output.layout=shrunk", "sparsity.pattern = \"structured\""),
        (obs, "hessian.mask_damping=0.1", "with refinement"),
        (wanda, "hessian.damping=0.01", "diagonal of the Gram alone"),
        (wanda, "hessian.precision=f32", "diagonal of the Gram alone"),
        (wanda, "hessian.mask_damping=0.1", "with refinement"),
        (magnitude, "hessian.weighting=uniform", "gathers no Hessian"),
        (magnitude, "hessian.damping=0.01", "gathers no Hessian"),
        (magnitude, "packages.memory=1GiB", "gathers no Hessian"),
        (&["hessian.weighting=uniform"], "hessian.low=0.8", "weighs every step the same"),
        (&["hessian.weighting=uniform"], "hessian.high=1.2", "weighs every step the same"),
        (&["evaluation.count=0"], "evaluation.prompts=p.txt", "evaluation.count is 0"),
        (&["evaluation.prompts="], "evaluation.column=caption", "no evaluation.prompts"),
        (
            &[magnitude[0], magnitude[1], "calibration.prompts="],
            "calibration.count=3",
            "neither calibration.prompts nor",
        ),
        (
            &[magnitude[0], magnitude[1], "calibration.prompts="],
            "evaluation.count=3",
            "none of evaluation.prompts, calibration.prompts",
        ),
    ];
    for (sets, key, says) in cases {
        let name = key.split('=').next().unwrap();
        let job = with(JOB, "calibration.prompts", "\"prompts.txt\"");
        let error = refused(&job, &[], &[sets, &[key]].concat());
        assert!(
            error.contains(&format!("--set {name}: has no effect: ")) && error.contains(says),
            "{sets:?}, {key}: {error}"
        );
        assert!(error.contains(&format!("unset it by --set {name}=")), "{error}");
    }
}

#[test]
fn a_default_without_effect_is_no_fault_and_what_has_one_is_used() {
    let cases: [&[&str]; 10] = [
        &["sparsity.pattern=structured", "sparsity.rules=", "hessian.damping=0.02", "output.layout=masked"],
        &["sparsity.refine=0", "hessian.damping=0.02", "hessian.precision=f64"],
        &["sparsity.max_ratio=0.8", "probe.points=4"],
        &[
            "sparsity.pattern=2:4",
            "sparsity.ratio=",
            "sparsity.rules=",
            "sparsity.dense=0.2",
            "probe.prompts=2",
        ],
        &["sparsity.method=wanda", "sparsity.refine=0", "hessian.low=0.5"],
        &["sparsity.method=wanda", "hessian.damping=0.02"],
        &["sparsity.method=obs", "hessian.mask_damping=0.2", "hessian.damping=0.02"],
        &["sparsity.method=magnitude", "sparsity.refine=0", "calibration.steps=3", "packages.count=2"],
        &["hessian.weighting=uniform", "packages.split_above=1000"],
        // What calibrates another method is checked and recorded all the same.
        &["sparsity.method=magnitude", "sparsity.refine=0", "evaluation.count=0", "calibration.count=3"],
    ];
    for sets in cases {
        assert!(load(JOB, &[], sets).is_ok(), "{sets:?}: {}", refused(JOB, &[], sets));
    }
}

#[test]
fn more_probes_than_a_job_has_prompts_or_steps_for_are_refused() {
    for (size, key, says) in [
        ("calibration.count=4", "probe.prompts=5", "is 5, but calibration.count is 4: give at most that"),
        (
            "calibration.steps=2",
            "probe.points=3",
            "is 3, but of 2 steps at most 2 are probed: give at most that",
        ),
        ("calibration.steps=25", "probe.points=4294967295", "but of 25 steps at most 18 are probed"),
    ] {
        let error = refused(JOB, &[], &[size, key]);
        let name = key.split('=').next().unwrap();
        assert!(error.contains(&format!("--set {name}: is ")) && error.contains(says), "{key}: {error}");
    }
    // The default takes what there is.
    for sets in [["calibration.steps=1", "calibration.count=1"], ["probe.points=18", "probe.prompts=100"]] {
        assert!(load(JOB, &[], &sets).is_ok(), "{sets:?}: {}", refused(JOB, &[], &sets));
    }
}

#[test]
fn a_bound_that_leaves_out_the_jobs_own_ratio_is_refused_and_a_default_gives_way_to_it() {
    for (key, says) in [
        ("sparsity.min_ratio=0.6", "is 0.6, but sparsity.ratio is 0.5: give at most that"),
        ("sparsity.max_ratio=0.4", "is 0.4, but sparsity.ratio is 0.5: give at least that"),
    ] {
        let error = refused(JOB, &[], &[key]);
        let name = key.split('=').next().unwrap();
        assert!(error.contains(&format!("--set {name}: {says}")), "{key}: {error}");
    }
    let error = refused(&with(JOB, "sparsity.max_ratio", "0.7"), &[], &["sparsity.ratio=0.75"]);
    assert!(error.contains("job.toml: sparsity.max_ratio: is 0.7, but sparsity.ratio is 0.75"), "{error}");
    let note = |sets: &[&str]| super::super::unused::undecided(&load(JOB, &[], sets).unwrap());
    for (ratio, says) in [
        ("0.05", "sparsity.ratio 0.05 is not above sparsity.min_ratio 0.2, so nothing is left to allocate"),
        ("0.95", "sparsity.ratio 0.95 is not below sparsity.max_ratio 0.9, so nothing is left to allocate"),
    ] {
        let ratio = format!("sparsity.ratio={ratio}");
        let said = note(&[&ratio]).unwrap();
        assert!(said.starts_with(says), "{said}");
        assert_eq!(note(&[&ratio, "sparsity.allocation=uniform"]), None);
    }
    assert!(note(&["sparsity.min_ratio=0.5"]).is_some());
    assert_eq!(note(&["sparsity.min_ratio=0.4", "sparsity.max_ratio=0.6"]), None);
    let spared = ["sparsity.pattern=2:4", "sparsity.ratio=", "sparsity.rules=", "sparsity.dense=0.2"];
    assert_eq!(note(&spared), None);
}

#[test]
fn the_keys_in_which_two_jobs_differ_are_named_up_to_three() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.toml");
    fs::write(&path, JOB).unwrap();
    let job = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        JobFile::load(&path, [], &sets).unwrap()
    };
    let differences = |sets: &[&str]| job(sets).differences_from(&job(&[]).spec).unwrap();
    assert_eq!(differences(&[]), "");
    assert_eq!(differences(&["calibration.seed=7"]), "calibration.seed was 0 and is 7");
    let sets = ["calibration.seed=7", "output.path=other", "output.state=s"];
    let three = "calibration.seed was 0 and is 7; output.path was \"out\" and is \"other\"; output.state was absent and is \"s\"";
    assert_eq!(differences(&sets), three);
    let more = [&sets[..], &["sparsity.ratio=0.6", "sparsity.rules="]].concat();
    assert_eq!(differences(&more), format!("{three}; and 2 more keys"));
    // A long list is cut.
    let rules = differences(&["sparsity.rules="]);
    assert!(rules.starts_with("sparsity.rules was [{") && rules.ends_with("... and is []"), "{rules}");
}

#[test]
fn magnitude_without_refinement_needs_no_calibration() {
    let job = JOB.replace("[calibration]\nprompts = \"prompts.txt\"\n", "");
    let magnitude = ["sparsity.method=magnitude", "sparsity.refine=0"];
    assert_eq!(load(&job, &[], &magnitude).unwrap().calibration.prompts, None);
    let l1 = ["sparsity.pattern=structured", "sparsity.rules=", "sparsity.method=l1"];
    assert!(load(&job, &[], &l1).is_ok());
    for sets in [&[][..], &magnitude[..1], &["sparsity.method=wanda", "sparsity.refine=0"]] {
        let error = refused(&job, &[], sets);
        assert!(error.contains("job.toml: calibration.prompts: is missing: a .txt, .csv"), "{error}");
    }
}

#[test]
fn a_null_is_refused_with_the_remedy() {
    for (null, line) in [("null", 6), ("None", 6), ("nil", 6), ("~", 6)] {
        let error = refused(&JOB.replace("ratio = 0.5", &format!("ratio = {null}  # later")), &[], &[]);
        let says = format!(
            "job.toml: is not TOML: line {line}, column 9: TOML has no {null}: leave `ratio` out, or give it a value"
        );
        assert!(error.contains(&says), "{error}");
    }
    let error = refused(&JOB.replace("\"unstructured\"", "unstructured"), &[], &[]);
    assert!(error.contains("line 5, column 11: `unstructured` is text, which stands in quotes"), "{error}");
    let error = refused(&JOB.replace("\"unstructured\"", "2:4"), &[], &[]);
    assert!(error.contains("line 5, column 11: `2:4` is text, which stands in quotes"), "{error}");
}

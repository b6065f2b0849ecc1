mod overrides;
mod presets;
mod values;

use std::fs;

use obsdiff_proto::{ByteSize, Pattern};

use super::*;

const JOB: &str = r#"
[model]
path = "pipeline"
[sparsity]
pattern = "unstructured"
ratio = 0.5
[[sparsity.rules]]
match = "transformer_blocks.0.*"
skip = true
[[sparsity.rules]]
match = "*.to_q"
ratio = 0.3
[calibration]
prompts = "prompts.txt"
[output]
path = "out"
"#;

fn load(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<JobSpec> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.toml");
    fs::write(&path, text).unwrap();
    let env = env.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    JobFile::load(&path, env, &sets).map(|job| job.spec)
}

fn refused(text: &str, env: &[(&str, &str)], sets: &[&str]) -> String {
    load(text, env, sets).unwrap_err().line()
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    assert_eq!(load(JOB, &[], &[]).unwrap().sparsity.ratio, Some(0.5));
    let env = [("OBSDIFF_SPARSITY__RATIO", "0.6")];
    assert_eq!(load(JOB, &env, &[]).unwrap().sparsity.ratio, Some(0.6));
    assert_eq!(load(JOB, &env, &["sparsity.ratio=0.7"]).unwrap().sparsity.ratio, Some(0.7));
}

#[test]
fn every_kind_of_key_can_be_overridden() {
    let env = [
        ("OBSDIFF_CALIBRATION__SHARD_SIZE", "8"),
        ("OBSDIFF_CALIBRATION__SEED", "18446744073709551000"),
        ("OBSDIFF_HESSIAN__LOW", "1"),
        ("OBSDIFF_HESSIAN__WEIGHTING", "linear-increase"),
        ("OBSDIFF_OUTPUT__LINK", "true"),
        ("OBSDIFF_OUTPUT__PATH", "007"),
        ("OBSDIFF_PACKAGES__MEMORY", "16GiB"),
        ("OBSDIFF_SPARSITY__PATTERN", "2:4"),
        ("OBSDIFF_LOG", "debug"),
        ("HOME", "/root"),
    ];
    let spec = load(&JOB.replace("ratio = 0.5", ""), &env, &["sparsity.rules[1].ratio=0.25"]).unwrap();
    assert_eq!((spec.calibration.shard_size, spec.calibration.seed), (8, 18446744073709551000));
    assert_eq!((spec.hessian.low, spec.output.link, spec.output.path.as_str()), (1.0, true, "007"));
    assert_eq!(spec.packages.memory, Some(ByteSize(16 << 30)));
    assert_eq!(spec.sparsity.pattern, Pattern::NToM { n: 2, m: 4 });
    assert_eq!((spec.sparsity.rules[0].skip, spec.sparsity.rules[1].ratio), (true, Some(0.25)));
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_by_key_and_value() {
    let cases = [
        (
            "ratio = 0.5",
            "ratio = \"half\"",
            "job.toml: sparsity.ratio: is \"half\", but a number is expected",
        ),
        // A file has types: a number in quotes is text.
        ("ratio = 0.5", "ratio = \"0.5\"", "is \"0.5\", but a number is expected"),
        ("ratio = 0.5", "ratio = [1]", "is a list, but a number is expected"),
        ("ratio = 0.5", "ratio = nan", "sparsity.ratio: is NaN"),
        ("path = \"out\"", "path = 3", "output.path: is 3, but text in quotes is expected"),
        (
            "skip = true",
            "skip = \"yes\"",
            "sparsity.rules[0].skip: is \"yes\", but true or false is expected",
        ),
        (
            "[output]",
            "count = 2.7\n[output]",
            "calibration.count: is 2.7, but a whole number from 0 to 4294967295",
        ),
        ("[output]", "count = -1\n[output]", "calibration.count: is -1, but a whole number"),
        ("[output]", "count = 4294967296\n[output]", "calibration.count: is 4294967296, but a whole number"),
        ("\"unstructured\"", "\"4:2\"", "sparsity.pattern: pattern \"4:2\" prunes 4 of every 2"),
        ("[output]", "[packages]\nmemory = \"lots\"\n[output]", "packages.memory: \"lots\" is not a size"),
        (
            "[model]\npath = \"pipeline\"",
            "model = \"pipeline\"",
            "model: is \"pipeline\", but a table is expected",
        ),
        ("match = \"*.to_q\"", "", "sparsity.rules[1].match: is missing"),
        ("[output]\npath = \"out\"", "", "job.toml: output: is missing"),
        ("path = \"pipeline\"", "", "job.toml: model.path: is missing"),
    ];
    for (from, to, says) in cases {
        let error = refused(&JOB.replace(from, to), &[], &[]);
        assert!(error.contains(says), "{to}: {error}");
    }
}

#[test]
fn an_unknown_name_is_refused_with_the_nearest_known_one() {
    let cases = [
        ("ratio = 0.5", "ration = 0.5", "sparsity.ration: is not a key; did you mean `ratio`?"),
        ("[output]", "[outptu]", "outptu: is not a key; did you mean `output`?"),
        ("[model]", "[Model]", "Model: is not a key; did you mean `model`?"),
        ("skip = true", "skipp = true", "sparsity.rules[0].skipp: is not a key; did you mean `skip`?"),
        ("[sparsity]", "[sparsity]\nmethod = \"obss\"", "sparsity.method: is \"obss\"; did you mean `obs`?"),
        ("[output]", "[hessian]\nweighting = \"log-decreasing\"\n[output]", "did you mean `log-decrease`?"),
        (
            "ratio = 0.5",
            "temperature = 0.5",
            "sparsity.temperature: is not a key; known here: method, pattern, ratio, allocation, min_ratio, max_ratio, dense, refine, effort, budget, budget_by, align, head_score, fold_bias, rules",
        ),
    ];
    for (from, to, says) in cases {
        let error = refused(&JOB.replace(from, to), &[], &[]);
        assert!(error.contains(says), "{to}: {error}");
    }
}

#[test]
fn an_override_is_blamed_by_the_name_its_user_gave() {
    type Given<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let cases: [Given<'_>; 7] = [
        (
            &[("OBSDIFF_SPARSITY__RATIO", "x")],
            &[],
            "OBSDIFF_SPARSITY__RATIO: is \"x\", but a number is expected",
        ),
        (
            &[("OBSDIFF_SPARSITY__RATIO", "1.5")],
            &[],
            "OBSDIFF_SPARSITY__RATIO: is 1.5, but a ratio lies within 0..1",
        ),
        (
            &[("OBSDIFF_SPARSITY__RATION", "1")],
            &[],
            "OBSDIFF_SPARSITY__RATION: is not a key; did you mean `ratio`?",
        ),
        (&[], &["sparsity.ratio=x"], "--set sparsity.ratio: is \"x\""),
        (&[], &["sparsity.ratio=1.5"], "--set sparsity.ratio: is 1.5"),
        (&[], &["sparsity.ration=0.5"], "--set sparsity.ration: is not a key"),
        (&[], &["sparsity.ratio"], "--set sparsity.ratio: is not section.key=value"),
    ];
    for (env, sets, says) in cases {
        let error = refused(JOB, env, sets);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn an_index_cannot_fill_the_memory() {
    for set in [
        "sparsity.rules[99999999999].skip=true",
        "sparsity.rules[-1].skip=true",
        "sparsity.rules[].skip=true",
        "=1",
        "a b=1",
    ] {
        assert!(refused(JOB, &[], &[set]).contains("is not section.key=value"), "{set}");
    }
    assert!(refused(JOB, &[], &["sparsity.rules[5].skip=true"]).contains("sparsity.rules[2]: is missing"));
}

#[test]
fn a_file_that_is_no_toml_is_refused_by_line() {
    let error = refused(&JOB.replace("ratio = 0.5", "ratio 0.5"), &[], &[]);
    assert!(error.contains("job.toml: is not TOML: line 6, column 7: "), "{error}");
    let error = refused(&JOB.replace("ratio = 0.5", "ratio = 0.5\nratio = 0.6"), &[], &[]);
    assert!(error.contains("line 7, column 1: ") && !error.contains("in quotes"), "{error}");
    let error = refused(&format!("{JOB}\n[calibration2]\nseed = 99999999999999999999"), &[], &[]);
    assert!(error.contains("is not TOML: ") && !error.contains("in quotes"), "{error}");
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("binary"), [b'#', b'\n', b'\n', 0xff, 0xfe, 0]).unwrap();
    fs::write(at("empty"), " \n").unwrap();
    fs::write(at("huge"), vec![b' '; (1 << 20) + 1]).unwrap();
    for (name, says) in [
        ("absent", "No such file"),
        ("", "is a directory"),
        ("binary", "binary: line 3 is not UTF-8 text"),
        ("empty", "empty: is empty: a job has [model], [sparsity] and [output]"),
        ("huge", "larger than 1 MiB"),
    ] {
        let error = JobFile::load(&at(name), [], &[]).unwrap_err().line();
        assert!(error.contains(says), "{name}: {error}");
    }
}

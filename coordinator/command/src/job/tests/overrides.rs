//! Values from the environment and from flags.

use obsdiff_proto::{
    Accumulate, Allocation, Balance, ByteSize, CalibrationSpec, ComputeType, Effort, EvaluationSpec,
    GramPrecision, HeadScore, HessianSpec, Method, ModelSpec, OutputLayout, OutputSpec, PackagesSpec,
    Pattern, Precision, ProbeSpec, SparsityRule, SparsitySpec, Weighting, WorkersSpec,
};
use serde_json::Value as Json;

use super::super::overrides::SECTIONS;
use super::*;

/// A value for every key of every section, none of them the default. A key that is missing here does not compile.
pub(super) fn whole() -> JobSpec {
    let text = |text: &str| text.to_owned();
    JobSpec {
        // It gives other keys values where they are unset, and has tests of its own.
        preset: None,
        model: ModelSpec { path: text("model"), dtype: ComputeType::Bf16 },
        sparsity: SparsitySpec {
            method: Some(Method::Wanda),
            pattern: Pattern::NToM { n: 2, m: 4 },
            ratio: Some(0.5),
            allocation: Some(Allocation::Global),
            min_ratio: 0.1,
            max_ratio: 0.8,
            dense: 0.3,
            refine: 3,
            effort: Effort::Fast,
            budget: Some(0.25),
            budget_by: Default::default(),
            align: 16,
            head_score: HeadScore::ObsDiff,
            fold_bias: false,
            rules: vec![
                SparsityRule {
                    matches: text("*.to_q"),
                    skip: true,
                    pattern: Some(Pattern::Unstructured),
                    ratio: Some(0.1),
                },
                SparsityRule {
                    matches: text("[ab]*"),
                    skip: false,
                    pattern: Some(Pattern::Structured),
                    ratio: Some(0.2),
                },
            ],
        },
        calibration: CalibrationSpec {
            prompts: Some(text("p.csv")),
            column: Some(text("caption")),
            conditioning: Some(text("c.safetensors")),
            grams: Some(text("/grams")),
            gram_prompts: Some(4),
            count: 7,
            steps: 8,
            guidance: 1.5,
            true_guidance: 2.5,
            height: Some(64),
            width: Some(32),
            max_sequence_length: 99,
            seed: 12,
            shard_size: 2,
        },
        probe: ProbeSpec { prompts: 2, points: 4 },
        hessian: HessianSpec {
            weighting: Weighting::LinearIncrease,
            low: 0.5,
            high: 1.5,
            damping: 0.02,
            mask_damping: 0.2,
            accumulate: Accumulate::F32,
            precision: Precision::F64,
        },
        packages: PackagesSpec {
            count: Some(4),
            memory: Some(ByteSize(1 << 30)),
            balance: Balance::Units,
            split_above: 1000,
        },
        evaluation: EvaluationSpec { prompts: Some(text("e.tsv")), column: Some(text("text")), count: 3 },
        workers: WorkersSpec { mixed_hardware: true },
        output: OutputSpec {
            path: text("out"),
            link: true,
            state: Some(text("state")),
            grams: Some(text("/kept")),
            gram_prompts: vec![2, 4],
            gram_precision: GramPrecision::F32,
            layout: OutputLayout::Masked,
        },
    }
}

/// Every key of a job with its value as text.
pub(super) fn assignments(job: &JobSpec) -> Vec<(String, String)> {
    fn walk(value: &Json, key: &str, found: &mut Vec<(String, String)>) {
        match value {
            Json::Object(table) => {
                let dot = if key.is_empty() { "" } else { "." };
                table.iter().for_each(|(name, value)| walk(value, &format!("{key}{dot}{name}"), found));
            }
            Json::Array(items) => {
                items.iter().enumerate().for_each(|(i, value)| walk(value, &format!("{key}[{i}]"), found));
            }
            Json::String(text) => found.push((key.to_owned(), text.clone())),
            other => found.push((key.to_owned(), other.to_string())),
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::to_value(job).unwrap(), "", &mut found);
    found
}

/// What a file with overrides says, whether or not its keys fit together.
fn said(text: &str, env: &[(&str, &str)], sets: &[&str]) -> std::result::Result<JobSpec, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.toml");
    fs::write(&path, text).unwrap();
    let env: Vec<_> = env.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let merged = merged(&path, &env, &sets).map_err(|e| e.line())?;
    typed(&merged).map_err(|refusal| refusal.to_string())
}

#[test]
fn flags_reach_every_key() {
    let sets: Vec<String> =
        assignments(&whole()).iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert!(sets.len() > 40, "{sets:?}");
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    assert_eq!(said("[model]", &[], &sets), Ok(whole()));
    // In any order.
    let backwards: Vec<&str> = sets.into_iter().rev().collect();
    assert_eq!(said("[model]", &[], &backwards), Ok(whole()));
}

#[test]
fn the_environment_reaches_every_key() {
    let variables = assignments(&whole()).into_iter().map(|(key, value)| (variable_of(&key), value));
    let variables: Vec<(String, String)> = variables.collect();
    assert!(variables.iter().any(|(name, _)| name == "OBSDIFF_SPARSITY__RULES__1__RATIO"), "{variables:?}");
    let variables: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(said("[model]", &variables, &[]), Ok(whole()));
}

/// A job without the value of a key, as it would be read had the key never been there.
fn without(key: &str) -> Option<JobSpec> {
    let mut job = serde_json::to_value(whole()).unwrap();
    let (around, name) = key.rsplit_once('.').unwrap();
    let pointer = format!("/{}", around.replace(['.', '['], "/").replace(']', ""));
    job.pointer_mut(&pointer).unwrap().as_object_mut().unwrap().remove(name).unwrap();
    serde_json::from_value(job).ok()
}

#[test]
fn every_key_can_be_unset_by_a_flag_and_by_the_environment() {
    let file = toml::to_string(&whole()).unwrap();
    // An item of a list is no key.
    for (key, _) in assignments(&whole()).into_iter().filter(|(key, _)| !key.ends_with(']')) {
        let by_flag = said(&file, &[], &[&format!("{key}=")]);
        assert_eq!(said(&file, &[(&variable_of(&key), "")], &[]), by_flag, "{key}");
        match without(&key) {
            Some(job) => assert_eq!(by_flag, Ok(job), "{key}"),
            None => {
                assert_eq!(by_flag, Err(format!("{key}: is missing: give it in the job file, or by --set")))
            }
        }
    }
    assert_eq!(said(&file, &[], &["sparsity.rules="]).unwrap().sparsity.rules, []);
    assert!(said(&file, &[], &["output.gram_prompts="]).unwrap().output.gram_prompts.is_empty());
    assert_eq!(said(&file, &[], &["hessian="]).unwrap().hessian, HessianSpec::default());
    let error = said(&file, &[], &["sparsity.rules[0]="]).unwrap_err();
    assert!(error.contains("--set sparsity.rules[0]: cannot be unset by itself"), "{error}");
}

#[test]
fn a_key_that_the_file_gives_makes_way_for_one_that_excludes_it() {
    let of = |sets: &[&str]| load(JOB, &[("OBSDIFF_SPARSITY__RULES", "")], sets).unwrap().sparsity;
    assert_eq!(of(&["sparsity.ratio=", "sparsity.pattern=3:7"]).pattern, Pattern::NToM { n: 3, m: 7 });
    let structured = of(&["sparsity.ratio=", "sparsity.pattern=structured", "sparsity.budget=0.25"]);
    assert_eq!((structured.ratio, structured.budget), (None, Some(0.25)));
    // What a flag sets holds, whatever the environment unsets.
    let env = [("OBSDIFF_SPARSITY__RATIO", "")];
    assert_eq!(load(JOB, &env, &["sparsity.ratio=0.25"]).unwrap().sparsity.ratio, Some(0.25));
    let error = refused(JOB, &[], &["output.path="]);
    assert!(error.contains("--set output.path: is missing"), "{error}");
    let error = refused(JOB, &[("OBSDIFF_MODEL__PATH", " ")], &[]);
    assert!(error.contains("OBSDIFF_MODEL__PATH: is missing"), "{error}");
}

#[test]
fn packages_by_count_and_by_memory_make_way_for_each_other_by_their_sources() {
    let file = format!("{JOB}[packages]\ncount = 4\n");
    let of = |env: &[(&str, &str)], sets: &[&str]| {
        let packages = load(&file, env, sets).unwrap().packages;
        (packages.count, packages.memory)
    };
    let memory = Some(ByteSize(16 << 30));
    let env = [("OBSDIFF_PACKAGES__MEMORY", "16GiB")];
    assert_eq!(of(&[], &["packages.memory=16GiB"]), (None, memory));
    assert_eq!(of(&env, &[]), (None, memory));
    assert_eq!(of(&env, &["packages.count=2"]), (Some(2), None));
    assert_eq!(of(&[("OBSDIFF_PACKAGES__COUNT", "2")], &["packages.memory=16GiB"]), (None, memory));
    // What is unset takes no place.
    assert_eq!(of(&[], &["packages.memory="]), (Some(4), None));
    assert_eq!(of(&env, &["packages.memory="]), (Some(4), None));
    // One source gives one of the two.
    let excludes = "packages.memory: excludes packages.count: give one of the two";
    let error = refused(&file, &[], &["packages.count=2", "packages.memory=16GiB"]);
    assert!(error.contains(excludes), "{error}");
    let both = format!("{file}memory = \"16GiB\"\n");
    let error = refused(&both, &[], &[]);
    assert!(error.contains(excludes), "{error}");
    assert_eq!(load(&both, &[], &["packages.count=2"]).unwrap().packages.memory, None);
}

#[test]
fn a_list_of_rules_can_be_given_whole() {
    let list = r#"[{ match = "*.to_q", skip = true }, { match = "*.ff.*", pattern = "2:4" }]"#;
    let set = format!("sparsity.rules={list}");
    let by_flag = load(JOB, &[], &[&set]).unwrap().sparsity.rules;
    let by_environment = load(JOB, &[("OBSDIFF_SPARSITY__RULES", list)], &[]).unwrap().sparsity.rules;
    assert_eq!(by_flag.iter().map(|rule| rule.matches.as_str()).collect::<Vec<_>>(), ["*.to_q", "*.ff.*"]);
    assert_eq!(by_flag, by_environment);
    let one = ["sparsity.rules[1]={ match = \"*.to_k\", ratio = 0.25 }", "sparsity.rules[1].ratio=0.75"];
    assert_eq!(load(JOB, &[], &one).unwrap().sparsity.rules[1].ratio, Some(0.75));
    // The whole list goes before its items.
    let both = [("OBSDIFF_SPARSITY__RULES__0__MATCH", "*.to_v"), ("OBSDIFF_SPARSITY__RULES", list)];
    assert_eq!(load(JOB, &both, &[]).unwrap().sparsity.rules[0].matches, "*.to_v");
    for (list, says) in [
        ("*.to_q", "OBSDIFF_SPARSITY__RULES: is *.to_q, which is not TOML such as [{ match = "),
        ("[]\nother = 1", "one value is expected"),
        ("3", "OBSDIFF_SPARSITY__RULES: is 3, but a list is expected"),
        ("[3]", "OBSDIFF_SPARSITY__RULES__0: is 3, but a table is expected"),
        ("[{ skip = true }]", "OBSDIFF_SPARSITY__RULES__0__MATCH: is missing"),
        (
            "[{ match = \"*\", skipp = true }]",
            "OBSDIFF_SPARSITY__RULES__0__SKIPP: is not a key; did you mean `skip`?",
        ),
    ] {
        let error = refused(JOB, &[("OBSDIFF_SPARSITY__RULES", list)], &[]);
        assert!(error.contains(says), "{says} / {error}");
    }
}

#[test]
fn a_value_in_quotes_is_a_string_of_toml_and_any_other_text_is_as_it_stands() {
    let path = |value: &str| load(JOB, &[], &[&format!("output.path={value}")]).unwrap().output.path;
    for (value, meant) in
        [("\"q\"", "q"), ("'a b\\t'", "a b\\t"), (r#" "a\tb" "#, "a\tb"), (r#"'"q"'"#, "\"q\"")]
    {
        assert_eq!(path(value), meant, "{value}");
    }
    for text in ["\"q", "q\"", "'", "it's", "\"a\" and \"b\"", "\"a\" # b", r#""\q""#] {
        assert_eq!(path(text), text);
    }
    let env = [("OBSDIFF_OUTPUT__PATH", "\"q\""), ("OBSDIFF_SPARSITY__PATTERN", "\"2:4\"")];
    let job = load(JOB, &env, &["sparsity.ratio=", "sparsity.rules[1].ratio='0.25'"]).unwrap();
    assert_eq!((job.output.path.as_str(), job.sparsity.pattern), ("q", Pattern::NToM { n: 2, m: 4 }));
    assert_eq!(job.sparsity.rules[1].ratio, Some(0.25));
}

#[test]
fn the_variables_of_a_job_are_told_from_all_others() {
    let environment = [
        ("OBSDIFF_SPARSITY__RULES__0__RATIO", "0.3"),
        ("OBSDIFF_PRESET", "fast"),
        ("OBSDIFF_OUTPUT__path", ""),
        ("OBSDIFF_CACHE", "/cache"),
        ("OBSDIFF_LOG", "debug"),
        ("OBSDIFF_TOKEN", "secret"),
        ("OBSDIFF_PORT", "tcp://10.0.0.1:7070"),
        ("OBSDIFF_STORE__EAST_SERVICE_HOST", "10.0.0.1"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("HOME", "/root"),
    ];
    let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let of_job = [
        ("OBSDIFF_OUTPUT__path", ""),
        ("OBSDIFF_PRESET", "fast"),
        ("OBSDIFF_SPARSITY__RULES__0__RATIO", "0.3"),
    ];
    assert_eq!(job_variables(&environment), of_job);
}

#[test]
fn variables_of_kubernetes_services_are_ignored() {
    let services = [
        ("OBSDIFF_PORT", "tcp://10.0.0.1:7070"),
        ("OBSDIFF_SERVICE_HOST", "10.0.0.1"),
        ("OBSDIFF_SERVICE_PORT_GRPC", "7070"),
        ("OBSDIFF_PORT_7070_TCP_ADDR", "10.0.0.1"),
        ("OBSDIFF_COORDINATOR_PORT", "tcp://10.0.0.1:7070"),
        ("OBSDIFF_MODEL_SERVICE_HOST", "10.0.0.1"),
        // A service may have two hyphens in its name.
        ("OBSDIFF_STORE__EAST_SERVICE_HOST", "10.0.0.1"),
        ("OBSDIFF_", ""),
        ("OBSDIFF", "1"),
        ("OBSDIFFUSION__SPARSITY__RATIO", "7"),
    ];
    assert_eq!(load(JOB, &services, &[]).unwrap(), load(JOB, &[], &[]).unwrap());
}

#[test]
fn a_variable_with_one_underscore_is_told_with_the_key_that_it_may_mean() {
    let notes = |names: &[String]| {
        near_keys(&names.iter().map(|name| (OsString::from(name), OsString::from("1"))).collect::<Vec<_>>())
    };
    for (key, _) in assignments(&whole()).into_iter().filter(|(key, _)| !key.contains('[')) {
        let (name, meant) = (variable_of(&key).replace("__", "_"), variable_of(&key));
        let note = format!("{name} is no key of a job and is ignored: did you mean {meant}?");
        assert_eq!(notes(&[name, meant]), [note]);
    }
    let rules =
        "OBSDIFF_SPARSITY_RULES is no key of a job and is ignored: did you mean OBSDIFF_SPARSITY__RULES?";
    assert_eq!(notes(&["OBSDIFF_SPARSITY_RULES".to_owned()]), [rules]);
    let others =
        ["OBSDIFF_LOG", "OBSDIFF_PORT", "OBSDIFF_MODEL_SERVICE_HOST", "OBSDIFF_SPARSITY_RATO", "HOME"];
    assert!(notes(&others.map(str::to_owned)).is_empty());
}

#[test]
fn a_variable_with_a_mistyped_key_is_refused_with_the_nearest_one() {
    for (name, says) in [
        ("OBSDIFF_SPARSITY__RATO", "OBSDIFF_SPARSITY__RATO: is not a key; did you mean `ratio`?"),
        (
            "OBSDIFF_SPARSTY__RATIO",
            "OBSDIFF_SPARSTY__RATIO: is not a key; did you mean the section `sparsity`?",
        ),
        ("OBSDIFF_SPARSITY__", "OBSDIFF_SPARSITY__: names no key of a job, as OBSDIFF_SECTION__KEY does"),
        ("OBSDIFF_SPARSITY__RA-TIO", "names no key of a job"),
        ("OBSDIFF_SPARSITY__RULES__1000__SKIP", "names no key of a job"),
        (
            "OBSDIFF_SPARSITY__RATIO__X",
            "OBSDIFF_SPARSITY__RATIO__X: lies in what the job file says is 0.5: a table",
        ),
        ("OBSDIFF_SPARSITY__0__X", "lies in what the job file says is a table: a list is expected there"),
    ] {
        let error = refused(JOB, &[(name, "1")], &[]);
        assert!(error.contains(says), "{says} / {error}");
    }
    let twice = [("OBSDIFF_SPARSITY__RATIO", "0.5"), ("OBSDIFF_SPARSITY__ratio", "0.6")];
    assert!(refused(JOB, &twice, &[]).contains("is the key of OBSDIFF_SPARSITY__"));
}

#[test]
fn the_sections_are_those_of_a_job() {
    let job = serde_json::to_value(whole()).unwrap();
    let mut sections = SECTIONS;
    sections.sort_unstable();
    assert_eq!(job.as_object().unwrap().keys().collect::<Vec<_>>(), sections);
}

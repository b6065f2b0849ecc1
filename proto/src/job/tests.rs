use super::*;
use crate::{Pattern, Target, Targets};

const JOB: &str = r#"
    [model]
    path = "pipeline"
    [sparsity]
    pattern = "unstructured"
    ratio = 0.5
    [calibration]
    prompts = "prompts.txt"
    [output]
    path = "out"
"#;

fn job(change: impl FnOnce(&mut JobSpec)) -> Result<(), JobError> {
    let mut spec: JobSpec = toml::from_str(JOB).unwrap();
    change(&mut spec);
    spec.validate()
}

#[test]
fn the_shortest_job_is_valid_and_has_the_documented_defaults() {
    let spec: JobSpec = toml::from_str(JOB).unwrap();
    assert_eq!(spec.validate(), Ok(()));
    assert_eq!(spec.hessian, HessianSpec::default());
    assert_eq!((spec.calibration.count, spec.calibration.steps, spec.calibration.shard_size), (100, 25, 4));
    assert_eq!((spec.sparsity.method(), spec.sparsity.refine), (Method::Admm, 5));
    assert_eq!(spec.sparsity.allocation(), Allocation::Global);
    assert_eq!(spec.hessian.weighting, Weighting::LogDecrease);
}

#[test]
fn method_and_allocation_follow_what_is_pruned() {
    let sparsity = toml::from_str::<JobSpec>(JOB).unwrap().sparsity;
    let by = |pattern, method| {
        let spec = SparsitySpec { pattern, method, ..sparsity.clone() };
        let said = spec.clone().spelled_out();
        assert_eq!((said.method(), said.allocation()), (spec.method(), spec.allocation()));
        (said.method.unwrap(), said.allocation)
    };
    let (global, uniform) = (Some(Allocation::Global), Some(Allocation::Uniform));
    let of_four = Pattern::NToM { n: 2, m: 4 };
    assert_eq!(by(Pattern::Unstructured, None), (Method::Admm, global));
    assert_eq!(by(Pattern::Unstructured, Some(Method::Obs)), (Method::Obs, global));
    assert_eq!(by(Pattern::Unstructured, Some(Method::Wanda)), (Method::Wanda, uniform));
    assert_eq!(by(Pattern::Unstructured, Some(Method::Magnitude)), (Method::Magnitude, uniform));
    assert_eq!(by(of_four, None), (Method::Admm, None));
    assert_eq!(by(Pattern::Structured, None), (Method::Obs, None));
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let error = toml::from_str::<JobSpec>(&JOB.replace("ratio", "ration")).unwrap_err().to_string();
    assert!(error.contains("ration"), "{error}");
}

#[test]
fn a_value_out_of_range_is_refused_by_key() {
    type Change = Box<dyn FnOnce(&mut JobSpec)>;
    let cases: Vec<(&str, Change)> = vec![
        ("sparsity.ratio", Box::new(|s| s.sparsity.ratio = Some(1.5))),
        ("sparsity.ratio", Box::new(|s| s.sparsity.ratio = Some(f64::NAN))),
        ("sparsity.ratio", Box::new(|s| s.sparsity.ratio = None)),
        ("sparsity.ratio", Box::new(|s| s.sparsity.pattern = Pattern::NToM { n: 1, m: 4 })),
        ("calibration.count", Box::new(|s| s.calibration.count = 0)),
        ("calibration.steps", Box::new(|s| s.calibration.steps = 0)),
        ("calibration.guidance", Box::new(|s| s.calibration.guidance = f64::INFINITY)),
        ("calibration.true_guidance", Box::new(|s| s.calibration.true_guidance = -1.0)),
        ("hessian.damping", Box::new(|s| s.hessian.damping = 0.0)),
        ("hessian.mask_damping", Box::new(|s| s.hessian.mask_damping = 1.5)),
        ("hessian.low", Box::new(|s| s.hessian.low = 2.0)),
        ("hessian.low", Box::new(|s| s.hessian.low = 0.0099)),
        ("hessian.low", Box::new(|s| (s.hessian.low, s.hessian.high) = (1e36, 1e36))),
        ("hessian.high", Box::new(|s| s.hessian.high = 100.1)),
        ("packages.count", Box::new(|s| s.packages.count = Some(0))),
    ];
    for (key, change) in cases {
        assert_eq!(job(change).unwrap_err().key, key);
    }
}

#[test]
fn weights_of_steps_may_be_the_largest_and_the_least() {
    for (low, high) in [(0.01, 100.0), (100.0, 100.0)] {
        assert!(job(|spec| (spec.hessian.low, spec.hessian.high) = (low, high)).is_ok());
    }
}

#[test]
fn magnitude_calibrates_only_to_refine() {
    let mut sparsity = toml::from_str::<JobSpec>(JOB).unwrap().sparsity;
    for (method, refine, calibrates) in [
        (Method::Obs, 0, true),
        (Method::Wanda, 0, true),
        (Method::Magnitude, 0, false),
        (Method::Magnitude, 1, true),
    ] {
        (sparsity.method, sparsity.refine) = (Some(method), refine);
        assert_eq!(sparsity.calibrates(), calibrates, "{method:?}, {refine} steps");
    }
}

fn rule(matches: &str, skip: bool, pattern: Option<Pattern>, ratio: Option<f64>) -> SparsityRule {
    SparsityRule { matches: matches.into(), skip, pattern, ratio }
}

#[test]
fn the_first_matching_rule_decides() {
    let mut spec: JobSpec = toml::from_str(JOB).unwrap();
    spec.sparsity.rules = vec![
        rule("transformer_blocks.0.*", true, None, None),
        rule("*.to_q", false, None, Some(0.25)),
        rule("*.ff.*", false, Some(Pattern::NToM { n: 2, m: 4 }), None),
    ];
    assert_eq!(spec.validate(), Ok(()));
    let targets = Targets::new(&spec.sparsity).unwrap();
    let target = |name: &str| targets.of(name);
    assert_eq!(target("transformer_blocks.0.attn.to_q"), None);
    assert_eq!(target("transformer_blocks.1.attn.to_q"), Some(Target::Unstructured { ratio: 0.25 }));
    assert_eq!(target("transformer_blocks.1.ff.net.2"), Some(Target::NToM { n: 2, m: 4 }));
    assert_eq!(target("transformer_blocks.1.attn.to_k"), Some(Target::Unstructured { ratio: 0.5 }));
}

#[test]
fn the_rule_that_decides_differs_from_one_that_only_matches() {
    let mut spec: JobSpec = toml::from_str(JOB).unwrap();
    spec.sparsity.rules = vec![rule("*.to_q", true, None, None), rule("a.*", true, None, None)];
    let targets = Targets::new(&spec.sparsity).unwrap();
    assert_eq!(["a.to_q", "a.to_k", "b.to_k"].map(|name| targets.rule_of(name)), [Some(0), Some(1), None]);
    assert!(targets.matches(1, "a.to_q") && !targets.matches(0, "a.to_k") && !targets.matches(2, "a.to_q"));
}

#[test]
fn a_rule_that_says_nothing_or_two_things_is_refused() {
    let key = |r: SparsityRule| job(|s| s.sparsity.rules = vec![r]).unwrap_err().key;
    assert_eq!(key(rule("*", false, None, None)), "sparsity.rules[0].match");
    assert_eq!(key(rule("*", true, None, Some(0.5))), "sparsity.rules[0].skip");
    assert_eq!(key(rule("[", true, None, None)), "sparsity.rules[0].match");
    assert_eq!(key(rule("*", false, None, Some(-0.1))), "sparsity.rules[0].ratio");
}

#[test]
fn defaults_of_a_pattern_or_method_are_left_out_and_come_back() {
    let spec: JobSpec = toml::from_str(JOB).unwrap();
    let own = spec.sparsity;
    assert_eq!(own.clone().spelled_out().without_defaults(), own);
    let said = |method, allocation| SparsitySpec { method, allocation, ..own.clone() };
    let cases = [
        (said(Some(Method::Obs), Some(Allocation::Global)), said(Some(Method::Obs), None)),
        (said(None, Some(Allocation::Uniform)), said(None, Some(Allocation::Uniform))),
        (said(Some(Method::Wanda), Some(Allocation::Uniform)), said(Some(Method::Wanda), None)),
        (said(Some(Method::Admm), None), said(None, None)),
    ];
    for (spelled, left) in cases {
        assert_eq!(spelled.without_defaults(), left);
        assert_eq!(left.clone().spelled_out().without_defaults(), left);
    }
    let pattern = Pattern::Structured;
    let structured = SparsitySpec { pattern, ..said(Some(Method::Obs), None) };
    assert_eq!(structured.without_defaults().method, None, "obs is the default of heads and neurons");
}

#[test]
fn a_glob_that_is_too_long_or_too_deep_is_refused_and_ends_no_process() {
    let said = |glob: String| {
        let rules = vec![rule(&glob, true, None, None)];
        let refused = job(|spec| spec.sparsity.rules = rules.clone());
        let spec = SparsitySpec { rules, ..toml::from_str::<JobSpec>(JOB).unwrap().sparsity };
        assert_eq!(Targets::new(&spec).is_err(), refused.is_err(), "{glob:.20}");
        refused.map_err(|error| error.to_string())
    };
    let nested = |depth: usize| format!("{}a{}", "{".repeat(depth), "}".repeat(depth));
    assert_eq!(said(nested(8)), Ok(()));
    for depth in [9, 260, 200_000] {
        let error = said(nested(depth)).unwrap_err();
        assert!(error.starts_with("sparsity.rules[0].match: has "), "{error}");
        assert!(error.ends_with("give several rules"), "{error}");
    }
    assert_eq!(said("*?[a-z]".repeat(146)), Ok(()));
    assert!(said("a".repeat(1025)).unwrap_err().contains("has 1025 bytes"));
    assert!(said("{a".to_owned()).unwrap_err().contains("is not a glob"));
}

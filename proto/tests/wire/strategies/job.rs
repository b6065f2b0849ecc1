//! Specifications of jobs.

use super::*;

pub(super) fn spec() -> impl Strategy<Value = JobSpec> {
    let method = select(vec![Method::Obs, Method::Admm, Method::Magnitude, Method::Wanda]);
    let plain = |(method, ratio, refine)| SparsitySpec {
        method: Some(method),
        pattern: Pattern::Unstructured,
        ratio: Some(ratio),
        allocation: if refine % 2 == 1 { Some(Allocation::Global) } else { None },
        min_ratio: ratio / 2.0,
        max_ratio: (1.0 + ratio) / 2.0,
        dense: 0.0,
        refine,
        effort: if refine > 4 { Effort::Thorough } else { Effort::Fast },
        budget: None,
        budget_by: Default::default(),
        align: 1,
        head_score: HeadScore::Exact,
        fold_bias: true,
        rules: Vec::new(),
    };
    let structured = move |(sparsity, fold_bias)| SparsitySpec {
        method: Some(Method::Obs),
        pattern: Pattern::Structured,
        allocation: None,
        align: if fold_bias { 16 } else { 1 },
        head_score: HeadScore::ObsDiff,
        fold_bias,
        ..plain(sparsity)
    };
    let sparsity = (method, share(), 0u32..9).boxed();
    let sparsity =
        prop_oneof![sparsity.clone().prop_map(plain), (sparsity, any::<bool>()).prop_map(structured)];
    let calibration =
        (words(), 1u32..9, 0.0f64..100.0, any::<u64>()).prop_map(|(prompts, count, guidance, seed)| {
            CalibrationSpec {
                prompts: Some(prompts),
                count,
                steps: 2,
                guidance,
                true_guidance: guidance / 2.0,
                width: Some(64),
                max_sequence_length: 7,
                seed,
                shard_size: 2,
                ..CalibrationSpec::default()
            }
        });
    let hessian = (1e-9f64..1.0, 1e-9f64..1.0).prop_map(|(damping, mask_damping)| HessianSpec {
        damping,
        mask_damping,
        ..HessianSpec::default()
    });
    (words(), sparsity, calibration, hessian).prop_map(|(path, sparsity, calibration, hessian)| JobSpec {
        preset: None,
        model: ModelSpec { path, dtype: Default::default() },
        sparsity,
        hessian,
        probe: ProbeSpec { prompts: 2, points: 3 },
        packages: PackagesSpec::default(),
        evaluation: EvaluationSpec::default(),
        workers: WorkersSpec::default(),
        output: OutputSpec {
            path: "out".to_owned(),
            link: false,
            state: None,
            grams: None,
            gram_prompts: (2..calibration.count).step_by(2).collect(),
            gram_precision: Default::default(),
            layout: OutputLayout::Shrunk,
        },
        calibration,
    })
}

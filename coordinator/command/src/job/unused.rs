//! Keys that have no effect in some kind of job, or less than they ask for. A job that gives one is refused, so that no key is ignored
//! silently.

use obsdiff_proto::{Accumulate, Allocation, JobError, JobSpec, Method, Pattern, ProbeSpec, Weighting};

/// A key that a job does not use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnusedKey {
    pub(super) key: &'static str,
    /// Why not.
    pub(super) because: &'static str,
}

/// Every key that has no effect in this job, whatever its value.
pub(super) fn keys(spec: &JobSpec) -> Vec<UnusedKey> {
    let s = &spec.sparsity;
    let structured = s.pattern == Pattern::Structured;
    let calibrates = s.calibrates();
    let refined = s.refinement() > 0;
    let compares = spec.evaluation.count > 0;
    let mut unused = Vec::new();
    let mut add = |applies: bool, keys: &[&'static str], because| {
        if !applies {
            unused.extend(keys.iter().map(|key| UnusedKey { key, because }));
        }
    };
    add(
        calibrates,
        &[
            "hessian.weighting",
            "hessian.low",
            "hessian.high",
            "hessian.damping",
            "hessian.mask_damping",
            "hessian.accumulate",
            "hessian.precision",
            "packages.memory",
            "output.grams",
            "output.gram_prompts",
            "output.gram_precision",
            "calibration.grams",
            "calibration.gram_prompts",
        ],
        "a job whose method looks at weights alone, without refinement, gathers no Hessian",
    );
    add(
        spec.output.grams.is_some(),
        &["output.gram_prompts", "output.gram_precision"],
        "there is no output.grams",
    );
    add(
        spec.hessian.accumulate == Accumulate::Exact,
        &["output.gram_precision"],
        "hessian.accumulate = \"f32\" sums in f32 already",
    );
    add(spec.calibration.grams.is_some(), &["calibration.gram_prompts"], "there is no calibration.grams");
    let (prompts, conditioning) =
        (spec.calibration.prompts.is_some(), spec.calibration.conditioning.is_some());
    add(prompts, &["calibration.column"], "there is no calibration.prompts");
    add(
        prompts || conditioning,
        &["calibration.count"],
        "there is neither calibration.prompts nor calibration.conditioning",
    );
    add(
        !conditioning || prompts,
        &["evaluation.prompts"],
        "calibration.conditioning holds the held-out prompts behind the others, unless calibration.prompts says which they are",
    );
    add(
        !structured,
        &["sparsity.refine"],
        "heads and neurons that stay are at the optimum already, so structured pruning refines nothing",
    );
    add(
        structured,
        &["sparsity.align", "sparsity.head_score", "sparsity.fold_bias", "output.layout"],
        "it is for sparsity.pattern = \"structured\"",
    );
    add(
        !structured || s.method() == Method::Obs,
        &["sparsity.head_score", "sparsity.fold_bias"],
        "it is for sparsity.method = \"obs\"",
    );
    add(
        s.allocation() == Allocation::Global,
        &["sparsity.min_ratio", "sparsity.max_ratio"],
        "it is for sparsity.allocation = \"global\"",
    );
    add(
        s.probes(),
        &["probe.prompts", "probe.points"],
        "linears are probed for sparsity.allocation = \"global\", and for sparsity.dense above 0; heads and neurons for sparsity.budget",
    );
    add(s.budget.is_some(), &["sparsity.budget_by"], "it is for sparsity.budget");
    add(s.method() == Method::Admm, &["sparsity.effort"], "it is for sparsity.method = \"admm\"");
    add(
        !structured,
        &["packages.split_above"],
        "heads or neurons are scored together, so their sites are never split",
    );
    add(!structured, &["hessian.precision"], "structured pruning factorises in f64 throughout");
    add(
        s.method() == Method::Obs && refined,
        &["hessian.mask_damping"],
        "it is for sparsity.method = \"obs\" with refinement; hessian.damping is the other",
    );
    add(
        matches!(s.method(), Method::Obs | Method::Admm) || refined,
        &["hessian.damping", "hessian.precision"],
        "the method reads the diagonal of the Gram alone, and nothing is refined",
    );
    add(
        spec.hessian.weighting != Weighting::Uniform,
        &["hessian.low", "hessian.high"],
        "hessian.weighting = \"uniform\" weighs every step the same",
    );
    add(compares, &["evaluation.prompts", "evaluation.column"], "evaluation.count is 0");
    add(spec.evaluation.prompts.is_some(), &["evaluation.column"], "there is no evaluation.prompts");
    add(
        spec.evaluation.prompts.is_some() || prompts || conditioning || !compares,
        &["evaluation.count"],
        "there is none of evaluation.prompts, calibration.prompts and calibration.conditioning",
    );
    unused
}

/// The keys that ask for what the job cannot give: it would be left out in silence.
pub(super) fn excesses(spec: &JobSpec) -> Vec<JobError> {
    let (probe, calibration, sparsity) = (&spec.probe, &spec.calibration, &spec.sparsity);
    let mut excesses = Vec::new();
    if !sparsity.probes() {
        return excesses;
    }
    if let Some(ratio) = allocated_ratio(spec) {
        let mut refuse = |key: &str, bound: f64, other: &str| {
            let problem = format!("is {bound}, but sparsity.ratio is {ratio}: give at {other} that");
            excesses.push(JobError::new(key, problem));
        };
        // Their defaults give way to the job's ratio.
        if ratio < sparsity.min_ratio {
            refuse("sparsity.min_ratio", sparsity.min_ratio, "most");
        }
        if ratio > sparsity.max_ratio {
            refuse("sparsity.max_ratio", sparsity.max_ratio, "least");
        }
    }
    let prompts = calibration.prompt_count();
    if probe.prompts > prompts {
        let problem = format!("is {}, but calibration.count is {prompts}: give at most that", probe.prompts);
        excesses.push(JobError::new("probe.prompts", problem));
    }
    let ends = ProbeSpec { points: 2, ..probe.clone() }.steps(calibration.steps);
    let steps = ends.last().zip(ends.first()).map_or(0, |(last, first)| last - first + 1);
    if probe.points > steps {
        let problem = format!(
            "is {}, but of {} steps at most {steps} are probed: give at most that",
            probe.points, calibration.steps
        );
        excesses.push(JobError::new("probe.points", problem));
    }
    excesses
}

/// What its user should know of a job whose survey decides nothing: where no linear may lose less than the job's ratio, or none more, each
/// loses just that.
pub(super) fn undecided(spec: &JobSpec) -> Option<String> {
    let ratio = allocated_ratio(spec)?;
    let (least, most) = (spec.sparsity.min_ratio, spec.sparsity.max_ratio);
    let bound = if ratio <= least {
        format!("above sparsity.min_ratio {least}")
    } else if ratio >= most {
        format!("below sparsity.max_ratio {most}")
    } else {
        return None;
    };
    Some(format!(
        "sparsity.ratio {ratio} is not {bound}, so nothing is left to allocate: every linear without a rule loses this ratio, as by \
         sparsity.allocation = \"uniform\", which needs no survey"
    ))
}

/// The ratio that is allocated over the linears, where it is.
fn allocated_ratio(spec: &JobSpec) -> Option<f64> {
    let sparsity = &spec.sparsity;
    let is_allocated = sparsity.pattern == Pattern::Unstructured && sparsity.surveys_linears();
    sparsity.ratio.filter(|_| is_allocated)
}

//! What values a job file may have, as far as no file is needed to tell.

use globset::Glob;

use super::{JobError, JobSpec, Rule, SparsitySpec};
use crate::{Pattern, Target};

/// Conjugate gradients end after as many steps as a linear has columns; a few steps gain nearly everything.
const MOST_STEPS: u32 = 10_000;

impl JobSpec {
    /// Checks every value that needs no file to be checked.
    ///
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), JobError> {
        self.sparsity.validate()?;
        self.validate_structured()?;
        let c = &self.calibration;
        let whole = [
            ("calibration.count", c.count),
            ("calibration.steps", c.steps),
            ("calibration.shard_size", c.shard_size),
            ("calibration.max_sequence_length", c.max_sequence_length),
            ("calibration.height", c.height.unwrap_or(1)),
            ("calibration.width", c.width.unwrap_or(1)),
            ("packages.count", self.packages.count.unwrap_or(1)),
        ];
        for (key, value) in whole {
            if value == 0 {
                return Err(JobError::new(key, "is 0, but must be at least 1"));
            }
        }
        if c.prompts.is_none() && c.conditioning.is_none() && self.sparsity.calibrates() {
            let problem = "is missing: a .txt, .csv, .tsv or .jsonl file of prompts to calibrate on is needed; only \
                           sparsity.method = \"magnitude\" with sparsity.refine = 0, or \"l1\", does without";
            return Err(JobError::new("calibration.prompts", problem));
        }
        if c.seed.checked_add(u64::from(c.prompt_count()) + u64::from(self.evaluation.count)).is_none() {
            let problem = format!(
                "is {}, but prompt i starts from the noise of seed + i, which is at most 2^64 - 1",
                c.seed
            );
            return Err(JobError::new("calibration.seed", problem));
        }
        if self.packages.count.is_some() && self.packages.memory.is_some() {
            return Err(JobError::new("packages.memory", "excludes packages.count: give one of the two"));
        }
        // It multiplies in f32.
        for (key, scale) in [("guidance", c.guidance), ("true_guidance", c.true_guidance)] {
            if !((scale as f32).is_finite() && scale >= 0.0) {
                let problem = format!("is {scale}, but must be 0 or more");
                return Err(JobError::new(format!("calibration.{key}"), problem));
            }
        }
        let h = &self.hessian;
        // They weigh in f32.
        if !((h.high as f32).is_finite() && 0.0 < h.low as f32 && h.low <= h.high) {
            let problem = format!("is {} with hessian.high {}, but 0 < low <= high must hold", h.low, h.high);
            return Err(JobError::new("hessian.low", problem));
        }
        for (key, damping) in [("hessian.damping", h.damping), ("hessian.mask_damping", h.mask_damping)] {
            if !(damping > 0.0 && damping <= 1.0) {
                return Err(JobError::new(key, format!("is {damping}, but must be above 0 and at most 1")));
            }
        }
        Ok(())
    }
}

impl SparsitySpec {
    fn validate(&self) -> Result<(), JobError> {
        check_ratio("sparsity.ratio", self.ratio)?;
        if self.refine > MOST_STEPS {
            let problem = format!(
                "is {}, but after {MOST_STEPS} steps nothing moves any more: give 5 or so",
                self.refine
            );
            return Err(JobError::new("sparsity.refine", problem));
        }
        self.target()?;
        for (i, rule) in self.rules.iter().enumerate() {
            let key = |name: &str| format!("sparsity.rules[{i}].{name}");
            if let Err(e) = Glob::new(&rule.matches) {
                return Err(JobError::new(key("match"), format!("is not a glob: {e}")));
            }
            if rule.skip && (rule.pattern.is_some() || rule.ratio.is_some()) {
                return Err(JobError::new(
                    key("skip"),
                    "excludes ratio and pattern: a skipped linear stays dense",
                ));
            }
            if !rule.skip && rule.pattern.is_none() && rule.ratio.is_none() {
                return Err(JobError::new(key("match"), "needs skip = true, a ratio or a pattern beside it"));
            }
            check_ratio(&key("ratio"), rule.ratio)?;
            if !rule.skip {
                self.rule_target(rule, &key("ratio"))?;
            }
        }
        Ok(())
    }

    /// Whether activations are gathered: a method that looks at weights alone needs none, but refining what it leaves does.
    pub fn calibrates(&self) -> bool {
        self.method.calibrates() || self.refinement() > 0
    }

    /// Steps of refinement: none where heads and neurons go, whose survivors are at the optimum already.
    pub fn refinement(&self) -> u32 {
        if self.pattern == Pattern::Structured { 0 } else { self.refine }
    }

    /// The target of a linear that no rule matches.
    pub(crate) fn target(&self) -> Result<Target, JobError> {
        target("sparsity.ratio", self.pattern, self.ratio)
    }

    /// The target of a linear that `rule` matches; errors name `key`.
    pub(crate) fn rule_target(&self, rule: &Rule, key: &str) -> Result<Target, JobError> {
        let pattern = rule.pattern.unwrap_or(match rule.ratio {
            // A ratio of its own in a job of N:M can only mean unstructured.
            Some(_) if self.pattern != Pattern::Structured => Pattern::Unstructured,
            _ => self.pattern,
        });
        let own = rule.pattern.is_some_and(|pattern| pattern != Pattern::Structured);
        target(key, pattern, rule.ratio.or(if own { None } else { self.ratio }))
    }
}

fn check_ratio(key: &str, ratio: Option<f64>) -> Result<(), JobError> {
    match ratio {
        Some(r) if !(0.0..=1.0).contains(&r) => {
            Err(JobError::new(key, format!("is {r}, but a ratio lies within 0..1")))
        }
        _ => Ok(()),
    }
}

fn target(key: &str, pattern: Pattern, ratio: Option<f64>) -> Result<Target, JobError> {
    match (pattern, ratio) {
        (Pattern::Unstructured, Some(ratio)) => Ok(Target::Unstructured { ratio }),
        (Pattern::Unstructured, None) => {
            Err(JobError::new(key, "is missing: an unstructured pattern needs a ratio"))
        }
        (Pattern::NToM { n, m }, None) => Ok(Target::NToM { n, m }),
        (Pattern::NToM { n, m }, Some(r)) if (r * m as f64 - n as f64).abs() < 1e-9 => {
            Ok(Target::NToM { n, m })
        }
        (Pattern::NToM { n, m }, Some(r)) => Err(JobError::new(
            key,
            format!(
                "is {r}, but pattern \"{n}:{m}\" prunes {n} of {m}: leave the ratio out, or change one of them"
            ),
        )),
        (Pattern::Structured, ratio) => Ok(Target::Structured { ratio }),
    }
}

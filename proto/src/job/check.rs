//! What values a job file may have, as far as they can be checked without opening a file.

use std::ops::RangeInclusive;

use super::{Accumulate, Allocation, BudgetBy, JobError, JobSpec, SparsityRule, SparsitySpec};
use crate::targets::glob;
use crate::{Pattern, Target};

/// Conjugate gradients end after as many steps as a linear has columns; a few steps gain nearly everything.
const MOST_STEPS: u32 = 10_000;

/// Weights that a step may have. A Gram's mass counts rows by them in units of 2^-24: of smaller ones little would be left, and of larger ones
/// fewer than 5e9 rows would fit.
const WEIGHTS: RangeInclusive<f64> = 0.01..=100.0;

/// Ratios at which a survey finds the error of a linear: 0.2, 0.3 .. 0.9 by default.
const TRIED_RATIOS: usize = 8;

impl JobSpec {
    /// Checks every value that needs no file to be checked.
    ///
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), JobError> {
        self.sparsity.validate()?;
        self.validate_structured()?;
        let c = &self.calibration;
        if c.grams.is_some() && self.output.grams.is_some() {
            let problem =
                "has no use beside calibration.grams, where the job's Grams are kept already: leave it out";
            return Err(JobError::new("output.grams", problem));
        }
        self.validate_gram_prompts()?;
        let whole = [
            ("calibration.count", c.count),
            ("calibration.steps", c.steps),
            ("calibration.shard_size", c.shard_size),
            ("calibration.max_sequence_length", c.max_sequence_length),
            ("calibration.height", c.height.unwrap_or(1)),
            ("calibration.width", c.width.unwrap_or(1)),
            ("packages.count", self.packages.count.unwrap_or(1)),
            ("probe.prompts", self.probe.prompts),
            ("probe.points", self.probe.points),
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
        for (key, weight) in [("hessian.low", h.low), ("hessian.high", h.high)] {
            if !WEIGHTS.contains(&weight) {
                let problem = format!(
                    "is {weight}, but must be within {} and {}: only the ratio of the steps' weights counts",
                    WEIGHTS.start(),
                    WEIGHTS.end()
                );
                return Err(JobError::new(key, problem));
            }
        }
        for (key, damping) in [("hessian.damping", h.damping), ("hessian.mask_damping", h.mask_damping)] {
            if !(damping > 0.0 && damping <= 1.0) {
                return Err(JobError::new(key, format!("is {damping}, but must be above 0 and at most 1")));
            }
        }
        Ok(())
    }
}

impl JobSpec {
    fn validate_gram_prompts(&self) -> Result<(), JobError> {
        let (counts, c) = (&self.output.gram_prompts, &self.calibration);
        let refuse = |problem: String| Err(JobError::new("output.gram_prompts", problem));
        if counts.is_empty() {
            return Ok(());
        }
        let size = c.shard_size.max(1);
        let unfit = |count: &&u32| **count == 0 || **count >= c.count || !count.is_multiple_of(size);
        if let Some(count) = counts.iter().find(unfit) {
            return refuse(format!(
                "holds {count}, but Grams can be kept of whole shards before the last: of a multiple of calibration.shard_size, \
                 {size}, below calibration.count, {}",
                c.count
            ));
        }
        if counts.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse(format!("is {counts:?}, but numbers of prompts must ascend"));
        }
        if self.hessian.accumulate != Accumulate::Exact {
            return refuse(
                "needs hessian.accumulate = \"exact\": sums of floats depend on their order".to_owned(),
            );
        }
        if self.packages.memory.is_some() || self.packages.count.is_some_and(|count| count > 1) {
            return refuse(
                "needs one package: later packages are gathered on what all prompts have pruned before; leave out \
                 packages.count and packages.memory"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl SparsitySpec {
    fn validate(&self) -> Result<(), JobError> {
        check_ratio("sparsity.ratio", self.ratio)?;
        if self.refine > MOST_STEPS {
            let problem =
                format!("is {}, but after {MOST_STEPS} steps nothing changes: give 5 or so", self.refine);
            return Err(JobError::new("sparsity.refine", problem));
        }
        self.target()?;
        self.validate_allocation()?;
        for (i, rule) in self.rules.iter().enumerate() {
            let key = |name: &str| format!("sparsity.rules[{i}].{name}");
            glob(&rule.matches).map_err(|problem| JobError::new(key("match"), problem))?;
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

    fn validate_allocation(&self) -> Result<(), JobError> {
        let refuse = |key: &str, problem: String| Err(JobError::new(format!("sparsity.{key}"), problem));
        let by_pattern = matches!(self.pattern, Pattern::NToM { .. });
        if self.allocation() == Allocation::Global {
            if by_pattern {
                let problem = "is \"global\", but N:M prunes the same share everywhere: leave it out, or unset it by --set \
                               sparsity.allocation=; where some linears are to stay dense, set sparsity.dense besides";
                return refuse("allocation", problem.to_owned());
            }
            if self.pattern == Pattern::Structured {
                let problem = "is \"global\", but heads and neurons are allocated by sparsity.budget: give that in place of a ratio";
                return refuse("allocation", problem.to_owned());
            }
            if !self.calibrates() {
                let problem =
                    "is \"global\", which needs activations: set sparsity.refine above 0, or another method";
                return refuse("allocation", problem.to_owned());
            }
        }
        let (low, high) = (self.min_ratio, self.max_ratio);
        if !(0.0 <= low && low <= high && high <= 1.0) {
            let problem = format!(
                "is {low} with sparsity.max_ratio {high}, but 0 <= min_ratio <= max_ratio <= 1 must hold"
            );
            return refuse("min_ratio", problem);
        }
        if !(0.0..1.0).contains(&self.dense) {
            return refuse("dense", format!("is {}, but must be at least 0 and below 1", self.dense));
        }
        if self.dense > 0.0 && !by_pattern {
            return refuse(
                "dense",
                "needs an N:M pattern: other patterns spare linears by their ratios".to_owned(),
            );
        }
        if self.dense > 0.0 && !self.calibrates() {
            let problem = "needs activations: set sparsity.refine above 0, or another method".to_owned();
            return refuse("dense", problem);
        }
        Ok(())
    }

    /// Whether it is measured, before anything is pruned, what pruning each linear would cost.
    pub fn surveys_linears(&self) -> bool {
        match self.pattern {
            Pattern::Unstructured => self.allocation() == Allocation::Global,
            Pattern::NToM { .. } => self.dense > 0.0,
            Pattern::Structured => false,
        }
    }

    /// Whether it is measured, before anything is pruned, how far pruning a part of the model alone moves its velocity.
    pub fn probes(&self) -> bool {
        self.surveys_linears() || (self.budget.is_some() && self.budget_by == BudgetBy::Velocity)
    }

    /// The ratios at which a survey finds the error of each linear whose ratio is to be decided: evenly from the least to the largest
    /// that a linear may get, a range that is widened to hold the job's own.
    pub fn tried_ratios(&self) -> Vec<f64> {
        let own = self.ratio.unwrap_or(self.min_ratio);
        let (low, high) = (self.min_ratio.min(own), self.max_ratio.max(own));
        let step = (high - low) / (TRIED_RATIOS - 1) as f64;
        (0..TRIED_RATIOS).map(|i| low + step * i as f64).collect()
    }

    /// To how many targets a survey prunes each linear.
    pub fn trials(&self) -> usize {
        match self.pattern {
            Pattern::Unstructured => TRIED_RATIOS,
            _ => 1,
        }
    }

    /// Whether activations are gathered: a method that looks at weights alone needs none, but refining what it leaves does.
    pub fn calibrates(&self) -> bool {
        self.method().calibrates() || self.refinement() > 0
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
    pub(crate) fn rule_target(&self, rule: &SparsityRule, key: &str) -> Result<Target, JobError> {
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

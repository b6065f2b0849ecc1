//! What only structured pruning has: its keys in the job file, and what of a model can go as a whole.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{JobError, JobSpec, LinearId, Method, Pattern};

/// How attention heads and neurons are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadScore {
    /// By the error that removing it brings, one at a time.
    #[default]
    Exact,
    /// As the published code does: heads by the diagonal of a Cholesky factor, streams merged by reciprocal rank fusion, neurons in
    /// chunks.
    ObsDiff,
}

/// What becomes of heads and neurons that went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputLayout {
    /// Tensors become smaller, and the configuration says how small.
    #[default]
    Shrunk,
    /// Tensors keep their shapes, with zeros: for loaders that know nothing of it.
    Masked,
}

/// Share of a feed-forward network's neurons that stays in any case.
const LEAST_NEURONS: f64 = 0.05;

/// What the parts of a structure are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    /// Heads of an attention.
    Heads,
    /// Neurons of a feed-forward network.
    Neurons,
}

/// Parts of a module that have the same shape and can each be removed as a whole: the heads of an attention, or the neurons of a feed-forward network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// The diffusers module path, such as `transformer_blocks.3.attn` or `transformer_blocks.3.ff_context`.
    pub name: String,
    /// Index of the block.
    pub block: u32,
    /// What its parts are.
    pub kind: PartKind,
    /// How many parts there are.
    pub count: usize,
    /// The columns that read the parts, in the linears of one stream each.
    pub outputs: Vec<Features>,
    /// The rows that make the parts. A linear that makes them twice over is listed twice, as gate and value of a gated network are.
    pub inputs: Vec<Features>,
}

/// Rows or columns of a linear that belong to the parts of a structure: part i has `offset + i * size ..`, `size` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Which linear.
    pub linear: LinearId,
    /// Where the first part begins.
    pub offset: usize,
    /// Features of one part.
    pub size: usize,
}

impl Features {
    /// Parts of `size` features each, from the linear's first on.
    pub const fn whole(linear: LinearId, size: usize) -> Self {
        Self { linear, offset: 0, size }
    }

    /// The features of one part.
    pub fn of(&self, part: usize) -> Range<usize> {
        let start = self.offset + part * self.size;
        start..start + self.size
    }

    /// The features of `count` parts.
    pub fn all(&self, count: usize) -> Range<usize> {
        self.offset..self.offset + count * self.size
    }
}

impl Structure {
    /// Parts that a budget leaves in any case: one head, or a twentieth of the neurons.
    pub fn least(&self) -> usize {
        match self.kind {
            PartKind::Heads => 1,
            PartKind::Neurons => ((LEAST_NEURONS * self.count as f64).ceil() as usize).max(1),
        }
    }

    /// How many parts go or stay together where neurons are kept in multiples of `align`: heads go one by one.
    pub fn unit(&self, align: u32) -> usize {
        match self.kind {
            PartKind::Heads => 1,
            PartKind::Neurons => align.max(1) as usize,
        }
    }

    /// Parts that stay where a share `ratio` goes: count - round(ratio * count), halves to even, as the published code counts, taken to
    /// the nearest multiple of [`Self::unit`], of two the larger one. One part, or unit, stays in any case.
    pub fn kept_at(&self, ratio: f64, align: u32) -> usize {
        let gone = ((ratio * self.count as f64).round_ties_even() as usize).min(self.count.saturating_sub(1));
        if gone == 0 {
            return self.count;
        }
        let (unit, kept) = (self.unit(align), self.count - gone);
        let below = kept / unit * unit;
        let above = below + unit;
        let nearest = if above <= self.count && above - kept <= kept - below { above } else { below };
        nearest.max(unit.min(self.count))
    }

    /// Parts that a budget may take: all but [`Self::least`], taken up to a multiple of [`Self::unit`].
    pub fn removable(&self, align: u32) -> usize {
        self.count.saturating_sub(self.least().next_multiple_of(self.unit(align)))
    }

    /// The linear by whose name rules decide: the first that reads the parts.
    pub fn leader(&self) -> Option<LinearId> {
        self.outputs.first().map(|output| output.linear)
    }
}

impl JobSpec {
    /// Checks the keys that structured pruning has or has not.
    pub(crate) fn validate_structured(&self) -> Result<(), JobError> {
        let refuse = |key: &str, problem: String| Err(JobError::new(key, problem));
        let s = &self.sparsity;
        let structured = s.pattern == Pattern::Structured;
        for (i, rule) in s.rules.iter().enumerate() {
            if rule.pattern.is_some_and(|pattern| (pattern == Pattern::Structured) != structured) {
                let problem = "mixes \"structured\" with another pattern: prune in two jobs, the second on the first's output";
                return refuse(&format!("sparsity.rules[{i}].pattern"), problem.to_owned());
            }
            if rule.ratio.is_some() && s.budget.is_some() {
                let key = format!("sparsity.rules[{i}].ratio");
                return refuse(&key, "is decided by sparsity.budget: leave one of the two out".to_owned());
            }
        }
        if s.align == 0 {
            return refuse("sparsity.align", "is 0, but must be at least 1".to_owned());
        }
        if !structured {
            let only = "is for sparsity.pattern = \"structured\": leave it out".to_owned();
            if s.method() == Method::L1 {
                let problem =
                    "is \"l1\", which removes heads and neurons: it needs sparsity.pattern = \"structured\"";
                return refuse("sparsity.method", problem.to_owned());
            }
            let given = [
                ("sparsity.budget", s.budget.is_some()),
                ("sparsity.align", s.align != 1),
                ("sparsity.head_score", s.head_score != HeadScore::Exact),
                ("sparsity.fold_bias", !s.fold_bias),
                ("output.layout", self.output.layout != OutputLayout::Shrunk),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((key, _)) => refuse(key, only),
                None => Ok(()),
            };
        }
        if !matches!(s.method(), Method::Obs | Method::L1) {
            let problem =
                "knows no heads and neurons: with sparsity.pattern = \"structured\" it is \"obs\" or \"l1\"";
            return refuse("sparsity.method", problem.to_owned());
        }
        match (s.ratio, s.budget) {
            (None, None) => refuse(
                "sparsity.ratio",
                "is missing: a structured pattern needs a ratio or a budget".to_owned(),
            ),
            (Some(_), Some(_)) => {
                refuse("sparsity.budget", "excludes sparsity.ratio: give one of the two".to_owned())
            }
            (_, Some(b)) if !(b > 0.0 && b < 1.0) => {
                refuse("sparsity.budget", format!("is {b}, but a budget lies between 0 and 1"))
            }
            (_, Some(_)) if s.method() == Method::L1 => refuse(
                "sparsity.budget",
                "ranks by errors, which only sparsity.method = \"obs\" knows".to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SparsityRule, Target, Targets};

    fn job(sparsity: &str, output: &str) -> JobSpec {
        toml::from_str(&format!(
            "[model]\npath = \"m\"\n[sparsity]\n{sparsity}\n[calibration]\nprompts = \"p.txt\"\n[output]\npath = \"o\"\n{output}"
        ))
        .unwrap()
    }

    #[test]
    fn its_keys_have_their_defaults() {
        let spec = job("pattern = \"structured\"\nratio = 0.3", "");
        assert_eq!(spec.validate(), Ok(()));
        assert_eq!(
            (spec.sparsity.head_score, spec.sparsity.fold_bias, spec.output.layout),
            (HeadScore::Exact, true, OutputLayout::Shrunk)
        );
        let spec = job(
            "pattern = \"structured\"\nbudget = 0.25\nhead_score = \"obs-diff\"\nfold_bias = false",
            "layout = \"masked\"",
        );
        assert_eq!(spec.validate(), Ok(()));
        assert_eq!(Targets::new(&spec.sparsity).unwrap().otherwise(), Target::Structured { ratio: None });
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_key() {
        for (sparsity, output, key, said) in [
            ("pattern = \"structured\"", "", "sparsity.ratio", "needs a ratio or a budget"),
            ("pattern = \"structured\"\nratio = 0.3\nbudget = 0.2", "", "sparsity.budget", "excludes"),
            ("pattern = \"structured\"\nbudget = 1.0", "", "sparsity.budget", "between 0 and 1"),
            ("pattern = \"structured\"\nratio = 1.5", "", "sparsity.ratio", "within 0..1"),
            (
                "pattern = \"structured\"\nratio = 0.3\nmethod = \"wanda\"",
                "",
                "sparsity.method",
                "\"obs\" or \"l1\"",
            ),
            (
                "pattern = \"structured\"\nbudget = 0.3\nmethod = \"l1\"",
                "",
                "sparsity.budget",
                "only sparsity.method",
            ),
            ("pattern = \"2:4\"\nmethod = \"l1\"", "", "sparsity.method", "needs sparsity.pattern"),
            ("pattern = \"2:4\"\nbudget = 0.3", "", "sparsity.budget", "leave it out"),
            ("pattern = \"2:4\"\nalign = 16", "", "sparsity.align", "leave it out"),
            ("pattern = \"structured\"\nratio = 0.3\nalign = 0", "", "sparsity.align", "at least 1"),
            ("pattern = \"2:4\"\nhead_score = \"obs-diff\"", "", "sparsity.head_score", "leave it out"),
            ("pattern = \"2:4\"\nfold_bias = false", "", "sparsity.fold_bias", "leave it out"),
            ("pattern = \"2:4\"", "layout = \"masked\"", "output.layout", "leave it out"),
        ] {
            let error = job(sparsity, output).validate().unwrap_err();
            assert!(error.key == key && error.problem.contains(said), "{sparsity}: {error}");
        }
    }

    fn structure(kind: PartKind, count: usize) -> Structure {
        Structure {
            name: String::new(),
            block: 0,
            kind,
            count,
            outputs: vec![Features::whole(LinearId(9), 1)],
            inputs: Vec::new(),
        }
    }

    #[test]
    fn something_is_left_everywhere() {
        assert_eq!(structure(PartKind::Heads, 24).least(), 1);
        let neurons = |count| structure(PartKind::Neurons, count).least();
        assert_eq!([neurons(6144), neurons(512), neurons(20), neurons(3)], [308, 26, 1, 1]);
        let removable = |count, align| structure(PartKind::Neurons, count).removable(align);
        assert_eq!(
            [removable(512, 1), removable(512, 16), removable(100, 16), removable(16, 16)],
            [486, 480, 84, 0]
        );
        assert_eq!(structure(PartKind::Heads, 24).removable(16), 23);
    }

    #[test]
    fn neurons_stay_in_multiples_and_heads_do_not() {
        let kept = |count, ratio, align| structure(PartKind::Neurons, count).kept_at(ratio, align);
        assert_eq!([0.0, 0.1, 0.3, 1.0].map(|ratio| kept(512, ratio, 1)), [512, 461, 358, 1]);
        // 461 and 358 lie nearer to 464 and 352; halfway more stay.
        assert_eq!([0.0, 0.1, 0.3, 1.0].map(|ratio| kept(512, ratio, 16)), [512, 464, 352, 16]);
        assert_eq!([kept(512, 8.0 / 512.0, 16), kept(512, 9.0 / 512.0, 16)], [512, 496]);
        // A width that is no multiple has none above.
        assert_eq!([kept(100, 0.01, 16), kept(100, 0.0, 16), kept(20, 0.9, 16)], [96, 100, 16]);
        assert_eq!(structure(PartKind::Heads, 8).kept_at(0.3, 16), 6);
    }

    #[test]
    fn parts_lie_one_after_another() {
        let features = Features { linear: LinearId(0), offset: 30, size: 4 };
        assert_eq!((features.of(0), features.of(2), features.all(3)), (30..34, 38..42, 30..42));
    }

    #[test]
    fn rules_are_of_the_same_kind() {
        let rule = |pattern, ratio| SparsityRule { matches: "*.ff.*".into(), skip: false, pattern, ratio };
        let with = |sparsity: &str, rule: SparsityRule| {
            let mut spec = job(sparsity, "");
            spec.sparsity.rules = vec![rule];
            spec
        };
        let structured = "pattern = \"structured\"\nratio = 0.3";
        let target = |spec: &JobSpec| Targets::new(&spec.sparsity).unwrap().by_rule("a.ff.net.2");
        let own = with(structured, rule(None, Some(0.1)));
        assert_eq!(own.validate(), Ok(()));
        assert_eq!(target(&own), Some(Some(Target::Structured { ratio: Some(0.1) })));
        let as_all = with(structured, rule(Some(Pattern::Structured), None));
        assert_eq!(as_all.validate(), Ok(()));
        assert_eq!(target(&as_all), Some(Some(Target::Structured { ratio: Some(0.3) })));
        let key = |spec: JobSpec| spec.validate().unwrap_err().key;
        assert_eq!(
            key(with(structured, rule(Some(Pattern::NToM { n: 2, m: 4 }), None))),
            "sparsity.rules[0].pattern"
        );
        assert_eq!(
            key(with("pattern = \"2:4\"", rule(Some(Pattern::Structured), Some(0.3)))),
            "sparsity.rules[0].pattern"
        );
        assert_eq!(
            key(with("pattern = \"structured\"\nbudget = 0.3", rule(None, Some(0.3)))),
            "sparsity.rules[0].ratio"
        );
    }
}

//! Which target each linear has: the rules of `[sparsity]`, compiled once for a whole model.

use globset::{Glob, GlobMatcher};

use crate::{JobError, SparsitySpec, Target};

/// The targets of a job's linears, by name.
#[derive(Clone, Debug)]
pub struct Targets {
    rules: Vec<(GlobMatcher, Option<Target>)>,
    otherwise: Target,
}

impl Targets {
    /// Compiles the rules of a specification.
    ///
    /// # Errors
    /// When the specification is not valid.
    pub fn new(spec: &SparsitySpec) -> Result<Self, JobError> {
        let rules = spec.rules.iter().enumerate().map(|(i, rule)| {
            let key = format!("sparsity.rules[{i}]");
            let glob = Glob::new(&rule.matches)
                .map_err(|e| JobError::new(format!("{key}.match"), format!("is not a glob: {e}")))?;
            let target =
                if rule.skip { None } else { Some(spec.rule_target(rule, &format!("{key}.ratio"))?) };
            Ok((glob.compile_matcher(), target))
        });
        Ok(Self { rules: rules.collect::<Result<_, JobError>>()?, otherwise: spec.target()? })
    }

    /// What the linear of this name becomes; `None` leaves it dense. The first rule that matches decides.
    pub fn of(&self, linear: &str) -> Option<Target> {
        self.by_rule(linear).unwrap_or(Some(self.otherwise))
    }

    /// The decision of the first rule that matches this linear: `Some(None)` keeps it dense; `None` if no rule matches.
    pub fn by_rule(&self, linear: &str) -> Option<Option<Target>> {
        self.rules.get(self.rule_of(linear)?).map(|(_, target)| *target)
    }

    /// The rule that decides for the linear of this name, by its index: the first that matches.
    pub fn rule_of(&self, linear: &str) -> Option<usize> {
        (0..self.rules.len()).find(|rule| self.matches(*rule, linear))
    }

    /// Whether the glob of a rule matches this name.
    pub fn matches(&self, rule: usize, linear: &str) -> bool {
        self.rules.get(rule).is_some_and(|(glob, _)| glob.is_match(linear))
    }

    /// The target of a linear that no rule matches.
    pub fn otherwise(&self) -> Target {
        self.otherwise
    }
}

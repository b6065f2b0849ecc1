//! Which target each linear has: the rules of `[sparsity]`, compiled once for a whole model.

use globset::{Glob, GlobSet};

use crate::{JobError, SparsitySpec, Target};

/// The longest glob, in bytes. The library that compiles globs ends the process where one is too deep for its stack.
const LONGEST_GLOB: usize = 1024;
/// The most braces that may be open at once in a glob.
const DEEPEST_GLOB: usize = 8;

/// Compiles a glob on names.
///
/// # Errors
/// What is wrong with it.
pub fn glob(glob: &str) -> Result<GlobSet, String> {
    if glob.len() > LONGEST_GLOB {
        return Err(format!(
            "has {} bytes, but a glob may have {LONGEST_GLOB}: give several rules",
            glob.len()
        ));
    }
    let mut open = 0usize;
    for byte in glob.bytes() {
        match byte {
            b'{' => open += 1,
            b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > DEEPEST_GLOB {
            return Err(format!("has more than {DEEPEST_GLOB} braces in each other: give several rules"));
        }
    }
    // A set of one: a single matcher ends the process where the glob is too large to compile.
    let compiled = Glob::new(glob).and_then(|glob| GlobSet::builder().add(glob).build());
    compiled.map_err(|e| format!("is not a glob: {e}"))
}

/// The targets of a job's linears, by name.
#[derive(Clone, Debug)]
pub struct Targets {
    rules: Vec<(GlobSet, Option<Target>)>,
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
            let glob = glob(&rule.matches).map_err(|e| JobError::new(format!("{key}.match"), e))?;
            let target =
                if rule.skip { None } else { Some(spec.rule_target(rule, &format!("{key}.ratio"))?) };
            Ok((glob, target))
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

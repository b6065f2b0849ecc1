//! Which keys of two jobs differ, in words.

use console::truncate_str;
use obsdiff_coordinator::{ChangedKey, changed_keys};
use obsdiff_proto::{JobSpec, counted};

use super::JobFile;
use crate::{Error, Result};

/// The most keys that are named.
const NAMED: usize = 3;
/// Columns of a value. The end of a longer one, such as a list of rules, is cut off.
const VALUE: usize = 60;

impl JobFile {
    /// The first keys whose values are not those of an `earlier` job, and how many more there are: `calibration.seed was 0 and is 7`.
    ///
    /// # Errors
    /// Never for a specification; an error of the JSON writer otherwise.
    pub(crate) fn differences_from(&self, earlier: &JobSpec) -> Result<String> {
        let changed = changed_keys(earlier, &self.spec);
        let changed = changed.map_err(|e| Error::content(self.path(), e.to_string()))?;
        let more = changed.len().saturating_sub(NAMED);
        let cut = |value: &str| truncate_str(value, VALUE, "...").into_owned();
        let named = changed.into_iter().take(NAMED).map(|ChangedKey { key, before, now }| {
            ChangedKey { key, before: cut(&before), now: cut(&now) }.to_string()
        });
        let more = (more > 0).then(|| format!("and {}", counted(more, "more key")));
        Ok(named.chain(more).collect::<Vec<_>>().join("; "))
    }
}

//! Jobs on a transformer of which only the configuration is present. They can be planned, but not run.

use std::ffi::OsString;
use std::path::Path;

use config::Config;

use super::overrides::{self, of_flag};
use super::{JobFile, StoreSettings, blame, is_given, typed};
use crate::{Error, Result};

/// What is planned where nothing else is asked for.
const SPARSITY: [&str; 2] = ["sparsity.pattern=unstructured", "sparsity.ratio=0.5"];

/// Stands where a job names files that planning does not read.
const NO_FILE: &str = "none";

impl JobFile {
    /// A job on the transformer of the configuration file `path`, of half of the weights unless `environment` or `sets` say otherwise.
    ///
    /// # Errors
    /// As [`JobFile::load`].
    pub fn of_config(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Result<Self> {
        let environment: Vec<_> = environment.into_iter().collect();
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let base = Config::builder()
            .set_default("model.path", folder.to_string_lossy().into_owned())
            .and_then(|base| base.set_default("output.path", NO_FILE)?.build());
        let mut merged = base.map_err(|e| Error::content(path, e.to_string()))?.cache;
        overrides::apply_all(&mut merged, &environment, sets)?;
        if !is_given(&merged, "sparsity.pattern") {
            let ratio = usize::from(is_given(&merged, "sparsity.ratio"));
            for set in &SPARSITY[..SPARSITY.len() - ratio] {
                of_flag(set)?.apply(&mut merged)?;
            }
        }
        let mut spec = typed(&merged).map_err(|r| Error::key(blame(path, &merged, &r.key), r.problem))?;
        if spec.sparsity.calibrates() {
            spec.calibration.prompts.get_or_insert_with(|| NO_FILE.to_owned());
        }
        Self::new(spec, path.to_owned(), merged, StoreSettings::of(&environment)).checked()
    }
}

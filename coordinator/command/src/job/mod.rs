//! Loading a job: its TOML file, then the environment, then flags, each overriding the one before.

mod defaults;
mod differences;
mod kept;
mod model;
mod overrides;
mod presets;
mod sizes;
mod strict;
mod unused;

use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{Config, FileFormat, Value, ValueKind};
use obsdiff_core::PlanError;
use obsdiff_files::{read_regular, starts_with_tilde};
use obsdiff_proto::{JobError, JobSpec};
use obsdiff_worker::grams::GramIndex;
use serde::Deserialize;

use crate::cli::TILDE;
use crate::text::shell_path;
use crate::{Error, Result};

use model::JobStoredModel;
pub use overrides::{ENV_PREFIX, job_variables, near_keys};
use overrides::{FROM_ENV, variable_of};

/// Environment variables of the program itself, which are no keys of a job.
pub const PROGRAM_VARIABLES: [&str; 2] = ["OBSDIFF_LOG", CACHE_VARIABLE];
/// The environment variable that names the folder for models of object stores.
pub const CACHE_VARIABLE: &str = "OBSDIFF_CACHE";

const MAX_JOB_BYTES: u64 = 1 << 20;
/// How the names of checkpoints end.
const CHECKPOINTS: [&str; 7] = ["safetensors", "sft", "gguf", "ckpt", "pt", "pth", "bin"];
/// Origin of a value that a flag gave.
const FROM_FLAG: &str = "flag";
/// Origin of a value that the job's preset gave.
const FROM_PRESET: &str = "preset";

/// A job as its user gave it, with all checks that do not need the prompts or the model's weights.
#[derive(Debug)]
pub struct JobFile {
    /// What is asked for, with defaults filled in.
    pub spec: JobSpec,
    path: PathBuf,
    merged: Value,
    stores: StoreSettings,
    /// What the Grams are of that `calibration.grams` names.
    kept: Option<Arc<GramIndex>>,
    /// The model, once it is opened, where it is in an object store.
    stored: Option<JobStoredModel>,
}

/// The environment's settings of object stores: the usual variables of S3, Google Cloud Storage and Azure, which `Debug` does not show, and
/// the folder for models of theirs.
#[derive(Clone, Default)]
pub struct StoreSettings {
    pairs: Vec<(String, String)>,
    cache: Option<PathBuf>,
}

impl StoreSettings {
    /// Those among the variables of an environment.
    pub fn of(environment: &[(OsString, OsString)]) -> Self {
        let known = |name: &&str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|start| name.starts_with(start));
        let setting = |(name, value): &(OsString, OsString)| {
            Some((name.to_str().filter(known)?.to_owned(), value.to_str()?.to_owned()))
        };
        let variable = |name: &str| {
            let found =
                environment.iter().find(|(other, _)| other == name).map(|(_, value)| PathBuf::from(value));
            found.filter(|path| !path.as_os_str().is_empty())
        };
        let cache = variable(CACHE_VARIABLE)
            .or_else(|| Some(variable("XDG_CACHE_HOME").filter(|path| path.is_absolute())?.join("obsdiff")))
            .or_else(|| Some(variable("HOME")?.join(".cache/obsdiff")));
        Self { pairs: environment.iter().filter_map(setting).collect(), cache }
    }

    /// The folder of this machine for models of object stores.
    pub fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    /// By name.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreSettings(..)")
    }
}

impl JobFile {
    /// Loads the job file `path`, overridden by those variables of `environment` that name a key, overridden by `sets`, each
    /// `section.key=value`. A value that is empty unsets its key.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML, or a key is unknown, missing, of the wrong type, out of range or without effect in
    /// a job of this kind; the error names the file, variable or flag that the value came from.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Result<Self> {
        let environment: Vec<_> = environment.into_iter().collect();
        let merged = merged(path, &environment, sets)?;
        let spec = typed(&merged).map_err(|r| Error::key(blame(path, &merged, &r.key), r.problem))?;
        Self::new(spec, path.to_owned(), merged, StoreSettings::of(&environment)).checked()
    }

    const fn new(spec: JobSpec, path: PathBuf, merged: Value, stores: StoreSettings) -> Self {
        Self { spec, path, merged, stores, kept: None, stored: None }
    }

    /// The same job with the model's defaults for what was not given.
    fn checked(self) -> Result<Self> {
        let mut job = self;
        let model = PathBuf::from(&job.spec.model.path);
        defaults::fill(&mut job.spec, &model, &job.merged);
        job.spec.sparsity = job.spec.sparsity.spelled_out();
        job.check_tildes()?;
        job.fill_kept()?;
        job.spec.validate().map_err(|e| job.refuse(e))?;
        job.check_all_used()?;
        Ok(job)
    }

    /// Refuses a path that starts with `~`. Nothing expands it in a job file, so a folder of that name would be made.
    fn check_tildes(&self) -> Result<()> {
        let spec = &self.spec;
        let paths = [
            ("model.path", Some(&spec.model.path)),
            ("calibration.prompts", spec.calibration.prompts.as_ref()),
            ("calibration.conditioning", spec.calibration.conditioning.as_ref()),
            ("calibration.grams", spec.calibration.grams.as_ref()),
            ("evaluation.prompts", spec.evaluation.prompts.as_ref()),
            ("output.path", Some(&spec.output.path)),
            ("output.state", spec.output.state.as_ref()),
            ("output.grams", spec.output.grams.as_ref()),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| starts_with_tilde(path)) {
                return Err(self.refuse(JobError::new(key, format!("is {path}, but {TILDE}"))));
            }
        }
        Ok(())
    }

    /// Refuses a key that was given a value and has no effect in a job of this kind, or not all of the effect that it asks for.
    fn check_all_used(&self) -> Result<()> {
        let is_given = |key: &str| is_given(&self.merged, key);
        if let Some(unused) = unused::keys(&self.spec).into_iter().find(|unused| is_given(unused.key)) {
            let problem = format!(
                "has no effect: {}. Leave it out, or unset it by --set {}=",
                unused.because, unused.key
            );
            return Err(self.refuse(JobError::new(unused.key, problem)));
        }
        match unused::excesses(&self.spec).into_iter().find(|excess| is_given(&excess.key)) {
            Some(excess) => Err(self.refuse(excess)),
            None => Ok(()),
        }
    }

    /// What its user should know of the job.
    pub(crate) fn note(&self) -> Option<String> {
        unused::undecided(&self.spec)
    }

    /// A job that a coordinator has checked and sent.
    pub fn received(spec: JobSpec, stores: StoreSettings) -> Self {
        let path = PathBuf::from("the coordinator's job");
        Self::new(spec, path, Value::new(None, ValueKind::Nil), stores)
    }

    /// The environment's settings of the job's store.
    pub fn stores(&self) -> &StoreSettings {
        &self.stores
    }

    /// The index of the kept Grams that the job reads in place of calibration.
    pub fn kept(&self) -> Option<&Arc<GramIndex>> {
        self.kept.as_ref()
    }

    /// The job file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The error that says where the refused key was given.
    pub fn refuse(&self, error: JobError) -> Error {
        Error::key(blame(&self.path, &self.merged, &error.key), error.problem)
    }

    /// The error of a job that cannot be planned.
    pub fn unplanned(&self, error: PlanError) -> Error {
        self.refuse(error.into())
    }
}

/// The values of the file with those of the environment and of the flags in their places.
fn merged(path: &Path, environment: &[(OsString, OsString)], sets: &[String]) -> Result<Value> {
    let text = read(path)?;
    let file = config::File::from_str(&text, FileFormat::Toml);
    let mut merged =
        Config::builder().add_source(file).build().map_err(|e| unreadable(path, &text, e))?.cache;
    overrides::apply_all(&mut merged, environment, sets)?;
    presets::fill(&mut merged)?;
    Ok(merged)
}

fn typed(merged: &Value) -> std::result::Result<JobSpec, strict::Refusal> {
    JobSpec::deserialize(strict::Node { value: merged, key: String::new(), untyped })
}

fn read(path: &Path) -> Result<String> {
    if path.join("model_index.json").is_file() {
        let problem =
            format!("is a pipeline, not a job: `obsdiff init {}` writes one for it", shell_path(path));
        return Err(Error::content(path, problem));
    }
    let is_checkpoint =
        path.extension().is_some_and(|end| CHECKPOINTS.iter().any(|known| end.eq_ignore_ascii_case(known)));
    if is_checkpoint && path.is_file() {
        let problem = "is a checkpoint, not a job file: give a job file, which `obsdiff init PIPELINE` writes; `obsdiff plan` also \
                       takes the config.json of a transformer";
        return Err(Error::content(path, problem));
    }
    let bytes = read_regular(path, MAX_JOB_BYTES).map_err(|e| match e.kind() {
        ErrorKind::FileTooLarge => {
            Error::content(path, format!("{e}, so it is no job file: `obsdiff init PIPELINE` writes one"))
        }
        _ => Error::file(path, e),
    })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let read = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = read.iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::content(path, format!("line {line} is not UTF-8 text: save the job file as UTF-8"))
    })?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    if text.trim().is_empty() {
        Err(Error::content(path, "is empty: a job has [model], [sparsity] and [output] at least"))
    } else {
        Ok(text)
    }
}

fn unreadable(path: &Path, text: &str, error: config::ConfigError) -> Error {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return Error::content(path, error.to_string());
    };
    match cause.downcast_ref::<toml::de::Error>() {
        Some(error) => Error::content(path, format!("is not TOML: {}", syntax(text, error))),
        None => Error::content(path, format!("is not TOML: {cause}")),
    }
}

/// The line, the column and what is wrong there.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let problem = bare_word(text, line).unwrap_or_else(|| error.message().to_owned());
    format!("line {line}, column {column}: {problem}")
}

/// What is wrong with a value that is a word without quotes, on this line.
fn bare_word(text: &str, line: usize) -> Option<String> {
    let (key, value) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    let (key, word) = (key.trim(), value.split('#').next()?.trim());
    if ["null", "None", "nil", "~"].contains(&word) {
        return Some(format!("TOML has no {word}: leave `{key}` out, or give it a value"));
    }
    // A valid value, or a number that is too large, is not the problem here.
    if word.parse::<f64>().is_ok() || format!("value = {word}").parse::<toml::Table>().is_ok() {
        return None;
    }
    let bare = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "_-.:/~ ".contains(c));
    bare.then(|| format!("`{word}` is text, which stands in quotes: {key} = \"{word}\""))
}

/// Whether a value is text from the environment, a flag or a preset, which has no type of its own.
fn untyped(value: &Value) -> bool {
    value.origin().is_some_and(|origin| [FROM_FLAG, FROM_ENV, FROM_PRESET].contains(&origin))
}

/// Where the user gave the value of `key`, or of the table that would hold it, with the key as it is written there.
fn blame(path: &Path, merged: &Value, key: &str) -> String {
    let around = |key: &str| find(merged, key).and_then(Value::origin).map(str::to_owned);
    let mut ends = key.match_indices(['.', '[']).map(|(end, _)| end).chain([key.len()]).rev();
    match ends.find_map(|end| around(&key[..end])).as_deref() {
        Some(FROM_FLAG) => format!("--set {key}"),
        Some(FROM_ENV) => variable_of(key),
        Some(FROM_PRESET) => format!("{}: {key} (of the preset)", path.display()),
        _ => format!("{}: {key}", path.display()),
    }
}

/// Whether the user gave this key a value.
fn is_given(root: &Value, key: &str) -> bool {
    let given = |value: &Value| value.kind != ValueKind::Nil && value.origin() != Some(FROM_PRESET);
    find(root, key).is_some_and(given)
}

fn find<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    key.split(['.', '[']).try_fold(root, |value, part| match &value.kind {
        ValueKind::Table(table) => table.get(part),
        ValueKind::Array(items) => items.get(part.strip_suffix(']')?.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Removes keys of a section.
fn remove(root: &mut Value, section: &str, keys: &[&str]) {
    let ValueKind::Table(sections) = &mut root.kind else { return };
    let Some(ValueKind::Table(table)) = sections.get_mut(section).map(|section| &mut section.kind) else {
        return;
    };
    keys.iter().for_each(|key| drop(table.remove(*key)));
}

/// The known name that is close to this one.
fn near<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let near =
        known.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    near.copied().filter(|near| strsim::damerau_levenshtein(name, near) <= 2.max(name.len() / 3))
}

/// "did you mean `ratio`? ..." where one of the known names is close, and the known names in any case.
fn closest(name: &str, known: &[&str]) -> String {
    let hint = near(name, known).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    format!("{hint}known here: {}", known.join(", "))
}

#[cfg(test)]
mod tests;

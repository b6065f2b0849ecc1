//! Loading a job: its TOML file, then the environment, then flags, each overriding the one before.

mod strict;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, Environment, FileFormat, Map, Value, ValueKind};
use obsdiff_core::PlanError;
use obsdiff_files::{read_regular, starts_with_tilde};
use obsdiff_proto::{JobError, JobSpec};
use serde::Deserialize;

use crate::cli::TILDE;
use crate::{Error, Result};

/// Start of the environment variables that override keys: `OBSDIFF_SPARSITY__RATIO=0.6` sets `sparsity.ratio`.
pub const ENV_PREFIX: &str = "OBSDIFF_";

/// Environment variables of the program itself, which are no keys of a job.
pub const PROGRAM_VARIABLES: [&str; 1] = ["OBSDIFF_LOG"];

const MAX_JOB_BYTES: u64 = 1 << 20;
/// More rules than anyone writes; an index past it is a slip that would fill memory with empty rules.
const MAX_INDEX: usize = 1000;

const FROM_ENV: &str = "environment";
const FROM_FLAG: &str = "flag";

/// A job as its user gave it, checked as far as can be without reading the model or the prompts.
#[derive(Debug)]
pub struct Job {
    /// What is asked for, with defaults filled in.
    pub spec: JobSpec,
    path: PathBuf,
    merged: Value,
    stores: StoreSettings,
}

/// What the environment says of object stores: the usual variables of S3, Google Cloud Storage and Azure. Shows itself to nobody.
#[derive(Clone, Default)]
pub struct StoreSettings(Vec<(String, String)>);

impl StoreSettings {
    /// Those among the variables of an environment.
    pub fn of(environment: &[(OsString, OsString)]) -> Self {
        let known = |name: &&str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|start| name.starts_with(start));
        let setting = |(name, value): &(OsString, OsString)| {
            Some((name.to_str().filter(known)?.to_owned(), value.to_str()?.to_owned()))
        };
        Self(environment.iter().filter_map(setting).collect())
    }

    /// By name.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreSettings(..)")
    }
}

impl Job {
    /// Loads the job file `path`, overridden by those variables of `environment` that start with `OBSDIFF_`, overridden by `sets`,
    /// each `section.key=value`.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML, or a key is unknown, missing, of the wrong type or out of range; the error
    /// names the file, variable or flag that the value came from.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Result<Self> {
        let text = read(path)?;
        let environment: Vec<_> = environment.into_iter().collect();
        let stores = StoreSettings::of(&environment);
        let mut builder = Config::builder()
            .add_source(config::File::from_str(&text, FileFormat::Toml))
            .add_source(variables(environment)?);
        for set in sets {
            let (key, value) = assignment(set)?;
            let value = Value::new(Some(&FROM_FLAG.to_owned()), value.to_owned());
            builder = builder.set_override(key, value).map_err(|_| not_a_key(set))?;
        }
        let merged = builder.build().map_err(|e| unreadable(path, &text, e))?.cache;
        let root = strict::Node { value: &merged, key: String::new(), untyped };
        let job = |spec| Self { spec, path: path.to_owned(), merged: merged.clone(), stores };
        let spec =
            JobSpec::deserialize(root).map_err(|r| Error::key(blame(path, &merged, &r.key), r.problem))?;
        let job = job(spec);
        job.spec.validate().map_err(|e| job.refuse(e))?;
        job.check_tildes()?;
        Ok(job)
    }

    /// Nobody expands a `~` in a job file: a folder of that name would be made.
    fn check_tildes(&self) -> Result<()> {
        let spec = &self.spec;
        let paths = [
            ("model.path", Some(&spec.model.path)),
            ("calibration.prompts", Some(&spec.calibration.prompts)),
            ("evaluation.prompts", spec.evaluation.prompts.as_ref()),
            ("output.path", Some(&spec.output.path)),
            ("output.state", spec.output.state.as_ref()),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| starts_with_tilde(path)) {
                return Err(self.refuse(JobError::new(key, format!("is {path}, but {TILDE}"))));
            }
        }
        Ok(())
    }

    /// A job as a coordinator tells it, which has checked it.
    pub fn received(spec: JobSpec, stores: StoreSettings) -> Self {
        let path = PathBuf::from("the coordinator's job");
        Self { spec, path, merged: Value::new(None, ValueKind::Nil), stores }
    }

    /// How its store is reached, as far as the environment says.
    pub fn stores(&self) -> &StoreSettings {
        &self.stores
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

fn read(path: &Path) -> Result<String> {
    let bytes = read_regular(path, MAX_JOB_BYTES).map_err(|e| Error::file(path, e))?;
    let text =
        String::from_utf8(bytes).map_err(|_| Error::content(path, "is not UTF-8 text, so not a job file"))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Environment> {
    let mut found = Map::new();
    for (name, value) in environment {
        let Some(name) =
            name.to_str().filter(|n| n.starts_with(ENV_PREFIX) && !PROGRAM_VARIABLES.contains(n))
        else {
            continue;
        };
        let key = name[ENV_PREFIX.len()..].split("__");
        if !key
            .clone()
            .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        {
            return Err(Error::key(name, "names no key of a job, as OBSDIFF_SECTION__KEY does"));
        }
        let value = value.into_string().map_err(|_| Error::key(name, "is not UTF-8 text"))?;
        found.insert(name.to_owned(), value);
    }
    Ok(Environment::with_prefix("OBSDIFF").prefix_separator("_").separator("__").source(Some(found)))
}

/// Splits `section.key=value`, and refuses an index that would make the configuration allocate.
fn assignment(set: &str) -> Result<(&str, &str)> {
    let (key, value) = set.split_once('=').ok_or_else(|| not_a_key(set))?;
    for index in key.split('[').skip(1) {
        let number = index.split(']').next().and_then(|n| n.trim().parse::<usize>().ok());
        if number.is_none_or(|n| n >= MAX_INDEX) {
            return Err(not_a_key(set));
        }
    }
    Ok((key.trim(), value.trim()))
}

fn not_a_key(set: &str) -> Error {
    Error::key(
        format!("--set {set}"),
        "is not section.key=value, such as sparsity.ratio=0.6 or sparsity.rules[0].ratio=0.3",
    )
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
    format!("line {line}, column {column}: {}", error.message())
}

/// Text of the environment or a flag has no type of its own.
fn untyped(value: &Value) -> bool {
    value.origin().is_some_and(|origin| origin == FROM_FLAG || origin.contains(FROM_ENV))
}

/// The place where a user gave the value of `key`, with the key as it is written there.
fn blame(path: &Path, merged: &Value, key: &str) -> String {
    match find(merged, key).and_then(Value::origin) {
        Some(FROM_FLAG) => format!("--set {key}"),
        Some(origin) if origin.contains(FROM_ENV) => {
            format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
        }
        _ => format!("{}: {key}", path.display()),
    }
}

fn find<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    key.split(['.', '[']).try_fold(root, |value, part| match &value.kind {
        ValueKind::Table(table) => table.get(part),
        ValueKind::Array(items) => items.get(part.strip_suffix(']')?.parse::<usize>().ok()?),
        _ => None,
    })
}

/// "did you mean `ratio`? ..." where one of the known names is close, and the known names in any case.
fn closest(name: &str, known: &[&str]) -> String {
    let near =
        known.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    let hint = match near.filter(|near| strsim::damerau_levenshtein(name, near) <= 2.max(name.len() / 3)) {
        Some(near) => format!("did you mean `{near}`? "),
        None => String::new(),
    };
    format!("{hint}(known here: {})", known.join(", "))
}

#[cfg(test)]
mod tests;

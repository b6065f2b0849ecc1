//! Values that override those of a job file: from the environment, then from flags. They reach every key, and an empty one unsets it.

use std::ffi::OsString;

use config::{Config, FileFormat, Map, Value, ValueKind};

use super::strict::shown;
use super::{FROM_FLAG, FROM_PRESET, PROGRAM_VARIABLES, find, is_given, near, remove, typed};
use crate::{Error, Result};

/// Start of the environment variables that override keys: `OBSDIFF_SPARSITY__RATIO=0.6` sets `sparsity.ratio`.
pub const ENV_PREFIX: &str = "OBSDIFF_";

/// Start of the origin of a value that the environment gave.
pub(super) const FROM_ENV: &str = "environment";

/// More rules than any job has. A larger index is a mistake, and would fill memory with empty rules.
const MAX_INDEX: usize = 1000;

/// The sections of a job. A variable of another name is not ours: Kubernetes sets `OBSDIFF_PORT` and the like in every pod beside a
/// service called `obsdiff`.
pub(super) const SECTIONS: [&str; 9] =
    ["model", "sparsity", "calibration", "hessian", "probe", "packages", "evaluation", "workers", "output"];

/// The only key outside of all sections.
const PRESET: &str = "preset";

/// The keys that are lists. The whole list, or one of its items, is written in TOML.
const LISTS: [[&str; 2]; 2] = [["sparsity", "rules"], ["output", "gram_prompts"]];

/// The keys of `[packages]` of which a job has at most one.
const EITHER: [&str; 2] = ["count", "memory"];

/// A value for a key, and who gave it.
#[derive(Debug)]
pub(super) struct Override {
    /// As its user wrote it, for messages.
    name: String,
    path: Vec<PathStep>,
    value: Value,
}

/// One step on the way to a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathStep {
    Key(String),
    Index(usize),
}

impl Override {
    fn new(name: String, path: Vec<PathStep>, text: &str, origin: &str) -> Result<Self> {
        let text = text.trim();
        let origin = origin.to_owned();
        let kind = if text.is_empty() {
            ValueKind::Nil
        } else if is_list(&path) {
            toml(text).map_err(|problem| Error::key(&name, problem))?
        } else {
            ValueKind::String(quoted(text).unwrap_or_else(|| text.to_owned()))
        };
        if kind == ValueKind::Nil && matches!(path.last(), Some(PathStep::Index(_))) {
            return Err(Error::key(name, "cannot be unset by itself: give the whole list again"));
        }
        Ok(Self { name, path, value: given(Value::new(None, kind), &origin) })
    }

    /// Puts the value in its place.
    ///
    /// # Errors
    /// When what it would lie in is no table or list.
    pub(super) fn apply(self, root: &mut Value) -> Result<()> {
        let origin = self.value.origin().map(str::to_owned);
        let empty = |kind: ValueKind| Value::new(origin.as_ref(), kind);
        let refuse = |found: &ValueKind, what: &str| {
            let problem =
                format!("lies in what the job file says is {}: {what} is expected there", shown(found));
            Err(Error::key(&self.name, problem))
        };
        let mut at = root;
        for step in &self.path {
            match step {
                PathStep::Key(name) => {
                    if at.kind == ValueKind::Nil {
                        *at = empty(ValueKind::Table(Map::new()));
                    }
                    let table = match &mut at.kind {
                        ValueKind::Table(table) => table,
                        found => return refuse(found, "a table"),
                    };
                    at = table.entry(name.clone()).or_insert_with(|| empty(ValueKind::Nil));
                }
                PathStep::Index(index) => {
                    if at.kind == ValueKind::Nil {
                        *at = empty(ValueKind::Array(Vec::new()));
                    }
                    let items = match &mut at.kind {
                        ValueKind::Array(items) => items,
                        found => return refuse(found, "a list"),
                    };
                    if items.len() <= *index {
                        items.resize(index + 1, empty(ValueKind::Nil));
                    }
                    at = &mut items[*index];
                }
            }
        }
        *at = self.value;
        Ok(())
    }
}

/// Puts the values of the environment in their places, then those of flags. Of two keys that exclude each other, the one whose source
/// ranks lower makes way.
///
/// # Errors
/// When a variable or a flag names no key, or what a value would lie in is no table or list.
pub(super) fn apply_all(
    root: &mut Value,
    environment: &[(OsString, OsString)],
    sets: &[String],
) -> Result<()> {
    for value in of_environment(environment)? {
        value.apply(root)?;
    }
    for set in sets {
        of_flag(set)?.apply(root)?;
    }
    let ranks = EITHER.map(|key| rank(root, &format!("packages.{key}")));
    if let [Some(count), Some(memory)] = ranks
        && count != memory
    {
        remove(root, "packages", &[EITHER[usize::from(memory < count)]]);
    }
    Ok(())
}

/// How high the source of a key's value ranks: 0 the file, 1 the environment, 2 flags. None where the key has no value.
fn rank(root: &Value, key: &str) -> Option<u8> {
    let value = find(root, key).filter(|_| is_given(root, key))?;
    Some(match value.origin() {
        Some(FROM_FLAG) => 2,
        Some(FROM_ENV) => 1,
        _ => 0,
    })
}

fn is_list(path: &[PathStep]) -> bool {
    let keys: Vec<&str> =
        path.iter().filter_map(|s| if let PathStep::Key(k) = s { Some(k.as_str()) } else { None }).collect();
    LISTS.iter().any(|list| keys == *list)
}

/// A value in TOML, such as a list of rules.
fn toml(text: &str) -> std::result::Result<ValueKind, String> {
    let refused = |problem: String| {
        format!("is {text}, which is not TOML such as [{{ match = \"*.to_q\", skip = true }}]{problem}")
    };
    let source = config::File::from_str(&format!("value = {text}"), FileFormat::Toml);
    let parsed = Config::builder().add_source(source).build().map_err(|_| refused(String::new()))?.cache;
    match parsed.kind {
        ValueKind::Table(mut table) if table.len() == 1 => {
            table.remove("value").map(|value| value.kind).ok_or_else(|| refused(String::new()))
        }
        _ => Err(refused(": one value is expected".to_owned())),
    }
}

/// The string that a text in quotes is in TOML; none where it is no such string, such as a name that begins with a quote.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    match toml(text) {
        Ok(ValueKind::String(string)) if text.ends_with(quote) => Some(string),
        _ => None,
    }
}

/// The value, with `origin` as the origin of all its parts.
fn given(value: Value, origin: &String) -> Value {
    let kind = match value.kind {
        ValueKind::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(key, value)| (key, given(value, origin))).collect())
        }
        ValueKind::Array(items) => {
            ValueKind::Array(items.into_iter().map(|value| given(value, origin)).collect())
        }
        other => other,
    };
    Value::new(Some(origin), kind)
}

/// The overrides among the variables of an environment, those of a whole list before those of its items.
///
/// # Errors
/// When a variable names no key of a section of the job.
fn of_environment(environment: &[(OsString, OsString)]) -> Result<Vec<Override>> {
    let mut found = Vec::new();
    for (name, value) in environment {
        let Some((name, path)) = name.to_str().and_then(|name| Some((name, variable(name)?))) else {
            continue;
        };
        let value = value.to_str().ok_or_else(|| Error::key(name, "is not UTF-8 text"))?;
        found.push(Override::new(name.to_owned(), path?, value, FROM_ENV)?);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    match found.windows(2).find(|two| two[0].path == two[1].path) {
        Some(two) => Err(Error::key(&two[0].name, format!("is the key of {}, too: unset one", two[1].name))),
        None => Ok(found),
    }
}

/// The key that a variable of this name overrides; none if the variable is not a key of a job.
fn variable(name: &str) -> Option<Result<Vec<PathStep>>> {
    let key = name.strip_prefix(ENV_PREFIX).filter(|_| !PROGRAM_VARIABLES.contains(&name))?;
    let parts: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    if parts == [PRESET] {
        return Some(Ok(vec![PathStep::Key(PRESET.to_owned())]));
    }
    let section = parts.first().filter(|_| parts.len() > 1).map(String::as_str).unwrap_or_default();
    if !SECTIONS.contains(&section) {
        return match near(section, &SECTIONS) {
            Some(near) => {
                Some(Err(Error::key(name, format!("is not a key; did you mean the section `{near}`?"))))
            }
            None => {
                tracing::debug!(
                    "{name} is no key of a job, which has two underscores behind its section: ignored"
                );
                None
            }
        };
    }
    let step = |part: &String| match part.parse::<usize>() {
        Ok(index) if index < MAX_INDEX => Some(PathStep::Index(index)),
        Ok(_) => None,
        Err(_) => word(part).then(|| PathStep::Key(part.clone())),
    };
    let path: Option<Vec<PathStep>> = parts.iter().map(step).collect();
    Some(path.ok_or_else(|| Error::key(name, "names no key of a job, as OBSDIFF_SECTION__KEY does")))
}

/// The variables of an environment that override keys of a job, by their names, with their values: once a job is loaded, all variables that
/// begin as those of its sections do.
pub fn job_variables(environment: &[(OsString, OsString)]) -> Vec<(&str, &str)> {
    let is_key = |name: &str| {
        let Some(key) = name.strip_prefix(ENV_PREFIX).map(str::to_lowercase) else { return false };
        key == PRESET || key.split_once("__").is_some_and(|(section, _)| SECTIONS.contains(&section))
    };
    let texts = environment.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)));
    let mut found: Vec<(&str, &str)> = texts.filter(|&(name, _)| is_key(name)).collect();
    found.sort_unstable();
    found
}

/// Notes on variables that name no key of a job, but would with a second underscore behind the section: `OBSDIFF_SPARSITY_RATIO`.
pub fn near_keys(environment: &[(OsString, OsString)]) -> Vec<String> {
    let note = |(name, _): &(OsString, OsString)| {
        let name = name.to_str()?;
        let meant = variable_of(&near_key(name)?);
        Some(format!("{name} is no key of a job and is ignored: did you mean {meant}?"))
    };
    let mut notes: Vec<String> = environment.iter().filter_map(note).collect();
    notes.sort();
    notes
}

/// The key that a variable with one underscore behind the section may mean.
fn near_key(name: &str) -> Option<String> {
    let key = name.strip_prefix(ENV_PREFIX)?.to_lowercase();
    let (section, key) = key.split_once('_')?;
    (SECTIONS.contains(&section) && is_key(section, key)).then(|| format!("{section}.{key}"))
}

/// Whether a section of a job has this key: whatever its value is refused for otherwise.
fn is_key(section: &str, key: &str) -> bool {
    let table = |name: &str, value: Value| {
        Value::new(None, ValueKind::Table(Map::from_iter([(name.to_owned(), value)])))
    };
    let text = Value::new(None, ValueKind::String(String::new()));
    let job = table(section, table(key, text));
    !typed(&job).is_err_and(|refusal| refusal.names_no_key())
}

fn word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The override that a flag gives as `section.key=value`.
///
/// # Errors
/// When it is not of that form.
pub(super) fn of_flag(set: &str) -> Result<Override> {
    let not_a_key = || {
        let problem = "is not section.key=value, such as sparsity.ratio=0.6 or sparsity.rules[0].ratio=0.3, or section.key= to unset it";
        Error::key(format!("--set {set}"), problem)
    };
    let (key, value) = set.split_once('=').ok_or_else(not_a_key)?;
    let path = path(key.trim()).ok_or_else(not_a_key)?;
    Override::new(format!("--set {}", key.trim()), path, value, FROM_FLAG)
}

/// The value that a preset gives a key.
///
/// # Errors
/// When it is no key.
pub(super) fn of_preset(key: &str, value: &str) -> Result<Override> {
    let path = path(key).ok_or_else(|| Error::key(key, "is no key of a job"))?;
    Override::new(key.to_owned(), path, value, FROM_PRESET)
}

/// The steps of a key such as `sparsity.rules[0].ratio`.
fn path(key: &str) -> Option<Vec<PathStep>> {
    let mut steps = Vec::new();
    for part in key.split('.') {
        let mut pieces = part.split('[');
        let name = pieces.next().filter(|name| word(name) || name.contains('-'))?;
        steps.push(PathStep::Key(name.to_owned()));
        for piece in pieces {
            let index = piece.strip_suffix(']')?.trim().parse().ok().filter(|index| *index < MAX_INDEX)?;
            steps.push(PathStep::Index(index));
        }
    }
    Some(steps)
}

/// The name of the variable that overrides a key.
pub(super) fn variable_of(key: &str) -> String {
    let key = key.replace(']', "").replace(['.', '['], "__");
    format!("{ENV_PREFIX}{}", key.to_uppercase())
}

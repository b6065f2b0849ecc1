//! Beginning a job in an empty store, or resuming it.

use std::collections::BTreeMap;
use std::fmt;

use obsdiff_proto::{InputDigest, JobSpec};
use obsdiff_store::layout::{JOB, PROMPTS};
use obsdiff_store::{JobRecord, Prompts, PutOutcome, Result, StoreError};
use serde_json::Value;

use super::CoordinatorStore;

/// How a job was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The store was empty.
    New,
    /// The store holds results of the same job.
    Resumed,
}

impl CoordinatorStore {
    /// Begins a job, or resumes it: the marker, the job itself and then its prompts are put in an empty store, and compared with what
    /// another holds. Of two jobs that begin at once, the first that puts its record has the store.
    ///
    /// # Errors
    /// When the store holds another job, naming each key and file that differs, or anything that is not obsdiff's; when it fails.
    pub async fn begin(&self, job: &JobRecord, prompts: &Prompts) -> Result<Opened> {
        self.claim(&job.spec).await?;
        if let Some(earlier) = self.sealed_if_any::<JobRecord>(JOB).await? {
            let opened = self.resume(&earlier, job)?;
            // They may be missing because the job was cut short here or damaged ones were removed. These are the same ones.
            self.put_sealed_new(PROMPTS, prompts).await?;
            return Ok(opened);
        }
        // Results without a job are what an interrupted removal, or the removal of the job's record, has left.
        self.discard_results().await?;
        if self.put_sealed_new(JOB, job).await? == PutOutcome::Present {
            let opened = self.resume(&self.job().await?, job)?;
            self.put_sealed_new(PROMPTS, prompts).await?;
            return Ok(opened);
        }
        // They replace those of the removed record.
        self.put_sealed(PROMPTS, prompts).await?;
        Ok(Opened::New)
    }

    fn resume(&self, earlier: &JobRecord, job: &JobRecord) -> Result<Opened> {
        let changes = changes(earlier, job).map_err(|e| self.unwritable(JOB, &e))?;
        if changes.is_empty() {
            Ok(Opened::Resumed)
        } else {
            Err(StoreError::Changed { store: self.name().to_owned(), changes })
        }
    }
}

/// What differs between two jobs, in words: keys first, then files. What follows from these is named only if nothing else differs.
fn changes(earlier: &JobRecord, job: &JobRecord) -> Result<Vec<String>, serde_json::Error> {
    let mut changes: Vec<String> =
        changed_keys(&earlier.spec, &job.spec)?.iter().map(ToString::to_string).collect();
    changed_files(&earlier.model_files, &job.model_files, &mut changes);
    changed_files(&earlier.prompt_files, &job.prompt_files, &mut changes);
    if !changes.is_empty() {
        return Ok(changes);
    }
    let releases = || format!("obsdiff {} began the job, and this is {}", earlier.release, job.release);
    if earlier.prompts != job.prompts {
        changes.push(format!("the prompts are read differently ({})", releases()));
    }
    if earlier.inventory != job.inventory {
        changes.push(format!("the model is described differently ({})", releases()));
    }
    if earlier.plan != job.plan {
        changes.push(format!("the job is planned differently ({})", releases()));
    }
    Ok(changes)
}

/// Files that differ.
fn changed_files(before: &[InputDigest], now: &[InputDigest], changes: &mut Vec<String>) {
    let by_path = |files: &[InputDigest]| -> BTreeMap<String, String> {
        files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect()
    };
    let (before, now) = (by_path(before), by_path(now));
    for (path, sha256) in &before {
        match now.get(path) {
            Some(found) if found == sha256 => {}
            Some(_) => changes.push(format!("the content of {path} changed")),
            None => changes.push(format!("{path} is gone")),
        }
    }
    changes
        .extend(now.keys().filter(|path| !before.contains_key(*path)).map(|path| format!("{path} is new")));
}

/// A key whose values differ in two jobs: `calibration.seed was 0 and is 7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedKey {
    /// The key with its section.
    pub key: String,
    /// The earlier value as JSON, or `absent`.
    pub before: String,
    /// The value now, the same way.
    pub now: String,
}

impl fmt::Display for ChangedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, before, now } = self;
        write!(f, "{key} was {before} and is {now}")
    }
}

/// The keys whose values in a job are not those of an `earlier` one.
///
/// # Errors
/// Never for a specification; an error of the JSON writer otherwise.
pub fn changed_keys(earlier: &JobSpec, job: &JobSpec) -> Result<Vec<ChangedKey>, serde_json::Error> {
    let mut changed = Vec::new();
    compare("", &serde_json::to_value(earlier)?, &serde_json::to_value(job)?, &mut changed);
    Ok(changed)
}

fn compare(key: &str, before: &Value, now: &Value, changed: &mut Vec<ChangedKey>) {
    let inner = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let shown = |value: &Value| if value.is_null() { "absent".to_owned() } else { value.to_string() };
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            for (name, value) in before {
                compare(&inner(name), value, now.get(name).unwrap_or(&Value::Null), changed);
            }
            for (name, value) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
                compare(&inner(name), &Value::Null, value, changed);
            }
        }
        (before, now) if before != now => {
            changed.push(ChangedKey { key: key.to_owned(), before: shown(before), now: shown(now) });
        }
        _ => {}
    }
}

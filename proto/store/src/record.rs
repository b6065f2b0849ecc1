//! What a store holds the results of: a job is resumed only as it was.

use std::collections::BTreeMap;

use obsdiff_proto::{Digest, InputDigest, JobSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::{JOB, PROMPTS};
use super::objects::Put;
use super::{JobStore, Result, StoreError};

/// Everything that decides a job's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The release that began the job.
    pub release: String,
    /// The specification, with every default filled in.
    pub spec: JobSpec,
    /// Files of the model, by their paths in its folder.
    pub model_files: Vec<InputDigest>,
    /// Files of prompts, by the paths that the job gives.
    pub prompt_files: Vec<InputDigest>,
    /// Digest of the prompts, as [`Prompts::digest`] says it.
    pub prompts: Digest,
    /// Digest of the inventory as JSON.
    pub inventory: Digest,
    /// Digest of the plan as JSON.
    pub plan: Digest,
}

/// The prompts of a job: what its workers encode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// Prompt i of the calibration has id i.
    pub calibration: Vec<String>,
    /// Those that follow, on which the pruned model is held against the dense one.
    pub held_out: Vec<String>,
}

/// How a job was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The store was empty.
    New,
    /// The store holds results of the same job.
    Resumed,
}

impl Prompts {
    /// The digest of both lists.
    ///
    /// # Errors
    /// Never for texts; an error of the JSON writer otherwise.
    pub fn digest(&self) -> Result<Digest, serde_json::Error> {
        serde_json::to_vec(self).map(|json| Digest::of(&json))
    }
}

impl JobStore {
    /// Begins a job, or resumes it: the marker, the job itself and then its prompts are put in an empty store, and compared with what
    /// another holds. Of two jobs that begin at once, the first that puts its record has the store.
    ///
    /// # Errors
    /// When the store holds another job, naming each key and file that differs, or anything that is not obsdiff's; when it fails.
    pub async fn begin(&self, job: &JobRecord, prompts: &Prompts) -> Result<Opened> {
        self.claim(job).await?;
        if let Some(earlier) = self.sealed_if_any::<JobRecord>(JOB).await? {
            let opened = self.resume(&earlier, job)?;
            // Where they are missing, since the job was cut short here or somebody removed damaged ones, these are the same.
            self.put_sealed_new(PROMPTS, prompts).await?;
            return Ok(opened);
        }
        // Results without a job are left of a removal that was cut short, or of a job whose record was taken away.
        self.discard_results().await?;
        if self.put_sealed_new(JOB, job).await? == Put::Present {
            let opened = self.resume(&self.job().await?, job)?;
            self.put_sealed_new(PROMPTS, prompts).await?;
            return Ok(opened);
        }
        // In place of those of a record that was taken away.
        self.put_sealed(PROMPTS, prompts).await?;
        Ok(Opened::New)
    }

    /// The job whose results the store holds.
    ///
    /// # Errors
    /// When there is none, it is damaged, or the store fails.
    pub async fn job(&self) -> Result<JobRecord> {
        self.sealed(JOB).await
    }

    /// The prompts of `job`.
    ///
    /// # Errors
    /// When they are missing, damaged or another job's, or the store fails.
    pub async fn prompts(&self, job: &JobRecord) -> Result<Prompts> {
        let prompts: Prompts = self.sealed(PROMPTS).await?;
        let found = prompts.digest().map_err(|e| self.damaged(PROMPTS, &e.to_string()))?;
        if found == job.prompts { Ok(prompts) } else { Err(self.misdigested(PROMPTS, found, job.prompts)) }
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

/// What differs between two jobs, in words: keys first, then files; what follows from those is told only where it is alone.
fn changes(earlier: &JobRecord, job: &JobRecord) -> Result<Vec<String>, serde_json::Error> {
    let mut changes = Vec::new();
    let json = |spec: &JobSpec| serde_json::to_value(spec);
    changed_keys("", &json(&earlier.spec)?, &json(&job.spec)?, &mut changes);
    changed_files(&earlier.model_files, &job.model_files, &mut changes);
    changed_files(&earlier.prompt_files, &job.prompt_files, &mut changes);
    if !changes.is_empty() {
        return Ok(changes);
    }
    let releases = || format!("obsdiff {} began the job, and this is {}", earlier.release, job.release);
    if earlier.prompts != job.prompts {
        changes.push(format!("the prompts are read otherwise ({})", releases()));
    }
    if earlier.inventory != job.inventory {
        changes.push(format!("the model is described otherwise ({})", releases()));
    }
    if earlier.plan != job.plan {
        changes.push(format!("the job is planned otherwise ({})", releases()));
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

/// Keys whose values differ, with both values.
fn changed_keys(key: &str, before: &Value, now: &Value, changes: &mut Vec<String>) {
    let inner = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let shown = |value: &Value| if value.is_null() { "absent".to_owned() } else { value.to_string() };
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            for (name, value) in before {
                changed_keys(&inner(name), value, now.get(name).unwrap_or(&Value::Null), changes);
            }
            for (name, value) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
                changed_keys(&inner(name), &Value::Null, value, changes);
            }
        }
        (before, now) if before != now => {
            changes.push(format!("{key} was {} and is {}", shown(before), shown(now)));
        }
        _ => {}
    }
}

//! The record of the job that a store belongs to.

use obsdiff_proto::{Digest, InputDigest, JobSpec};
use serde::{Deserialize, Serialize};

use super::layout::{JOB, PROMPTS};
use super::{JobStore, Result};

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
    /// Digest of the prompts, by [`Prompts::digest`].
    pub prompts: Digest,
    /// Digest of the inventory as JSON.
    pub inventory: Digest,
    /// Digest of the plan as JSON.
    pub plan: Digest,
}

/// The prompts of a job, which its workers encode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// Those that calibrate. Prompt i has id i.
    pub calibration: Vec<String>,
    /// Those held out, whose ids follow. On them the pruned model is compared with the dense one.
    pub held_out: Vec<String>,
}

impl Prompts {
    /// All of them, in order of their ids.
    pub fn all(&self) -> Vec<&str> {
        self.calibration.iter().chain(&self.held_out).map(String::as_str).collect()
    }

    /// The digest of both lists.
    ///
    /// # Errors
    /// Never for texts; an error of the JSON writer otherwise.
    pub fn digest(&self) -> Result<Digest, serde_json::Error> {
        serde_json::to_vec(self).map(|json| Digest::of(&json))
    }
}

impl JobStore {
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
}

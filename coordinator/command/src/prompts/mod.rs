//! Prompts of a job: those that calibrate, and those held out to evaluate on.

mod file;
mod lines;
mod table;

use std::collections::HashSet;
use std::path::Path;

use obsdiff_proto::{InputDigest, JobError, JobSpec, counted};
use obsdiff_store::Prompts;
use obsdiff_worker::conditioning::ConditioningFile;
use obsdiff_worker::grams::GramIndex;

use crate::job::JobFile;
use crate::{Error, Result};

/// The prompts of a job, read once before any work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPrompts {
    /// Prompt i of the calibration has id i; as many as `calibration.count`.
    pub calibration: Vec<String>,
    /// Prompts that are not among those above; at most `evaluation.count`.
    pub held_out: Vec<String>,
    /// SHA-256 of the calibration file, in hexadecimal, where there is one.
    pub digest: Option<String>,
    /// The same of the file of held-out prompts, where it has one of its own.
    pub held_out_digest: Option<String>,
    /// Why there are fewer held-out prompts than asked for, in words for the user.
    pub note: Option<String>,
}

impl JobPrompts {
    /// The prompts as the job's store keeps them.
    pub fn recorded(&self) -> Prompts {
        Prompts { calibration: self.calibration.clone(), held_out: self.held_out.clone() }
    }

    /// Reads the prompt files of a job. Where it has none, its prompts are those of its file of `conditioning`, which may not say their
    /// texts.
    ///
    /// # Errors
    /// When a file is missing, is not what its extension says, has no such column, or holds no prompt or fewer than
    /// `calibration.count`. The error names the key of the job, the file and the line.
    pub fn load(job: &JobFile, conditioning: Option<&ConditioningFile>) -> Result<Self> {
        if let Some(kept) = job.kept() {
            return Ok(Self::of_grams(job, kept));
        }
        if let Some(file) = conditioning.filter(|_| job.spec.calibration.prompts.is_none()) {
            return Self::of_conditioning(job, file);
        }
        let spec = &job.spec;
        let wanted = spec.calibration.prompt_count() as usize;
        let mut calibration = Vec::new();
        let mut held_out = HeldOut::new(spec);
        let own = spec.evaluation.prompts.as_deref();
        let mut digest = None;
        if let Some(path) = &spec.calibration.prompts {
            let take = |prompt| {
                if calibration.len() < wanted {
                    calibration.push(prompt);
                } else if own.is_none() {
                    held_out.take(&calibration, prompt);
                }
                calibration.len() < wanted || (own.is_none() && held_out.wants())
            };
            let read = file::read(Path::new(path), spec.calibration.column.as_deref(), take);
            digest = Some(read.map_err(|e| of_key("calibration", job, e))?);
            if calibration.len() < wanted {
                let problem = format!(
                    "is {wanted}, but {path} holds {}: lower the count or give more prompts",
                    counted(calibration.len(), "prompt")
                );
                return Err(job.refuse(JobError::new("calibration.count", problem)));
            }
        }
        let held_out_digest = match own.filter(|_| held_out.wants()) {
            Some(path) => Some(
                file::read(Path::new(path), spec.evaluation.column.as_deref(), |prompt| {
                    held_out.take(&calibration, prompt);
                    held_out.wants()
                })
                .map_err(|e| of_key("evaluation", job, e))?,
            ),
            None => None,
        };
        let note = match own.or(spec.calibration.prompts.as_deref()) {
            Some(path) => held_out.note(path),
            None => held_out
                .wants()
                .then(|| "no prompts are given: the comparison with the source is left out".to_owned()),
        };
        Ok(Self { calibration, held_out: held_out.prompts, digest, held_out_digest, note })
    }

    /// The prompts that a file of conditioning holds: as many as calibrate, then those held out.
    fn of_conditioning(job: &JobFile, file: &ConditioningFile) -> Result<Self> {
        let (wanted, held_out) = (job.spec.calibration.count, job.spec.evaluation.count);
        if file.prompts() < wanted {
            let path = job.spec.calibration.conditioning.as_deref().unwrap_or_default();
            let problem = format!(
                "is {wanted}, but {path} holds {}: lower the count or encode more prompts",
                counted(file.prompts() as usize, "prompt")
            );
            return Err(job.refuse(JobError::new("calibration.count", problem)));
        }
        let text = |id: u32| match file.texts().and_then(|texts| texts.get(id as usize)) {
            Some(text) => text.clone(),
            None => format!("prompt {id}"),
        };
        let end = file.prompts().min(wanted.saturating_add(held_out));
        let note = (end - wanted < held_out).then(|| {
            format!(
                "evaluation.count asks for {held_out}, but calibration.conditioning has {} to hold out",
                counted((end - wanted) as usize, "prompt")
            )
        });
        Ok(Self {
            calibration: (0..wanted).map(text).collect(),
            held_out: (wanted..end).map(text).collect(),
            digest: None,
            held_out_digest: None,
            note,
        })
    }

    /// The prompts of the job that kept Grams: those that it calibrated on, and as many of those it held out as are asked for.
    fn of_grams(job: &JobFile, kept: &GramIndex) -> Self {
        let Prompts { calibration, mut held_out } = kept.prompts.clone();
        let wanted = job.spec.evaluation.count as usize;
        let note = (held_out.len() < wanted).then(|| {
            format!(
                "evaluation.count asks for {wanted}, but the Grams have {} with them",
                counted(held_out.len(), "held-out prompt")
            )
        });
        held_out.truncate(wanted);
        Self { calibration, held_out, digest: None, held_out_digest: None, note }
    }

    /// The digests of the files, by the paths that the job gives.
    pub fn files(&self, spec: &JobSpec) -> Vec<InputDigest> {
        let digest =
            |path: &String, sha256: &String| InputDigest { path: path.clone(), sha256: sha256.clone() };
        let calibration = spec.calibration.prompts.iter().zip(&self.digest);
        let held_out = spec.evaluation.prompts.iter().zip(&self.held_out_digest);
        calibration.chain(held_out).map(|(path, sha256)| digest(path, sha256)).collect()
    }
}

/// Reads up to `count` prompts of a file; all of them where `count` is none.
///
/// # Errors
/// As [`JobPrompts::load`].
pub fn read_prompts(path: &Path, column: Option<&str>, count: Option<usize>) -> Result<Vec<String>> {
    let most = count.unwrap_or(usize::MAX);
    let mut prompts = Vec::new();
    file::read(path, column, |prompt| {
        if prompts.len() < most {
            prompts.push(prompt);
        }
        prompts.len() < most
    })?;
    Ok(prompts)
}

/// Prompts held out from calibration: a prompt that calibrates, or that was taken already, is passed over.
struct HeldOut {
    wanted: usize,
    prompts: Vec<String>,
    seen: HashSet<String>,
    repeated: usize,
}

impl HeldOut {
    fn new(spec: &JobSpec) -> Self {
        Self {
            wanted: spec.evaluation.count as usize,
            prompts: Vec::new(),
            seen: HashSet::new(),
            repeated: 0,
        }
    }

    fn wants(&self) -> bool {
        self.prompts.len() < self.wanted
    }

    fn take(&mut self, calibration: &[String], prompt: String) {
        if !self.wants() {
            return;
        }
        if self.seen.is_empty() {
            self.seen.extend(calibration.iter().cloned());
        }
        if self.seen.insert(prompt.clone()) { self.prompts.push(prompt) } else { self.repeated += 1 }
    }

    fn note(&self, path: &str) -> Option<String> {
        let passed_over = match self.repeated {
            0 => String::new(),
            n => format!(" ({n} repeat an earlier one)"),
        };
        match self.prompts.len() {
            found if found == self.wanted => None,
            0 => Some(format!(
                "no prompt of {path} is held out from calibration{passed_over}: the comparison with the source is left out"
            )),
            found => Some(format!(
                "evaluation.count asks for {}, but {path} has {} to hold out from calibration{passed_over}",
                self.wanted,
                counted(found, "prompt")
            )),
        }
    }
}

/// Names the key that names the file, or the column's where that is what is wrong.
fn of_key(section: &str, job: &JobFile, error: file::PromptError) -> Error {
    let key = if error.column { "column" } else { "prompts" };
    job.refuse(JobError::new(format!("{section}.{key}"), error.error.line()))
}

#[cfg(test)]
mod tests;

//! `pruning.json`: what was done to a pipeline, for people and for programs.

use std::path::Path;

use obsdiff_files::{Disk, read_regular};
use obsdiff_proto::{InputDigest, JobSpec, Target};
use serde::{Deserialize, Serialize};

use super::documents::Document;
use super::measured::Measured;
use super::staging::replace_file;
use super::written::WrittenFile;
use crate::{Error, Result};

/// The file in a pruned pipeline that says how it was pruned.
pub const RECORD_FILE: &str = "pruning.json";

/// Much more than a record of a million linears takes.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// The content of `pruning.json`. All but [`Self::measured`] is the same in every run of the same job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruningRecord {
    /// The version of obsdiff that wrote it.
    pub obsdiff: String,
    /// The job with every default filled in.
    pub job: JobSpec,
    /// The kind of hardware that computed it; "mixed" where workers of any kind could take part.
    #[serde(default)]
    pub hardware: String,
    /// Digests of the files that decided the result.
    pub inputs: Vec<InputDigest>,
    /// The prompts that were held out from calibration, in the order of their ids; none where their texts are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<String>,
    /// Every pruned linear, in model order.
    pub linears: Vec<PrunedLinear>,
    /// Every structure that lost heads or neurons, in model order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub structures: Vec<PrunedStructure>,
    /// What structured pruning made of the whole transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<ModelSizes>,
    /// The files of the pipeline, but for this record and the documents beside it; empty until an export has written them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<WrittenFile>,
    /// What was measured once the pipeline was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

impl PruningRecord {
    /// The record of a pipeline that obsdiff has written; nothing where the folder has none, or a file of this name that is not
    /// obsdiff's.
    ///
    /// # Errors
    /// When the file cannot be read, or is a record that this release does not know.
    pub fn read(pipeline: &Path) -> Result<Option<Self>> {
        let path = pipeline.join(RECORD_FILE);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let text = read_regular(&path, MAX_RECORD_BYTES).map_err(|e| Error::file(&path, e))?;
        Self::parse(&text, &path)
    }

    /// The record that a file's content is; nothing where it is not obsdiff's.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Option<Self>> {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Ok(None) };
        if value.get("obsdiff").is_none() {
            return Ok(None);
        }
        let read = serde_json::from_value(value).map(Some);
        read.map_err(|e| {
            let problem = format!(
                "is no record that this release of obsdiff can read: {e}; move it away to go on without it"
            );
            Error::content(path, problem)
        })
    }

    /// The file's content.
    pub(super) fn text(&self, pipeline: &Path) -> Result<Vec<u8>> {
        let failed = |e| Error::content(pipeline.join(RECORD_FILE), format!("cannot be written: {e}"));
        serde_json::to_vec_pretty(self).map_err(failed)
    }

    /// Whether a pipeline was written by the job of this record, with the same result.
    pub(super) fn is_in(&self, pipeline: &Path) -> bool {
        self.written_in(pipeline).is_some()
    }

    /// The record of a pipeline that was written by the job of this record, with the same result.
    fn written_in(&self, pipeline: &Path) -> Option<Self> {
        Self::read(pipeline).ok().flatten().filter(|there| self.is_same(there))
    }

    /// Whether another record is of the same job with the same result.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let result = |record: &Self| {
            let record = Self { measured: None, files: Vec::new(), ..record.clone() };
            serde_json::to_vec(&record).ok()
        };
        result(other) == result(self)
    }

    /// Whether a pipeline has each file as the export of this record wrote it. A record that names no files says nothing about them, so
    /// that the answer is no.
    pub fn is_unchanged(&self, pipeline: &Path) -> bool {
        WrittenFile::are_in(&self.files, pipeline)
    }

    /// Writes this record in place of the one that an export of the same job wrote, and before it the `documents` that describe it. Whenever
    /// it is interrupted, each file is there, whole, as it was or as it is to be. Gives the record with the files that the export wrote, as
    /// it is written.
    ///
    /// # Errors
    /// When the pipeline has another job's record or a file of a document's name that is not obsdiff's, or one cannot be written.
    pub fn replace(&self, pipeline: &Path, documents: &[Document], disk: &Disk) -> Result<Self> {
        let path = pipeline.join(RECORD_FILE);
        let Some(there) = self.written_in(pipeline) else {
            let problem = "is not what the job has written: move the pipeline away and run the job again";
            return Err(Error::content(path, problem));
        };
        documents.iter().try_for_each(|document| document.replace(pipeline, disk))?;
        let record = Self { files: there.files, ..self.clone() };
        replace_file(&path, &record.text(pipeline)?, disk)?;
        Ok(record)
    }
}

/// An attention or a feed-forward network that lost parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedStructure {
    /// The diffusers module path.
    pub name: String,
    /// The package it was pruned in.
    pub package: u32,
    /// Whether its parts are attention heads, or neurons.
    pub heads: bool,
    /// Parts before.
    pub of: usize,
    /// Parts that are left.
    pub kept: usize,
    /// The errors of the parts that went, each over its linear's output energy, damping counted; absent without a Gram.
    pub error: Option<f64>,
    /// The attention heads that went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<usize>,
}

/// A transformer before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSizes {
    /// Parameters.
    pub parameters: [u64; 2],
    /// Floating-point operations of a forward call on one picture of the job.
    pub forward_flops: [f64; 2],
}

/// A pruned linear and how well it kept its function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedLinear {
    /// The diffusers module path.
    pub name: String,
    /// Rows (output features) and columns (input features) of its weight.
    pub shape: [usize; 2],
    /// Its target.
    pub target: Target,
    /// The package it was pruned in.
    pub package: u32,
    /// Weights that are zero.
    pub zeros: u64,
    /// The damping its site's Hessian needed to choose the mask, or to refine that of another method; absent where neither the method nor
    /// refinement uses it.
    pub damping: Option<f64>,
    /// tr(S) of its site's Gram S, the weighted energy of its inputs; absent without a Gram.
    pub gram_trace: Option<f64>,
    /// The relative error that pruning left, before the weights that stay were refined; absent where they were not.
    pub unrefined_error: Option<f64>,
    /// tr(dW S dW^T) / tr(W S W^T) with the Gram S, W before and W + dW after pruning and refining; absent without a Gram.
    pub relative_error: Option<f64>,
    /// How much an error of this linear moves the model's velocity, as probed: the mean squared relative change of the velocity over
    /// the relative error; absent where nothing was probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

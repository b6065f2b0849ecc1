//! A job whose prompts come encoded: the file that `calibration.conditioning` names.

use std::path::Path;

use obsdiff_engine::checkpoint::sha256;
use obsdiff_proto::{InputDigest, JobError};
use obsdiff_worker::conditioning::ConditioningFile;

use crate::described::Described;
use crate::job::JobFile;
use crate::prompts::JobPrompts;
use crate::{Error, Result};

const KEY: &str = "calibration.conditioning";

/// Opens the file of a job, where it names one.
///
/// # Errors
/// When it cannot be used, naming the key and the file.
pub fn open(job: &JobFile) -> Result<Option<ConditioningFile>> {
    let path = job.spec.calibration.conditioning.as_ref();
    path.map(|path| ConditioningFile::open(Path::new(path)).map_err(|e| refuse(job, e))).transpose()
}

/// Checks that the file of a job is of its model and its prompts.
///
/// # Errors
/// The first thing of it that does not fit, naming the key, the file, the tensor and what to do.
pub fn check(
    job: &JobFile,
    file: Option<&ConditioningFile>,
    described: &Described,
    prompts: &JobPrompts,
) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let path = job.spec.calibration.conditioning.as_deref().unwrap_or_default();
    let texts: Vec<&String> = prompts.calibration.iter().chain(&prompts.held_out).collect();
    if texts.len() > file.prompts() as usize {
        let problem = format!(
            "is {path}, which holds {} prompts, but the job takes {} to calibrate and {} held out: encode more, or lower \
             calibration.count or evaluation.count",
            file.prompts(),
            prompts.calibration.len(),
            prompts.held_out.len()
        );
        return Err(job.refuse(JobError::new(KEY, problem)));
    }
    let differs =
        file.texts().and_then(|of_file| texts.iter().zip(of_file).position(|(ours, theirs)| *ours != theirs));
    if let Some(id) = differs {
        let problem = format!(
            "is {path}, whose prompt {id} is another than the job's: encode the job's prompts, in their order"
        );
        return Err(job.refuse(JobError::new(KEY, problem)));
    }
    file.check(&job.spec, described.model(), texts.len() as u32).map_err(|e| refuse(job, e))
}

/// The digest of the file of a job, by the path that the job gives.
///
/// # Errors
/// When it cannot be read.
pub fn digest(job: &JobFile) -> Result<Option<InputDigest>> {
    let of = |path: &String| Ok(InputDigest { path: path.clone(), sha256: sha256(Path::new(path))? });
    job.spec.calibration.conditioning.as_ref().map(of).transpose()
}

fn refuse(job: &JobFile, error: obsdiff_engine::Error) -> Error {
    job.refuse(JobError::new(KEY, format!("is {}", Error::Engine(error).line())))
}

//! Grams that outlive a job: those that it keeps, and those that it goes by.

use obsdiff_coordinator::JobState;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::Disk;
use obsdiff_proto::{Digest, GramPrecision, InputDigest, JobError};
use obsdiff_store::GramStore;
use obsdiff_worker::grams::{GramIndex, GramOrigin, JobGrams};
use tokio::runtime::Handle;

use super::Inputs;
use crate::job::JobFile;
use crate::{Error, Result, conditioning};

/// Opens the places of a job's Grams; that of those it keeps is claimed for it.
///
/// # Errors
/// When a place cannot be opened.
pub(super) fn open(
    job: &JobFile,
    inputs: &Inputs,
    (device, runtime): (&ComputeDevice, &Handle),
) -> Result<JobGrams> {
    let origin = GramOrigin {
        spec: job.spec.clone(),
        hardware: device.hardware(),
        model_files: inputs.model_files.clone(),
        prompt_files: inputs.prompt_files.clone(),
        prompts: inputs.prompts.recorded(),
    };
    Ok(JobGrams::open(origin, inputs.kept.as_ref(), job.stores().pairs(), runtime)?)
}

/// Marks the place of the Grams that a job keeps as its own.
///
/// # Errors
/// When it holds anything else, or the store fails.
pub(crate) fn claim(job: &JobFile, state: &JobState) -> Result<()> {
    let Some(url) = &job.spec.output.grams else { return Ok(()) };
    let store = GramStore::create(url, job.stores().pairs())?;
    Ok(state.runtime().block_on(store.claim(&job.spec, state.resumed))?)
}

/// What its user should know of a job that goes by kept Grams on this kind of hardware: where its weights may differ from those of a
/// whole run.
pub(super) fn note(kept: &GramIndex, hardware: &str) -> Option<String> {
    if !kept.is_dense() {
        let words = "these Grams were gathered package by package, each on the model as the first job had pruned it before: where settings \
                     differ from that job's, the result is near a whole run's, not equal to it";
        return Some(words.to_owned());
    }
    if kept.spec.output.gram_precision == GramPrecision::F32 {
        let words = "these Grams were kept as 32-bit floats: masks and weights are nearly those of a whole run, not equal to them";
        return Some(words.to_owned());
    }
    let theirs = kept.hardware.as_deref()?;
    (hardware != theirs).then(|| {
        format!("these Grams were gathered on {theirs}, and this job runs on {hardware}: bits may differ from a whole run's here")
    })
}

/// Removes what a job that could not begin has left at the place of its Grams.
pub(super) fn give_up(job: &JobFile, state: &JobState, disk: &Disk) {
    let Some(url) = &job.spec.output.grams else { return };
    let removed = GramStore::open(url, job.stores().pairs()).and_then(|store| {
        // Only what is this job's: another's is refused.
        state.runtime().block_on(async {
            store.claim(&job.spec, false).await?;
            store.remove(disk).await
        })
    });
    if let Err(error) = removed {
        tracing::debug!(grams = url, %error, "Grams of a job that did not begin stay");
    }
}

/// Refuses a job whose model or conditioning is not what its kept Grams were gathered by.
///
/// # Errors
/// When a file of the model, or that of the conditioning, is another than it was then.
pub(crate) fn check_kept(job: &JobFile, kept: &GramIndex, model_files: &[InputDigest]) -> Result<()> {
    let url = job.spec.calibration.grams.clone().unwrap_or_default();
    let refuse = |key: &str, problem: String| Err(job.refuse(JobError::new(key, problem)));
    let gone = kept.model_files.iter().find(|file| !model_files.contains(file));
    if let Some(file) = gone.or_else(|| model_files.iter().find(|file| !kept.model_files.contains(file))) {
        let problem = format!(
            "is {}, whose {} is not the file that the Grams of {url} were gathered on: give the model of that job",
            job.spec.model.path, file.path
        );
        return refuse("model.path", problem);
    }
    let conditioning = conditioning::digest(job)?;
    let known = |file: &InputDigest| kept.prompt_files.iter().any(|other| other.sha256 == file.sha256);
    if let Some(file) = conditioning.filter(|file| !known(file)) {
        let problem =
            format!("is {}, which is not the file that the Grams of {url} were gathered by", file.path);
        return refuse("calibration.conditioning", problem);
    }
    Ok(())
}

/// The files that decide the result of a job that goes by kept Grams, besides those of its model: the index of the Grams among them.
///
/// # Errors
/// As [`check_kept`].
pub(super) fn files(
    job: &JobFile,
    kept: &GramIndex,
    model_files: &[InputDigest],
) -> Result<Vec<InputDigest>> {
    check_kept(job, kept, model_files)?;
    let url = job.spec.calibration.grams.clone().unwrap_or_default();
    let json = serde_json::to_vec(kept).map_err(|e| Error::content(&url, e.to_string()))?;
    let index = InputDigest { path: format!("{url}/grams.json"), sha256: Digest::of(&json).to_string() };
    Ok(kept.prompt_files.iter().cloned().chain([index]).collect())
}

#[cfg(test)]
mod tests {
    use obsdiff_store::Prompts;

    use super::*;

    #[test]
    fn grams_of_another_device_are_noted_and_those_of_the_same_are_not() {
        let spec = serde_json::json!({
            "model": { "path": "pipeline" },
            "sparsity": { "pattern": "2:4" },
            "calibration": { "prompts": "prompts.txt" },
            "output": { "path": "out", "grams": "grams" },
        });
        let kept = GramIndex {
            release: "1".to_owned(),
            spec: serde_json::from_value(spec).unwrap(),
            hardware: Some("a processor, a GPU".to_owned()),
            model_files: Vec::new(),
            prompt_files: Vec::new(),
            prompts: Prompts::default(),
            sites: Vec::new(),
            survey: Vec::new(),
        };
        assert_eq!(note(&kept, "a processor, a GPU"), None);
        let words = note(&kept, "a processor").unwrap();
        let kinds = "gathered on a processor, a GPU, and this job runs on a processor: ";
        assert!(words.contains(kinds), "{words}");
        assert_eq!(note(&GramIndex { hardware: None, ..kept }, "a processor"), None);
    }
}

//! What the dense model makes of the held-out prompts, for runs of one process that would find the same.

use std::sync::Mutex;

use obsdiff_engine::calibrate::Denoised;
use obsdiff_proto::{CalibrationSpec, ComputeType, InputDigest, lock};
use obsdiff_store::Prompts;

use super::Inputs;
use crate::Result;
use crate::job::JobFile;

/// Keeps what the dense model made of the held-out prompts of the last run, so that the next one with the same model and prompts takes it
/// over: the points of a sweep differ in how they prune alone.
#[derive(Default)]
pub struct DenseSamples {
    last: Mutex<Option<(SampleOrigin, Denoised)>>,
}

/// All that the samples of a dense model depend on.
#[derive(PartialEq)]
struct SampleOrigin {
    model_files: Vec<InputDigest>,
    dtype: ComputeType,
    hardware: String,
    prompts: Prompts,
    /// But for the Grams that a job goes by.
    calibration: CalibrationSpec,
    /// The files of a job whose prompts come encoded: its texts may not say what they are.
    encoded: Vec<InputDigest>,
}

impl SampleOrigin {
    fn of(job: &JobFile, inputs: &Inputs, hardware: String) -> Self {
        let calibration = CalibrationSpec { grams: None, gram_prompts: None, ..job.spec.calibration.clone() };
        let encoded = calibration.conditioning.as_ref().map(|_| inputs.prompt_files.clone());
        Self {
            model_files: inputs.model_files.clone(),
            dtype: job.spec.model.dtype,
            hardware,
            prompts: inputs.prompts.recorded(),
            calibration,
            encoded: encoded.unwrap_or_default(),
        }
    }
}

impl DenseSamples {
    /// The samples of a job on such hardware: those of the last run where they are the same, otherwise those that `sample` makes.
    /// A run on another thread waits for them.
    ///
    /// # Errors
    /// Those of `sample`.
    pub(super) fn of(
        &self,
        (job, inputs, hardware): (&JobFile, &Inputs, String),
        sample: impl FnOnce() -> Result<Option<Denoised>>,
    ) -> Result<Option<Denoised>> {
        self.from(SampleOrigin::of(job, inputs, hardware), sample)
    }

    fn from(
        &self,
        origin: SampleOrigin,
        sample: impl FnOnce() -> Result<Option<Denoised>>,
    ) -> Result<Option<Denoised>> {
        let mut last = lock(&self.last);
        if let Some((_, samples)) = last.as_ref().filter(|(of_last, _)| *of_last == origin) {
            return Ok(Some(samples.clone()));
        }
        let samples = sample()?;
        *last = samples.clone().map(|samples| (origin, samples));
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};
    use obsdiff_proto::Digest;

    use super::*;

    fn origin() -> SampleOrigin {
        let file = InputDigest { path: "weights".to_owned(), sha256: Digest::of(b"weights").to_string() };
        SampleOrigin {
            model_files: vec![file],
            dtype: ComputeType::F32,
            hardware: "a processor".to_owned(),
            prompts: Prompts { calibration: vec!["a".to_owned()], held_out: vec!["b".to_owned()] },
            calibration: CalibrationSpec::default(),
            encoded: Vec::new(),
        }
    }

    #[test]
    fn samples_are_taken_over_where_all_that_they_depend_on_is_the_same() {
        let samples = DenseSamples::default();
        let latents = Tensor::zeros(1, DType::F32, &obsdiff_engine::HOST).unwrap();
        let made = |origin: SampleOrigin| {
            let mut made = false;
            let found = samples.from(origin, || {
                made = true;
                Ok(Some(Denoised { latents: latents.clone(), steps: Vec::new() }))
            });
            assert!(found.unwrap().is_some());
            made
        };
        assert!(made(origin()) && !made(origin()));
        let changes: [fn(&mut SampleOrigin); 6] = [
            |origin| origin.model_files.clear(),
            |origin| origin.dtype = ComputeType::Bf16,
            |origin| origin.hardware.push_str(" of another kind"),
            |origin| origin.prompts.held_out.push("c".to_owned()),
            |origin| origin.calibration.seed += 1,
            |origin| origin.encoded = origin.model_files.clone(),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut changed = origin();
            change(&mut changed);
            assert!(made(changed), "change {i} counts for nothing");
            assert!(made(origin()));
        }
    }
}

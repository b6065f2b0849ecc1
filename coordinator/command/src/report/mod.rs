//! `report.html`: one file that shows what was pruned, and how far the pruned model is from the dense one. It needs no other file and
//! no network.

mod card;
mod code;
mod documents;
mod file;
mod heat;
mod linears;
mod page;
mod pictures;
mod sections;
mod steps;
mod words;

use obsdiff_engine::export::PruningRecord;
use obsdiff_engine::pipeline::{Picture, PipelineFolder};

pub(crate) use documents::{OutputDocuments, name_of, retimed};
pub(crate) use file::{check_file, write_file};

use crate::picture::psnr;

/// Prompts whose pictures a report shows, at most.
pub(crate) const MOST_SAMPLES: usize = 24;

/// What a report shows.
pub(crate) struct ReportPage<'a> {
    /// The pruned pipeline, as people call it.
    pub(crate) name: String,
    /// How it was pruned, where that is recorded.
    pub(crate) record: Option<&'a PruningRecord>,
    /// What two pipelines were compared by, where none is the output of the job that made them.
    pub(crate) comparison: Option<ComparedPipelines>,
    /// The pictures.
    pub(crate) samples: Vec<Sample>,
    /// Relative errors of the latents after each step, from the noisiest on.
    pub(crate) per_step: &'a [f64],
    /// How the pruned pipeline is loaded.
    pub(crate) loading: Option<Loading>,
}

/// What `compare` was asked for.
pub(crate) struct ComparedPipelines {
    /// Path of the dense pipeline.
    pub(crate) dense: String,
    /// Path of the pruned pipeline.
    pub(crate) pruned: String,
    /// ||pruned - dense|| / ||dense|| of the final latents, all prompts together.
    pub(crate) relative_error: f64,
    /// Prompts that were compared.
    pub(crate) prompts: usize,
    /// Denoising steps.
    pub(crate) steps: usize,
}

/// A prompt's pictures by both models, from the same noise.
pub(crate) struct Sample {
    /// The prompt, where its text is known.
    pub(crate) prompt: Option<String>,
    /// The seed of its noise.
    pub(crate) seed: u64,
    /// By the dense model.
    pub(crate) dense: Picture,
    /// By the pruned model.
    pub(crate) pruned: Picture,
    /// ||pruned - dense|| / ||dense|| of its final latents.
    pub(crate) relative_error: f64,
}

impl Sample {
    /// Peak signal-to-noise ratio of its pictures in decibels; none where they are equal.
    pub(crate) fn psnr(&self) -> Option<f64> {
        psnr(&self.dense, &self.pruned).filter(|decibels| decibels.is_finite())
    }

    /// The samples of prompts of which the first has the noise of `seed`, as far as there are pictures of them.
    pub(crate) fn of(
        prompts: &[String],
        seed: u64,
        errors: &[f64],
        [dense, pruned]: [Vec<Picture>; 2],
    ) -> Vec<Self> {
        let pictures = dense.into_iter().zip(pruned).zip(errors).take(MOST_SAMPLES).enumerate();
        let sample = |(i, ((dense, pruned), error)): (usize, ((Picture, Picture), &f64))| Self {
            prompt: prompts.get(i).cloned(),
            seed: seed.wrapping_add(i as u64),
            dense,
            pruned,
            relative_error: *error,
        };
        pictures.map(sample).collect()
    }
}

/// How a pipeline is loaded by diffusers.
#[derive(Clone, Debug)]
pub(crate) struct Loading {
    /// Its folder.
    pub(crate) path: String,
    /// The URL of an object store from which that folder has to be downloaded first.
    pub(crate) url: Option<String>,
    /// The class of the pipeline, by diffusers' name.
    pub(crate) pipeline_class: String,
    /// The Python module in the transformer's folder that loads a transformer without some of its heads and neurons.
    pub(crate) module: Option<String>,
    /// The text encoders and tokenizers that it does without, which diffusers has to be told.
    pub(crate) absent_text: Vec<&'static str>,
}

/// Further arguments by which diffusers loads a pipeline without these components; it asks for them otherwise.
pub(crate) fn given_as_none(absent: &[&str]) -> String {
    absent.iter().map(|component| format!(", {component}=None")).collect()
}

impl Loading {
    /// How the pipeline in this folder is loaded, which people know by `path`.
    pub(crate) fn of(pipeline: &PipelineFolder, path: &str) -> Self {
        let (module, absent_text) = (module_of(pipeline), pipeline.absent_text().to_vec());
        let pipeline_class = pipeline.architecture().pipeline_class.to_owned();
        Self { path: path.to_owned(), url: None, pipeline_class, module, absent_text }
    }
}

/// The Python module in the folder of a transformer that has lost heads and neurons.
pub(crate) fn module_of(pipeline: &PipelineFolder) -> Option<String> {
    std::fs::read_dir(pipeline.path().join("transformer")).into_iter().flatten().find_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(".py").filter(|name| name.starts_with("modeling_pruned")).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests;

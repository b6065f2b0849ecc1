//! What `obsdiff compare` found, as text or JSON.

use std::fmt;
use std::path::Path;

use obsdiff_engine::export::HeldOutError;
use obsdiff_engine::pipeline::Picture;
use obsdiff_proto::counted;
use serde::Serialize;

use super::speed::Speed;
use crate::picture::psnr;
use crate::run::held_out::mean;
use crate::sampling::Settings;
use crate::text::Table;

/// Longer prompts are cut off in the table, which then takes 80 columns with its two figures.
const PROMPT_CHARACTERS: usize = 56;

/// A pruned pipeline beside the dense one; `--json` prints it as it is here.
#[derive(Serialize)]
pub(super) struct Comparison {
    /// ||pruned - dense|| / ||dense|| of the final latents, L2 over all prompts together: the figure that `run` prints.
    relative_error: f64,
    /// The mean of the prompts' own errors.
    mean_relative_error: f64,
    /// The mean PSNR of the pictures that differ: an equal pair's is infinite. None where all are equal.
    mean_psnr_decibels: Option<f64>,
    prompts: Vec<PromptDifference>,
    settings: Settings,
    /// The file with the grid of pictures.
    grid: String,
    /// The file of the report, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<String>,
    /// The time of forward calls, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) speed: Option<Speed>,
}

/// The difference that pruning makes to one prompt.
#[derive(Serialize)]
struct PromptDifference {
    prompt: String,
    /// ||pruned - dense|| / ||dense|| of its final latents.
    relative_error: f64,
    /// Peak signal-to-noise ratio of its pictures; none where they are equal.
    psnr_decibels: Option<f64>,
}

impl Comparison {
    /// What the latents' `error` and the pictures, dense and pruned ones, say about each prompt.
    pub(super) fn new(
        prompts: &[String],
        error: &HeldOutError,
        [dense, pruned]: &[Vec<Picture>; 2],
        settings: Settings,
        grid: &Path,
    ) -> Self {
        let noise = dense.iter().zip(pruned).map(|(dense, pruned)| psnr(dense, pruned));
        let noise = noise.map(|noise| noise.filter(|decibels| decibels.is_finite()));
        let prompts: Vec<PromptDifference> = prompts
            .iter()
            .zip(&error.per_prompt)
            .zip(noise)
            .map(|((prompt, error), psnr_decibels)| PromptDifference {
                prompt: prompt.clone(),
                relative_error: *error,
                psnr_decibels,
            })
            .collect();
        Self {
            relative_error: error.relative,
            mean_relative_error: mean(error.per_prompt.iter().copied()).unwrap_or(0.0),
            mean_psnr_decibels: mean(prompts.iter().filter_map(|prompt| prompt.psnr_decibels)),
            prompts,
            settings,
            grid: grid.display().to_string(),
            report: None,
            speed: None,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["prompt", "latent error", "PSNR"]);
        let row = |name: String, error: f64, psnr| [name, format!("{error:.4}"), decibels(psnr)];
        for prompt in &self.prompts {
            table.row(row(cut(&prompt.prompt), prompt.relative_error, prompt.psnr_decibels));
        }
        table.rule();
        table.row(row("mean".to_owned(), self.mean_relative_error, self.mean_psnr_decibels));
        writeln!(f, "{table}")?;
        let prompts = counted(self.prompts.len(), "prompt");
        writeln!(f, "final latents differ by {:.4} (L2, relative) on {prompts}", self.relative_error)?;
        write!(f, "{}: rows by turns dense and pruned", self.grid)?;
        if let Some(report) = &self.report {
            write!(f, "\n{report}: the report")?;
        }
        self.speed.as_ref().map_or(Ok(()), |speed| write!(f, "\n{speed}"))
    }
}

fn cut(prompt: &str) -> String {
    match prompt.chars().count() {
        0..=PROMPT_CHARACTERS => prompt.to_owned(),
        _ => prompt.chars().take(PROMPT_CHARACTERS - 3).chain("...".chars()).collect(),
    }
}

fn decibels(psnr: Option<f64>) -> String {
    psnr.map_or("equal".to_owned(), |psnr| format!("{psnr:.2} dB"))
}

//! Arguments of the commands that make pictures.

use std::path::PathBuf;

use clap::Args;
use obsdiff_engine::device::DeviceName;

use super::{ProcessArgs, path};

/// `sample DIR`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff sample out --prompt 'a red circle on white' --out circle.png\n  \
        obsdiff sample out --prompts prompts.txt --count 16 --seed 7 --out pictures"
)]
pub struct SampleArgs {
    /// A pipeline.
    #[arg(value_name = "DIR", value_parser = path())]
    pub pipeline: PathBuf,
    /// What the pictures show, and how they are made.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// A .png file for a grid of all pictures, or a folder for one file a prompt, named 0000.png, 0001.png and so on. Pictures that
    /// obsdiff wrote before are replaced. Any other file is left alone.
    #[arg(long, value_name = "PATH", default_value = "sample.png", value_parser = path())]
    pub out: PathBuf,
}

/// `compare DENSE PRUNED`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff compare ./pipeline out\n  \
        obsdiff compare ./pipeline out --prompts others.txt --count 8")]
pub struct CompareArgs {
    /// The dense pipeline.
    #[arg(value_name = "DENSE", value_parser = path())]
    pub dense: PathBuf,
    /// The pruned pipeline.
    #[arg(value_name = "PRUNED", value_parser = path())]
    pub pruned: PathBuf,
    /// What the pictures show, and how they are made.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The .png file of the grid. A picture that obsdiff wrote before is replaced. Any other file is left alone.
    #[arg(long, value_name = "FILE", default_value = "compare.png", value_parser = path())]
    pub out: PathBuf,
    /// Also write a report: one .html file with the pictures, their differences, and what is recorded of the pruned pipeline. A report
    /// that obsdiff wrote before is replaced. Any other file is left alone.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub report: Option<PathBuf>,
    /// Also measure the time of a forward call of each, and compare it with its arithmetic.
    #[arg(long)]
    pub speed: bool,
    /// Print one JSON object with the same figures instead of text. Numbers with a unit have it in their names.
    #[arg(long)]
    pub json: bool,
}

/// What pictures show, and how they are made.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// A prompt. May be given several times. Without any, and without a file, a pruned pipeline's prompts are those that its job held
    /// out.
    #[arg(long = "prompt", value_name = "TEXT", conflicts_with_all = ["file", "column", "count"])]
    pub prompts: Vec<String>,
    /// A file of prompts: .txt with one a line, or .csv, .tsv or .jsonl with --column.
    #[arg(long = "prompts", id = "file", value_name = "FILE", value_parser = path())]
    pub file: Option<PathBuf>,
    /// The column of the file that holds the prompt.
    #[arg(long, requires = "file")]
    pub column: Option<String>,
    /// Prompts used, from the first one on [default: 8 of a file, all of those held out].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// Denoising steps [default: the job's, else 25].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: Option<u32>,
    /// Guidance [default: the job's, else that of diffusers' pipeline for the model]. Where it is classifier-free, at most 1 runs
    /// without the negative prompt.
    #[arg(long, value_parser = guidance)]
    pub guidance: Option<f64>,
    /// Classifier-free guidance of models that take guidance as an input; at most 1 runs without the negative prompt [default: the
    /// job's, else 1].
    #[arg(long, value_parser = guidance)]
    pub true_guidance: Option<f64>,
    /// Prompt i starts from the noise of seed + i [default: the job's, with the places of held-out prompts counted on from those that
    /// calibrate; else 0].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Height in pixels [default: the job's, else the model's own].
    #[arg(long)]
    pub height: Option<u32>,
    /// Width in pixels [default: the job's, else the model's own].
    #[arg(long)]
    pub width: Option<u32>,
    /// Tokens of the T5 prompt [default: the job's, else those of diffusers' pipeline for the model].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub max_sequence_length: Option<u32>,
    /// Prompts that run as one batch [default: a shard of the job, else 4].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
    /// Where prompts are encoded, the transformer is computed and pictures are decoded: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

fn guidance(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("a number of 0 or more is expected".to_owned()),
    }
}

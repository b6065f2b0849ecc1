//! The command line: what each command takes, and what its help says.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// One-shot pruning of diffusion transformers.
///
/// obsdiff prunes diffusion transformers without training, by second-order information (Optimal Brain Surgeon) that it gathers along
/// the denoising trajectory of your own prompts. It reads and writes diffusers pipeline directories.
#[derive(Debug, Parser)]
#[command(name = "obsdiff", version, max_term_width = 100, after_long_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Environment:
  OBSDIFF_SECTION__KEY  overrides a key of the job file: OBSDIFF_SPARSITY__RATIO=0.6
  OBSDIFF_LOG           what is logged to standard error: error, warn (default), info, debug,
                        or by module, such as obsdiff_engine=debug

Exit codes:
  0  done
  2  the input has to be changed first; nothing was written
  3  failed; the same command may be run again

Example:
  obsdiff inspect stable-diffusion-3.5-medium";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prune a pipeline on this machine.
    ///
    /// Reads the job's pipeline, calibrates on its prompts, prunes package by package and writes a pipeline that diffusers loads. All
    /// input is checked before any work, and the output appears whole or not at all. Ends with a table of the pruned linears, where the
    /// time went, and how far the final latents of held-out prompts are from the dense model's.
    Run(RunArgs),
    /// Show what a job would do and cost, without reading a weight.
    ///
    /// Shows a job's packages with their bytes and arithmetic, and the memory it would take. Everything is checked that can be
    /// without reading a weight: the job, its prompts, and the configuration and headers of the pipeline.
    Plan(PlanArgs),
    /// Show each linear's shape, zeros and sparsity pattern.
    ///
    /// DIR is a pipeline, whose transformer is shown, or any folder of safetensors. Weights are memory-mapped and read once, so a
    /// model larger than the memory will do.
    Inspect(InspectArgs),
    /// Make pictures from prompts.
    ///
    /// They are those that diffusers makes with the same seeds on a CPU, in f32.
    Sample(SampleArgs),
    /// Compare a pruned pipeline with the dense one on the same prompts and seeds.
    ///
    /// For each prompt it prints the error of the final latents, ||pruned - dense|| / ||dense||, and the peak signal-to-noise ratio
    /// (PSNR) of the pictures. It writes a grid of pictures: a row of dense ones, below it the same prompts from the pruned pipeline,
    /// and so on.
    Compare(CompareArgs),
}

/// `run JOB`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff run job.toml --set sparsity.pattern=2:4 --set output.path=out-2-4"
)]
pub struct RunArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `plan JOB`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff plan job.toml --set packages.memory=16GiB")]
pub struct PlanArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
}

/// `inspect DIR`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff inspect out\n  obsdiff inspect out --json > sparsity.json")]
pub struct InspectArgs {
    /// A pipeline, or a folder or file of safetensors.
    #[arg(value_name = "DIR")]
    pub path: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// `sample DIR`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff sample out --prompt 'a red circle on white' --out circle.png\n  \
        obsdiff sample out --prompts prompts.txt --count 16 --seed 7 --out pictures"
)]
pub struct SampleArgs {
    /// A pipeline.
    #[arg(value_name = "DIR")]
    pub pipeline: PathBuf,
    /// What the pictures show, and how they are made.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// A .png file, which holds all pictures in a grid, or a folder for one file a prompt, named 0000.png and on. What is there is
    /// overwritten.
    #[arg(long, value_name = "PATH", default_value = "sample.png")]
    pub out: PathBuf,
}

/// `compare DENSE PRUNED`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff compare stable-diffusion-3.5-medium out --prompts heldout.txt --count 8"
)]
pub struct CompareArgs {
    /// The dense pipeline.
    #[arg(value_name = "DENSE")]
    pub dense: PathBuf,
    /// The pruned pipeline.
    #[arg(value_name = "PRUNED")]
    pub pruned: PathBuf,
    /// What the pictures show, and how they are made.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The .png file of the grid. What is there is overwritten.
    #[arg(long, value_name = "FILE", default_value = "compare.png")]
    pub out: PathBuf,
}

/// What pictures show, and how they are made.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// A prompt; may be given again.
    #[arg(long = "prompt", value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    pub prompts: Vec<String>,
    /// A file of prompts: .txt with one a line, or .csv, .tsv or .jsonl with --column.
    #[arg(long = "prompts", id = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The column of the file that holds the prompt.
    #[arg(long, requires = "file")]
    pub column: Option<String>,
    /// Prompts used, from the start of the file.
    #[arg(long, requires = "file", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Denoising steps.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: u32,
    /// Classifier-free guidance; at most 1 runs without the negative prompt.
    #[arg(long, default_value_t = 7.0, value_parser = guidance)]
    pub guidance: f64,
    /// Prompt i starts from the noise of seed + i.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Height in pixels [default: the model's own].
    #[arg(long)]
    pub height: Option<u32>,
    /// Width in pixels [default: the model's own].
    #[arg(long)]
    pub width: Option<u32>,
    /// Tokens of the T5 prompt.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub max_sequence_length: u32,
    /// Prompts that run as one batch.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

fn guidance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("a number of 0 or more is expected".to_owned()),
    }
}

/// How a process that computes runs.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Threads [default: one a core]. Results do not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Show no progress.
    #[arg(long)]
    pub quiet: bool,
}

/// The job that a command works on.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job file, TOML. Paths in it are relative to the current directory.
    #[arg(value_name = "JOB")]
    pub job: PathBuf,
    /// Override a key of the job file, over OBSDIFF_... variables too; may be given again.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
}

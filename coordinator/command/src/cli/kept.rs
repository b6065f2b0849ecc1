//! The commands that go by kept Grams.

use std::path::PathBuf;

use clap::Args;
use obsdiff_engine::device::DeviceName;
use obsdiff_proto::Pattern;

use super::{ProcessArgs, PruningArgs, path};

/// `solve GRAMS`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff solve grams --set sparsity.ratio=0.6 --set output.path=out-60\n\nGrams are kept by:\n  \
        obsdiff run job.toml --set output.grams=grams"
)]
pub struct SolveArgs {
    /// The kept Grams: a directory or s3://...
    #[arg(value_name = "GRAMS")]
    pub grams: String,
    /// Override a key of the job that kept the Grams. May be given several times. VALUE is text as it stands; in quotes it is a string of
    /// TOML, and lists are TOML. SECTION.KEY= unsets the key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
    /// How it prunes, and what it prints.
    #[command(flatten)]
    pub pruning: PruningArgs,
}

/// `sweep GRAMS`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff sweep grams --ratios 0.4,0.5,0.6,0.7 --patterns unstructured,2:4 --out sweep\n  \
        obsdiff sweep grams --ratios 0.4,0.5,0.6,0.7 --predicted --out sweep\n\nHow many prompts are enough:\n  \
        obsdiff run job.toml --set output.grams=grams --set 'output.gram_prompts=[8, 16, 32]'\n  \
        obsdiff sweep grams --ratios 0.5 --prompts 8,16,32,100 --out prompts"
)]
pub struct SweepArgs {
    /// The kept Grams: a directory or s3://...
    #[arg(value_name = "GRAMS")]
    pub grams: String,
    /// Shares of zeros, for each pattern but N:M, whose share is its own.
    #[arg(long, value_name = "RATIO,...", value_delimiter = ',')]
    pub ratios: Vec<f64>,
    /// Patterns.
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',', default_value = "unstructured")]
    pub patterns: Vec<Pattern>,
    /// Numbers of calibration prompts whose Grams are kept, by output.gram_prompts of the job that kept them, or all of them [default:
    /// all]. With several, the chart shows errors against prompts.
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',')]
    pub prompts: Vec<u32>,
    /// The folder for sweep.csv, sweep.json and sweep.png, which must not exist yet.
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: PathBuf,
    /// Stop after the prediction.
    #[arg(long)]
    pub predicted: bool,
    /// Override a key of the job that kept the Grams, for all points, as `obsdiff solve` has it. May be given several times. SECTION.KEY=
    /// unsets the key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
    /// Workers in this process, which share its threads and its device. The result does not depend on their number [default: as
    /// `obsdiff run`].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: Option<u32>,
    /// Where points are solved and measured, as `obsdiff run` has it: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

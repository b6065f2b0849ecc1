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
    /// Show each linear's shape, zeros and sparsity pattern.
    Inspect(InspectArgs),
}

/// `inspect DIR`
#[derive(Debug, Args)]
#[command(
    long_about = "Show the shape, type, zeros and sparsity pattern of each linear of a transformer.\n\n\
        DIR is a pipeline, whose transformer is shown, or any folder of safetensors. Weights are \
        memory-mapped and read once, so a model larger than the memory will do.",
    after_long_help = "Example:\n  obsdiff inspect out\n  obsdiff inspect out --json > sparsity.json"
)]
pub struct InspectArgs {
    /// A pipeline, or a folder or file of safetensors.
    #[arg(value_name = "DIR")]
    pub path: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
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

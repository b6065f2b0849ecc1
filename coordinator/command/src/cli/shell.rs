//! The commands that write what others read: a job, completions, manual pages.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::path;

/// `init PIPELINE`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff init ./pipeline --prompts prompts.txt\n  obsdiff plan job.toml"
)]
pub struct InitArgs {
    /// A diffusers pipeline directory.
    #[arg(value_name = "PIPELINE", value_parser = path())]
    pub pipeline: PathBuf,
    /// The job's file, which must not exist yet.
    #[arg(long, value_name = "FILE", default_value = "job.toml", value_parser = path())]
    pub out: PathBuf,
    /// A .txt file with a prompt a line [default: prompts.txt beside the job].
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub prompts: Option<PathBuf>,
}

/// `completions SHELL`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff completions bash > ~/.local/share/bash-completion/completions/obsdiff"
)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,
}

/// `man DIR`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The folder of the pages, which is made where it is not there.
    #[arg(value_name = "DIR", value_parser = path())]
    pub folder: PathBuf,
}

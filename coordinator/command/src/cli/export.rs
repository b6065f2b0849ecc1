//! Arguments of `export`.

use std::path::PathBuf;

use clap::Args;

use super::path;

/// `export DIR`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff export out --single-file pruned.safetensors")]
pub struct ExportArgs {
    /// A pipeline.
    #[arg(value_name = "DIR", value_parser = path())]
    pub pipeline: PathBuf,
    /// The safetensors file. It must not exist yet.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub single_file: PathBuf,
}

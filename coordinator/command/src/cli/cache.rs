//! Where models of object stores are kept.

use std::path::PathBuf;

use clap::Args;

use super::path;

/// Where models of object stores are kept.
#[derive(Clone, Debug, Default, Args)]
pub struct CacheArgs {
    /// The folder of this machine that a model at s3://, gs:// or az:// is copied to, and that commands share [default: OBSDIFF_CACHE, else
    /// obsdiff in XDG_CACHE_HOME or ~/.cache].
    #[arg(long, global = true, value_name = "DIR", value_parser = path(), help_heading = "Models in object stores")]
    pub cache: Option<PathBuf>,
}

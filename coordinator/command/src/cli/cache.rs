//! Where models of object stores are kept, and what becomes of them.

use std::path::PathBuf;
use std::time::Duration;

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

/// `cache`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff cache\n  obsdiff cache --remove s3://bucket/model\n  \
    obsdiff cache --older-than 30d --unfinished --replaced")]
pub struct CachedModelsArgs {
    /// Remove the model of this URL. May be given several times.
    #[arg(long, value_name = "URL")]
    pub remove: Vec<String>,
    /// Remove the models that no process has used for so long, such as 12h or 30d.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
    /// Remove the beginnings of downloads, from which the next one would go on.
    #[arg(long)]
    pub unfinished: bool,
    /// Remove objects that their store has replaced since, and pipelines that consist of any.
    #[arg(long)]
    pub replaced: bool,
    /// Print one JSON object instead of text. Numbers with a unit have it in their names.
    #[arg(long)]
    pub json: bool,
}

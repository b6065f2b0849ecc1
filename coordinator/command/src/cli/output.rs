//! What a process reports of its work on standard error.

use clap::{ArgAction, Args, ValueEnum};

/// The format of these reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a process reports of its work on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct OutputStyle {
    /// Show no progress: only notes and errors.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Log what happens; -vv in detail. OBSDIFF_LOG, where it is set, decides instead.
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", help_heading = "Output")]
    pub verbose: u8,
    /// How progress, notes, logs and errors are written to standard error: as text, or as a JSON object a line.
    #[arg(
        long = "log-format",
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        help_heading = "Output"
    )]
    pub format: LogFormat,
}

impl OutputStyle {
    /// What is logged where the environment does not say: warnings, and more of obsdiff's own parts.
    pub fn log_directives(self) -> &'static str {
        match self.verbose {
            0 => "warn",
            1 => "warn,obsdiff=info",
            _ => "warn,obsdiff=debug",
        }
    }
}

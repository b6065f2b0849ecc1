//! What the process gives to a command: nothing below reads the environment, the clock or standard output by itself.

use std::ffi::OsString;
use std::io::Write;

use crate::Result;
use crate::cli::JobArgs;
use crate::clock::Clock;
use crate::job::Job;
use crate::progress::Progress;
use crate::spans::Spans;

/// The surroundings of one command.
pub struct Session<'a> {
    /// Environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// The machine's clock.
    pub clock: Clock,
    /// The account of where the time goes.
    pub spans: Spans,
    /// Where results go.
    pub out: &'a mut dyn Write,
}

impl Session<'_> {
    /// Loads the job that a command was given.
    ///
    /// # Errors
    /// As [`Job::load`].
    pub fn job(&self, args: &JobArgs) -> Result<Job> {
        Job::load(&args.job, self.environment.iter().cloned(), &args.sets)
    }

    /// Progress on standard error.
    pub fn progress(&self, quiet: bool) -> Progress {
        Progress::on_stderr(quiet, self.clock.clone())
    }
}

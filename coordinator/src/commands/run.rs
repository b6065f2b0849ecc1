//! `obsdiff run JOB`.

use crate::Result;
use crate::cli::RunArgs;
use crate::session::Session;

/// Runs a job and tells what it did.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later.
pub(super) fn run(args: &RunArgs, session: &mut Session<'_>) -> Result<()> {
    let job = session.job(&args.job)?;
    session.use_threads(args.process.threads)?;
    let workers = args.workers as usize;
    let summary = crate::run::run(
        &job,
        workers,
        session.memory,
        &session.progress(args.process.quiet),
        &session.spans,
    )?;
    Ok(writeln!(session.out, "{summary}")?)
}

//! `obsdiff run JOB`.

use crate::Result;
use crate::cli::RunArgs;
use crate::context::CommandContext;
use crate::run::RunContext;
use crate::signals::Answer;

/// Runs a job and tells what it did.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later.
pub(super) fn run(args: &RunArgs, session: &mut CommandContext<'_>) -> Result<()> {
    let job = session.job(&args.job)?;
    session.use_threads(args.process.threads)?;
    let progress = session.progress(args.process.quiet);
    // Committed packages are always whole on the disk, and nothing else is kept. So a signal may end the process at once.
    session.signals.respond({
        let (progress, command) = (progress.clone(), session.command.clone());
        move |signal| Answer::Exit(format!("stopped by {signal}: {}", progress.left_by_stop(&command)))
    });
    let process = RunContext {
        workers: args.workers as usize,
        memory: session.memory,
        progress: &progress,
        spans: &session.spans,
        disk: &session.disk,
    };
    let summary = crate::run::run(&job, &process)?;
    Ok(writeln!(session.out, "{summary}")?)
}

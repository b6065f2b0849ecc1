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
pub(super) fn run(args: &RunArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let job = context.job(&args.job)?;
    context.use_threads(args.process.threads)?;
    let progress = context.progress(args.process.quiet);
    // Committed packages are always whole on the disk, and nothing else is kept. So a signal may end the process at once.
    context.signals.respond({
        let (progress, command) = (progress.clone(), context.command.clone());
        move |signal| Answer::Exit(format!("stopped by {signal}: {}", progress.left_by_stop(&command)))
    });
    let process = RunContext {
        workers: args.workers as usize,
        memory: context.memory,
        progress: &progress,
        spans: &context.spans,
        disk: &context.disk,
    };
    let summary = crate::run::run(&job, &process)?;
    context.print(&summary, args.json)
}

//! `obsdiff run JOB` and `obsdiff solve GRAMS`.

use obsdiff_engine::device::{ComputeDevice, DeviceName};
use obsdiff_files::starts_with_tilde;

use crate::cli::{PruningArgs, RunArgs, SolveArgs, TILDE};
use crate::context::CommandContext;
use crate::job::JobFile;
use crate::run::RunContext;
use crate::signals::Answer;
use crate::{Error, Result};

/// Runs a job and tells what it did.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later.
pub(super) fn run(args: &RunArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let job = context.job(&args.job)?;
    prune(&job, &args.pruning, context)
}

/// Prunes by kept Grams and tells what it did.
///
/// # Errors
/// Grams that cannot be used, or else as [`run`].
pub(super) fn solve(args: &SolveArgs, context: &mut CommandContext<'_>) -> Result<()> {
    if starts_with_tilde(&args.grams) {
        return Err(Error::key("GRAMS", format!("is {}, but {TILDE}", args.grams)));
    }
    let job = JobFile::of_grams(&args.grams, context.environment.iter().cloned(), &args.sets)?;
    prune(&job, &args.pruning, context)
}

/// Opens the device that was asked for.
///
/// # Errors
/// When this build or this machine cannot use it.
pub(super) fn open_device(name: DeviceName) -> Result<ComputeDevice> {
    ComputeDevice::open(name)
        .map_err(|problem| Error::key("--device", format!("cannot be {name}: {problem}")))
}

/// Runs a job in this process and tells what it did.
fn prune(job: &JobFile, args: &PruningArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let device = open_device(args.device)?;
    context.use_threads(args.process.threads)?;
    context.compute_here()?;
    let progress = context.progress();
    // Committed packages are always whole on the disk, and nothing else is kept. So a signal may end the process at once.
    context.signals.respond({
        let (progress, command) = (progress.clone(), context.command.clone());
        move |signal| Answer::Exit(format!("stopped by {signal}: {}", progress.left_by_stop(&command)))
    });
    let process = RunContext {
        workers: args.workers.map(|workers| workers as usize),
        memory: context.memory,
        baseline: args.baseline,
        progress: &progress,
        spans: &context.spans,
        disk: &context.disk,
        device: &device,
    };
    let summary = crate::run::run(job, &process)?;
    context.print(&summary, args.json)
}

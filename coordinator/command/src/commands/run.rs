//! `obsdiff run JOB` and `obsdiff solve GRAMS`.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use obsdiff_coordinator::{Outlook, Port};
use obsdiff_engine::device::{ComputeDevice, DeviceName};
use obsdiff_files::starts_with_tilde;
use tokio::sync::watch;

use super::coordinator::with_workers;
use super::worker::each_gpu::{GpuWorkers, Running, Share};
use crate::cli::{PruningArgs, RunArgs, SolveArgs, TILDE};
use crate::context::CommandContext;
use crate::job::JobFile;
use crate::kubeflow::{TrainerServer, outlook_source};
use crate::run::{DenseSamples, RunContext};
use crate::signals::Answer;
use crate::traces::{RunningTrace, TraceSettings};
use crate::{Error, Result};

/// Runs a job and prints what it did.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later.
pub(super) fn run(args: &RunArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let job = context.job(&args.job)?;
    prune(&job, &args.pruning, context)
}

/// Prunes by kept Grams and prints what it did.
///
/// # Errors
/// Grams that cannot be used, or else as [`run`].
pub(super) fn solve(args: &SolveArgs, context: &mut CommandContext<'_>) -> Result<()> {
    if starts_with_tilde(&args.grams) {
        return Err(Error::key("GRAMS", format!("is {}, but {TILDE}", args.grams)));
    }
    let job = context.job_of_grams(&args.grams, &args.sets)?;
    prune(&job, &args.pruning, context)
}

/// Opens the device that was asked for, and warns where that took more of its memory than plans count.
///
/// # Errors
/// When this build or this machine cannot use it.
pub(super) fn open_device(name: DeviceName) -> Result<ComputeDevice> {
    let device = ComputeDevice::open(name)
        .map_err(|problem| Error::key("--device", format!("cannot be {name}: {problem}")))?;
    if let Some(excess) = device.opening_excess() {
        tracing::warn!("opening {name} took {excess}: leave so much more free than they predict");
    }
    Ok(device)
}

/// Runs a job by a worker on each of the first GPUs, which are processes of their own, and prints what it did.
fn on_gpus(job: &JobFile, wanted: usize, args: &PruningArgs, context: &mut CommandContext<'_>) -> Result<()> {
    if args.baseline {
        let problem = "needs one worker: with several GPUs the dense model is not pruned besides";
        return Err(Error::key("--baseline", problem));
    }
    let count = ComputeDevice::gpus();
    let count = count.map_err(|problem| Error::key("--device", format!("cannot be cuda: {problem}")))?;
    if wanted > count {
        let problem = format!("is {wanted}, a GPU each, but the driver sees {count}: give at most that");
        return Err(Error::key("--workers", problem));
    }
    context.use_threads(args.process.threads)?;
    let gpus: Vec<usize> = (0..wanted).collect();
    let share = Share::new(wanted, args.process.threads, context.memory);
    let port = Port::new((Ipv4Addr::LOCALHOST, 0).into(), None, None, false)?;
    let start = |url: &str, running: &Arc<Mutex<Running>>| {
        let mut arguments = vec!["worker", "--quiet", "--coordinator", url];
        if !has_nccl() {
            arguments.extend(["--collective", "gloo"]);
        }
        let cache = job.model_cache().map(|cache| cache.as_os_str().to_owned());
        let cache = cache.into_iter().flat_map(|cache| [OsString::from("--cache"), cache]);
        let save_sums = args.save_sums.to_string();
        arguments.extend(["--save-sums", &save_sums]);
        let threads = args.process.threads.map(|threads| threads.to_string());
        let threads = threads.iter().flat_map(|threads| ["--threads", threads.as_str()]);
        let arguments = arguments.into_iter().chain(threads).map(OsString::from);
        let arguments: Vec<OsString> = arguments.chain(cache).collect();
        GpuWorkers::start(&gpus, &arguments, &share, running)
    };
    match with_workers(job, port, context, Some(&start))? {
        Some(summary) => context.print_summary(&summary, args.json),
        None => Ok(writeln!(context.out, "written to {}", job.spec.output.path)?),
    }
}

/// Whether NCCL is on this machine. Without it Grams of several GPUs are summed by Gloo.
fn has_nccl() -> bool {
    #[cfg(feature = "cuda")]
    return obsdiff_worker::collective::Nccl::is_present();
    #[cfg(not(feature = "cuda"))]
    false
}

/// Runs a job in this process and prints what it did.
fn prune(job: &JobFile, args: &PruningArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let workers = args.workers.map(|workers| workers as usize);
    if let (DeviceName::Cuda(0), Some(several @ 2..)) = (args.device, workers) {
        return on_gpus(job, several, args, context);
    }
    let traces = TraceSettings::of(&context.environment)?;
    let device = open_device(args.device)?;
    context.use_threads(args.process.threads)?;
    context.compute_here()?;
    let progress = context.progress();
    let running_trace = RunningTrace::default();
    // What counts of committed packages and saved sums is always whole on the disk. So a signal may end the process at once.
    context.signals.respond({
        let (progress, command, trace) = (progress.clone(), context.same_command(), running_trace.clone());
        move |signal| {
            trace.stop(signal);
            Answer::Exit(format!("stopped by {signal}: {}", progress.left_by_stop(&command)))
        }
    });
    let server = TrainerServer::of(&context.environment);
    let runtime = server.as_ref().map(|_| crate::runtime::runtime()).transpose()?;
    let outlook = server.as_ref().map(|_| watch::channel(Outlook::default()).0);
    let poster = server.zip(runtime.as_ref()).zip(outlook.as_ref()).map(|((server, runtime), outlook)| {
        server.post(runtime.handle(), outlook_source(outlook.subscribe(), context.clock.clone()))
    });
    let process = RunContext {
        workers,
        memory: context.memory,
        save_every: args.save_sums.period(),
        baseline: args.baseline,
        progress: &progress,
        spans: &context.spans,
        disk: &context.disk,
        dense: &DenseSamples::default(),
        device: &device,
        outlook: outlook.as_ref(),
        traces: traces.as_ref().map(|traces| (traces, &running_trace)),
    };
    let done = crate::run::run(job, &process);
    if let Some(poster) = poster {
        poster.end(done.is_ok());
    }
    let summary = done?;
    context.print_summary(&summary, args.json)
}

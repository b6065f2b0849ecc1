//! `--devices`: a process for each GPU of this host, which this process starts, stops and listens to.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use obsdiff_engine::device::{ComputeDevice, DeviceName};
use obsdiff_proto::{ByteSize, lock};
use rustix::process::{Pid, kill_process};

use super::LEFT;
use crate::cli::{GpuChoice, WorkerArgs};
use crate::context::CommandContext;
use crate::signals::{Answer, Signal};
use crate::text::printable_line;
use crate::{Error, Result};

/// The flag that a worker on one GPU is started without.
const FLAG: &str = "--devices";

/// The flag that gives it its share.
const MEMORY: &str = "--memory";

/// Starts a worker for each of these GPUs, with the arguments of this process, and waits until all have ended. Signals are passed on to
/// them, and what they say is said here, behind the name of the GPU.
///
/// # Errors
/// When there is no such GPU or a worker cannot be started; and where none of them saw the job done, as the first that failed.
pub(super) fn work(choice: &GpuChoice, args: &WorkerArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let gpus = numbers(choice)?;
    let share = Share::new(gpus.len(), args.process.threads, args.memory.or(context.memory));
    let arguments = without(&[FLAG, MEMORY], &context.arguments);
    let running: Arc<Mutex<Running>> = Arc::default();
    // Signals are passed on from before the first is started: none is left behind.
    context.signals.respond({
        let running = running.clone();
        move |signal| {
            lock(&running).stop(signal);
            Answer::Finish
        }
    });
    let workers = GpuWorkers::start(&gpus, &arguments, &share, &running);
    let mut written = Ok(());
    let ended = workers.follow(|gpu, line| {
        // Where it cannot be said, the workers go on all the same, and are waited for.
        if written.is_ok() {
            written = writeln!(context.out, "GPU {gpu}: {line}").and_then(|()| context.out.flush());
        }
    });
    match (ended, context.signals.heard()) {
        // A worker exits with 0 only once the job is done: others have done what the failed ones left.
        (Ok(()), _) => Ok(written?),
        (Err(_), Some(signal)) => Err(Error::Stopped { signal, left: LEFT.to_owned() }),
        (Err(error), None) => Err(error),
    }
}

/// What each of several workers on one host may take of it.
pub(in crate::commands) struct Share {
    threads: Option<usize>,
    memory: Option<ByteSize>,
}

impl Share {
    /// Of so many workers: unless their number of `threads` is given, an even part of the cores; and an even part of the memory.
    pub(in crate::commands) fn new(workers: usize, threads: Option<u32>, memory: Option<ByteSize>) -> Self {
        let workers = workers.max(1);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: threads.is_none().then(|| (cores / workers).max(1)),
            // Each checks what it will hold against its share.
            memory: memory.map(|memory| ByteSize(memory.0 / workers as u64)),
        }
    }

    fn arguments(&self) -> Vec<String> {
        let threads = self.threads.map(|threads| ("--threads", threads.to_string()));
        let memory = self.memory.map(|memory| (MEMORY, memory.0.to_string()));
        let both = [threads, memory].into_iter().flatten();
        both.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

/// The workers of a host's GPUs, processes that this one has started.
pub(in crate::commands) struct GpuWorkers {
    words: Receiver<(usize, Word)>,
    /// Why not all of them were started.
    unstarted: Option<String>,
}

impl GpuWorkers {
    /// Starts one for each of these GPUs, with these arguments and its share of the host. Where one cannot be started the others are stopped.
    pub(in crate::commands) fn start(
        gpus: &[usize],
        arguments: &[OsString],
        share: &Share,
        running: &Arc<Mutex<Running>>,
    ) -> Self {
        let (send, words) = mpsc::channel();
        let mut unstarted = None;
        for gpu in gpus {
            let started = std::env::current_exe().and_then(|program| {
                let mut command = Command::new(program);
                command.args(arguments).args(["--device", &DeviceName::Cuda(*gpu).to_string()]);
                command.args(share.arguments());
                // In a group of its own it does not hear what is typed on the terminal: this process passes it on, once.
                command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
                start(command, *gpu, running, &send)
            });
            if let Err(error) = started {
                lock(running).stop(Signal::Terminate);
                unstarted = Some(format!("the worker for GPU {gpu} cannot be started: {error}"));
                break;
            }
        }
        Self { words, unstarted }
    }

    /// Waits until all have ended, and says on standard error what they say there; `out` takes the lines of their standard output.
    ///
    /// # Errors
    /// Where none of them saw the job done: why one was not started, or how the first ended that failed.
    pub(in crate::commands) fn follow(self, mut out: impl FnMut(usize, String)) -> Result<()> {
        let mut done = false;
        let mut failed = None;
        // It ends with the last of the workers.
        for (gpu, word) in self.words {
            match word {
                Word::Out(line) => out(gpu, line),
                Word::Error(line) => say(gpu, &line),
                Word::Ended(status) if status.success() => done = true,
                Word::Ended(status) => {
                    say(gpu, &format!("ended with {}", described(status)));
                    failed = failed.or(Some((gpu, status)));
                }
            }
        }
        match (self.unstarted, failed) {
            _ if done => Ok(()),
            (Some(problem), _) => Err(Error::Session(problem)),
            (None, Some((gpu, status))) => {
                let problem = format!("the worker for GPU {gpu} ended with {}: {LEFT}", described(status));
                Err(Error::Worker { code: code(status), problem })
            }
            (None, None) => Ok(()),
        }
    }
}

/// The numbers of the GPUs, each of which is there.
fn numbers(choice: &GpuChoice) -> Result<Vec<usize>> {
    let count = ComputeDevice::gpus().map_err(|problem| Error::key(FLAG, problem.to_string()))?;
    match choice {
        GpuChoice::All if count == 0 => Err(Error::key(FLAG, "there is no GPU: the driver sees none")),
        GpuChoice::All => Ok((0..count).collect()),
        GpuChoice::Numbers(numbers) => match numbers.iter().find(|number| **number >= count) {
            Some(number) => {
                Err(Error::key(FLAG, format!("there is no GPU {number}: the driver sees {count}")))
            }
            None => Ok(numbers.iter().copied().collect()),
        },
    }
}

/// The arguments of this process without these flags and their values.
fn without(flags: &[&str], arguments: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if flags.iter().any(|flag| text == *flag) {
            arguments.next();
        } else if !flags.iter().any(|flag| text.starts_with(&format!("{flag}="))) {
            kept.push(argument.clone());
        }
    }
    kept
}

/// The workers that have not ended.
#[derive(Default)]
pub(in crate::commands) struct Running {
    workers: Vec<Pid>,
    /// The signal that was passed on: whoever starts later gets it at once.
    stopped: Option<Signal>,
}

impl Running {
    pub(in crate::commands) fn stop(&mut self, signal: Signal) {
        self.stopped = Some(signal);
        for worker in &self.workers {
            // One that has ended in this moment needs none.
            let _ = kill_process(*worker, system(signal));
        }
    }
}

fn system(signal: Signal) -> rustix::process::Signal {
    match signal {
        Signal::Interrupt => rustix::process::Signal::INT,
        Signal::Terminate => rustix::process::Signal::TERM,
    }
}

/// What comes from the worker on a GPU.
enum Word {
    /// A line of its standard output.
    Out(String),
    /// A line of its standard error.
    Error(String),
    /// That it has ended, after all that it said.
    Ended(ExitStatus),
}

/// Starts a worker. What it says, and its end, go to `send`.
fn start(
    mut command: Command,
    gpu: usize,
    running: &Arc<Mutex<Running>>,
    send: &Sender<(usize, Word)>,
) -> io::Result<()> {
    let mut child = {
        let mut running = lock(running);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        running.workers.push(pid);
        if let Some(signal) = running.stopped {
            let _ = kill_process(pid, system(signal));
        }
        child
    };
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let (running, send) = (running.clone(), send.clone());
    let follow = move || {
        thread::scope(|scope| {
            scope.spawn(|| lines(out, |line| send.send((gpu, Word::Out(line))).is_ok()));
            lines(errors, |line| send.send((gpu, Word::Error(line))).is_ok());
        });
        let pid = Pid::from_child(&child);
        let ended = child.wait();
        lock(&running).workers.retain(|worker| *worker != pid);
        // Who listens does so until all have ended. Of a process that cannot be waited for nothing is known.
        let _ = ended.map(|status| send.send((gpu, Word::Ended(status))));
    };
    thread::Builder::new().name(format!("GPU {gpu}")).spawn(follow).map(drop)
}

/// Gives each line of a stream until it ends or nobody takes one.
fn lines(stream: Option<impl Read>, take: impl Fn(String) -> bool) {
    let Some(mut stream) = stream.map(BufReader::new) else { return };
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        if !take(String::from_utf8_lossy(&line).trim_end().to_owned()) {
            return;
        }
        line.clear();
    }
}

/// Says a line on standard error. If that is closed, the exit code still says what happened.
fn say(gpu: usize, line: &str) {
    let _ = writeln!(io::stderr(), "GPU {gpu}: {}", printable_line(line));
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

/// The exit code, as shells count it where a signal ended the process.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::error::RESUMABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_and_their_values_go_and_all_else_stays() {
        for flag in
            [vec!["--devices", "all"], vec!["--devices=0,1", "--memory", "8GiB"], vec!["--memory=1GB"]]
        {
            let given = [&["worker", "--coordinator", "http://h:1"][..], &flag, &["--quiet"]].concat();
            let given: Vec<OsString> = given.iter().map(OsString::from).collect();
            assert_eq!(
                without(&[FLAG, MEMORY], &given),
                ["worker", "--coordinator", "http://h:1", "--quiet"]
            );
        }
    }
}

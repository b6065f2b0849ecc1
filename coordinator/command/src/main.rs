//! The `obsdiff` command.

mod arena;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Parser;
use obsdiff::cli::{Cli, LogFormat, OutputStyle};
use obsdiff::context::CommandContext;
use obsdiff::job::CACHE_VARIABLE;
use obsdiff::signals::Signals;
use obsdiff::spans::Spans;
use obsdiff::terminal::{LogWriter, TextWriter};
use obsdiff::text::printable_line;
use obsdiff::{Error, Result, clock, commands, machine, panics};
use obsdiff_files::Disk;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::prelude::*;

const LOG_VARIABLE: &str = "OBSDIFF_LOG";
/// What reports progress where it is a part of the log.
const PROGRESS: &str = "obsdiff::progress=info";

fn main() -> ExitCode {
    arena::share();
    panics::exit_at_first();
    let cli = Cli::parse();
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.reader_left() => ExitCode::SUCCESS,
        Err(error) => {
            if cli.style.format == LogFormat::Json && tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!(exit_code = error.exit_code(), "{}", error.line());
            } else {
                let kind = if matches!(error, Error::Stopped { .. }) { "" } else { "error: " };
                // If standard error is closed, the exit code still says what happened.
                let _ = writeln!(io::stderr(), "{kind}{}", printable_line(&error.line()));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(cli: &Cli) -> Result<()> {
    let signals = Signals::listen()?;
    let clock = clock::monotonic();
    let spans = Spans::new("run", clock.clone());
    listen(cli.style, &spans)?;
    let mut out = TextWriter(BufWriter::new(io::stdout().lock()));
    let mut environment: Vec<_> = std::env::vars_os().collect();
    if let Some(cache) = &cli.cache.cache {
        environment.retain(|(name, _)| name != CACHE_VARIABLE);
        environment.push((CACHE_VARIABLE.into(), cache.into()));
    }
    let memory = machine::available_memory();
    let command = command_line();
    let arguments = std::env::args_os().skip(1).collect();
    let disk = Disk::default();
    let mut context = CommandContext {
        environment,
        command,
        arguments,
        signals,
        clock,
        memory,
        spans,
        models: Mutex::default(),
        disk,
        style: cli.style,
        out: &mut out,
    };
    commands::run(&cli.command, &mut context)?;
    Ok(out.flush()?)
}

/// The command line as a shell would read it.
fn command_line() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // A word that cannot be quoted for a shell is shown as it is.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// Whether the user asks for text without colours (https://no-color.org).
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Logs to standard error what `OBSDIFF_LOG` asks for, and accounts for spans.
fn listen(style: OutputStyle, spans: &Spans) -> Result<()> {
    let directives = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| style.log_directives().to_owned());
    // As JSON, progress is a part of the log.
    let all = match style.format {
        LogFormat::Json => format!("{directives},{PROGRESS}"),
        LogFormat::Text => directives.clone(),
    };
    let filter = EnvFilter::try_new(&all).map_err(|e| Error::Key {
        at: LOG_VARIABLE.to_owned(),
        problem: format!("is \"{directives}\", but a level such as info or debug is expected ({e})"),
    })?;
    let log = tracing_subscriber::fmt::layer();
    let log = match style.format {
        LogFormat::Json => {
            let log = log.with_writer(io::stderr).json().flatten_event(true);
            log.with_span_list(false).with_current_span(false).boxed()
        }
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && !no_color();
            log.with_writer(|| LogWriter(io::stderr())).with_ansi(colours).with_target(false).boxed()
        }
    };
    let log = log.with_filter(filter);
    tracing_subscriber::registry().with(log).with(spans.layer()).init();
    Ok(())
}

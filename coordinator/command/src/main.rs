//! The `obsdiff` command.

mod arena;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use obsdiff::cli::Cli;
use obsdiff::context::CommandContext;
use obsdiff::signals::Signals;
use obsdiff::spans::Spans;
use obsdiff::{Error, Result, clock, commands, machine, panics};
use obsdiff_files::Disk;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::prelude::*;

const LOG_VARIABLE: &str = "OBSDIFF_LOG";

fn main() -> ExitCode {
    arena::share();
    panics::exit_at_first();
    match start(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.reader_left() => ExitCode::SUCCESS,
        Err(error) => {
            let kind = if matches!(error, Error::Stopped { .. }) { "" } else { "error: " };
            // If standard error is closed, the exit code still says what happened.
            let _ = writeln!(io::stderr(), "{kind}{}", error.line());
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(cli: &Cli) -> Result<()> {
    let signals = Signals::listen()?;
    let clock = clock::monotonic();
    let spans = Spans::new("run", clock.clone());
    listen(&spans)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let environment = std::env::vars_os().collect();
    let memory = machine::available_memory();
    let command = command_line();
    let disk = Disk::default();
    let mut context =
        CommandContext { environment, command, signals, clock, memory, spans, disk, out: &mut out };
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
fn listen(spans: &Spans) -> Result<()> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|e| Error::Key {
            at: LOG_VARIABLE.to_owned(),
            problem: format!("is \"{directives}\", but a level such as info or debug is expected ({e})"),
        })?,
        Err(_) => EnvFilter::new("warn"),
    };
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !no_color())
        .with_target(false)
        .with_filter(filter);
    // Libraries have spans of their own, which say nothing to a user.
    let own = |metadata: &tracing::Metadata<'_>| {
        metadata.is_span() && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
    };
    let account = spans.clone().with_filter(filter_fn(own));
    tracing_subscriber::registry().with(log).with(account).init();
    Ok(())
}

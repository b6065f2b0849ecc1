//! Panics come from faults of obsdiff and from threads that the system does not give. The user gets an exit code and a one-line message.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::panic::PanicHookInfo;

use signal_hook::low_level;

use crate::error::{FAULT, NO_THREADS, RESUMABLE};
use crate::text::printable;

/// Ends the process at the first panic of any thread, with exit code 4 and a line that says where to report it. Otherwise other
/// threads could wait for the lost one for ever. Committed packages are always whole.
pub fn exit_at_first() {
    std::panic::set_hook(Box::new(|panic| {
        if obsdiff_engine::is_contained() {
            return;
        }
        let (code, words) = verdict(panic);
        // Held until the end, so that only one of two threads that panic at once prints.
        let mut err = io::stderr().lock();
        // If standard error is closed, the exit code still says what happened.
        let _ = writeln!(err, "error: {}", printable(&words));
        low_level::exit(i32::from(code));
    }));
}

fn verdict(panic: &PanicHookInfo<'_>) -> (u8, String) {
    let said = panic.payload_as_str().unwrap_or("no reason is known");
    if is_want_of_threads(said) {
        return (RESUMABLE, NO_THREADS.to_owned());
    }
    let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut words = format!(
        "this is a fault of obsdiff {}, not of your input: {said}{place}. Please report it at {}/issues. \
         What is finished is kept, and the same command may be run again",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_REPOSITORY"),
    );
    // Only where RUST_BACKTRACE asks for it.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        // Writing to a string never fails.
        let _ = write!(words, "\n{trace}");
    }
    (FAULT, words)
}

/// Libraries that start threads of their own panic where the system gives none.
fn is_want_of_threads(said: &str) -> bool {
    const SAID: [&str; 4] = [
        "OS can't spawn worker thread",
        "failed to spawn thread",
        "The global thread pool has not been initialized",
        "Resource temporarily unavailable",
    ];
    SAID.iter().any(|words| said.contains(words))
}

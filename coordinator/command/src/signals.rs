//! Signals that ask a process to stop: SIGINT, which Ctrl-C sends, and SIGTERM, which Kubernetes sends.
//!
//! They are handled from the start of the process on. The kernel ignores them for a process 1 without handlers, as
//! the command of a container is.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use obsdiff_proto::lock;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals as Incoming;
use signal_hook::low_level;

use crate::text::printable_line;

/// A signal that asks the process to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Interrupt, Self::Terminate];

    /// The exit code of a process that it stopped, as shells count it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }

    fn number(self) -> i32 {
        match self {
            Self::Interrupt => SIGINT,
            Self::Terminate => SIGTERM,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// What a process does when it is asked to stop.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Says this on standard error, and exits at once.
    Exit(String),
    /// Finishes what it has to, and exits by itself. A second signal ends it at once.
    Finish,
}

type Respond = Box<dyn FnMut(Signal) -> Answer + Send>;

/// The signals that this process receives. Clones share them; the default receives none.
#[derive(Clone, Default)]
pub struct Signals(Arc<Mutex<SignalState>>);

#[derive(Default)]
struct SignalState {
    heard: Option<Signal>,
    respond: Option<Respond>,
}

impl Signals {
    /// Handles signals from now on. Until [`Signals::respond`] says otherwise, the first one ends the process at once.
    ///
    /// # Errors
    /// When the system gives no handler or no thread.
    pub fn listen() -> crate::Result<Self> {
        Self::start().map_err(|e| crate::Error::thread(&e))
    }

    fn start() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        // Handlers run in this order: only a second signal finds that one was there before.
        for signal in Signal::ALL {
            let code = i32::from(signal.exit_code());
            flag::register_conditional_shutdown(signal.number(), code, asked.clone())?;
            flag::register(signal.number(), asked.clone())?;
        }
        let mut incoming = Incoming::new(Signal::ALL.map(Signal::number))?;
        let signals = Self::default();
        let answering = signals.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in incoming.forever() {
                if let Some(signal) = Signal::ALL.into_iter().find(|signal| signal.number() == number)
                    && let Answer::Exit(words) = answering.answer(signal)
                {
                    // If standard error is closed, the exit code still says what happened.
                    let _ = writeln!(io::stderr(), "{}", printable_line(&words));
                    // Other threads keep running until the process ends, so nothing that they use may be destroyed.
                    low_level::exit(i32::from(signal.exit_code()));
                }
            }
        })?;
        Ok(signals)
    }

    /// Sets what the next signal does.
    pub fn respond(&self, respond: impl FnMut(Signal) -> Answer + Send + 'static) {
        self.state().respond = Some(Box::new(respond));
    }

    /// The signal that came, if one did.
    pub fn heard(&self) -> Option<Signal> {
        self.state().heard
    }

    fn answer(&self, signal: Signal) -> Answer {
        let mut state = self.state();
        state.heard = Some(signal);
        match &mut state.respond {
            Some(respond) => respond(signal),
            None => Answer::Exit(format!("stopped by {signal}")),
        }
    }

    fn state(&self) -> MutexGuard<'_, SignalState> {
        lock(&self.0)
    }
}

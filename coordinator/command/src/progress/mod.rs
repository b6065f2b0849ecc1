//! Progress on standard error. On a terminal a bar shows the open phase, and finished ones stay as lines; elsewhere there are lines
//! alone. Code that works opens a [`PhaseProgress`] and reports how far it is.

mod phase;
mod time_left;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use obsdiff_proto::{counted, lock};
use obsdiff_store::manifests_in;

use crate::cli::{LogFormat, OutputStyle};
use crate::clock::Clock;
use crate::text::printable_line;

pub use phase::PhaseProgress;
use time_left::TimeLeft;
pub(crate) use time_left::{PackageWork, WorkKind};

const REDRAW: Duration = Duration::from_millis(200);

/// Shows progress. Clones show theirs in the same place.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

/// Called at every step of a phase.
pub type OnStep = Box<dyn Fn() + Send + Sync>;

struct Inner {
    show: Destination,
    clock: Clock,
    place: Mutex<PackageProgress>,
    kept: Mutex<Finished>,
    time_left: Mutex<TimeLeft>,
    /// When the job is expected to end, by the clock.
    expected_end: Mutex<Option<Duration>>,
    on_step: OnceLock<OnStep>,
}

/// What a job has finished so far, and a next run would find.
#[derive(Default)]
enum Finished {
    #[default]
    Nothing,
    Packages {
        done: usize,
        of: usize,
        store: String,
    },
    Output(String),
}

enum Destination {
    Bars(MultiProgress),
    Lines(Mutex<Box<dyn Write + Send>>),
    /// Entries of the log, which are JSON.
    Log {
        quiet: bool,
    },
    Quiet,
}

/// The package that is open, counted from 1, of how many.
#[derive(Default)]
struct PackageProgress {
    package: usize,
    of: usize,
}

impl Progress {
    /// On standard error, in a style that its user chose. A log of more than warnings would tear a bar apart: beside it there are
    /// lines.
    pub fn on_stderr(style: OutputStyle, clock: Clock) -> Self {
        let OutputStyle { quiet, verbose, format } = style;
        if format == LogFormat::Json {
            Self::new(Destination::Log { quiet }, clock)
        } else if quiet {
            Self::new(Destination::Quiet, clock)
        } else if verbose == 0 && io::stderr().is_terminal() {
            Self::new(Destination::Bars(MultiProgress::new()), clock)
        } else {
            Self::lines(io::stderr(), clock)
        }
    }

    /// As lines on `out`.
    pub fn lines(out: impl Write + Send + 'static, clock: Clock) -> Self {
        Self::new(Destination::Lines(Mutex::new(Box::new(out))), clock)
    }

    fn new(show: Destination, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            show,
            clock,
            place: Mutex::default(),
            kept: Mutex::default(),
            time_left: Mutex::default(),
            expected_end: Mutex::default(),
            on_step: OnceLock::new(),
        }))
    }

    /// Calls `on_step` at every step of every phase from now on, for those who have to know that the work goes on. Only the first
    /// one that is given counts.
    pub fn call_at_steps(&self, on_step: OnStep) {
        // A second one would be a fault of the program, and do no harm.
        let _ = self.0.on_step.set(on_step);
    }

    /// Tells those who have to know that the work goes on, where no step of a phase does.
    pub fn alive(&self) {
        if let Some(on_step) = self.0.on_step.get() {
            on_step();
        }
    }

    /// Opens package `package`, counted from 1, of `of`; `what` says in a few words what is in it.
    pub fn package(&self, package: usize, of: usize, what: &str) {
        *self.place() = PackageProgress { package, of };
        self.line(|| format!("package {package}/{of}: {what}"));
    }

    /// So many packages of `of` are kept in a store.
    pub fn keep(&self, done: usize, of: usize, store: &str) {
        *self.kept() = Finished::Packages { done, of, store: store.to_owned() };
    }

    /// The first `done` packages are kept.
    pub fn committed(&self, packages: usize) {
        if let Finished::Packages { done, .. } = &mut *self.kept() {
            *done = packages;
        }
    }

    /// The output is there.
    pub fn written(&self, output: &str) {
        *self.kept() = Finished::Output(output.to_owned());
    }

    /// What is left of a job that is stopped now, and how it goes on by the same `command`.
    pub fn left_by_stop(&self, command: &str) -> String {
        match &*self.kept() {
            Finished::Nothing => format!("nothing is kept yet; to start again: {command}"),
            Finished::Packages { done, of, store } => {
                let done = manifests_in(Path::new(store)).max(*done);
                format!("{done} of {} kept in {store}; to go on: {command}", counted(*of, "package"))
            }
            Finished::Output(output) => format!("the result is written to {output}"),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Finished> {
        lock(&self.0.kept)
    }

    /// Closes the last package: what follows is no part of one.
    pub fn packages_done(&self) {
        *self.place() = PackageProgress::default();
        *lock(&self.0.expected_end) = None;
    }

    /// The work of each package, from which the time that is left is estimated.
    pub(crate) fn expect_work(&self, packages: Vec<PackageWork>) {
        *lock(&self.0.time_left) = TimeLeft::new(packages);
    }

    /// The share of the job's work that is done: of its first packages all, of the open one by how much of it is calibrated and solved.
    pub(crate) fn share_done(&self, committed: usize, open: Option<(usize, (f64, f64))>) -> f64 {
        lock(&self.0.time_left).share_done(committed, open)
    }

    /// When the job is expected to end, by the clock, where that is known.
    pub fn expected_end(&self) -> Option<Duration> {
        *lock(&self.0.expected_end)
    }

    /// Opens a phase of `total` steps, each a `unit` (a plural, such as `prompt steps`).
    pub fn phase(&self, name: &'static str, unit: &'static str, total: u64) -> PhaseProgress {
        self.open(name, unit, total, None)
    }

    /// Opens a phase that is a part of the open package.
    pub(crate) fn work(
        &self,
        kind: WorkKind,
        name: &'static str,
        unit: &'static str,
        total: u64,
    ) -> PhaseProgress {
        let package = self.place().package.checked_sub(1);
        self.open(name, unit, total, package.map(|package| (package, kind)))
    }

    fn open(
        &self,
        name: &'static str,
        unit: &'static str,
        total: u64,
        work: Option<(usize, WorkKind)>,
    ) -> PhaseProgress {
        let bar = match &self.0.show {
            Destination::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(total).with_style(style()));
                bar.set_prefix(format!("{}{name}", self.prefix()));
                bar.set_message(phase::named(unit, total));
                bar.enable_steady_tick(REDRAW);
                Some(bar)
            }
            Destination::Lines(_) | Destination::Log { .. } | Destination::Quiet => None,
        };
        let start = (self.0.clock)();
        let printed = AtomicU64::new(start.as_secs());
        let [done, performed] = [0; 2].map(AtomicU64::new);
        let progress = self.clone();
        PhaseProgress { progress, name, unit, total, work, done, performed, start, printed, bar }
    }

    /// Tells something that its user should know, `quiet` or not.
    pub fn note(&self, text: &str) {
        let line = format!("note: {}", printable_line(text));
        // Where standard error is gone nobody reads this.
        let _ = match &self.0.show {
            Destination::Bars(bars) => bars.println(line),
            Destination::Lines(out) => writeln!(lock(out), "{line}"),
            Destination::Log { .. } => {
                tracing::warn!("{text}");
                Ok(())
            }
            Destination::Quiet => writeln!(io::stderr(), "{line}"),
        };
    }

    /// Tells something that happened, such as a worker that joins.
    pub fn event(&self, text: &str) {
        self.line(|| text.to_owned());
    }

    /// Tells what stays to be seen: an event, or a phase that is finished.
    fn line(&self, text: impl FnOnce() -> String) {
        // As above.
        let _ = match &self.0.show {
            Destination::Bars(bars) => bars.println(printable_line(&text())),
            Destination::Lines(out) => writeln!(lock(out), "{}", printable_line(&text())),
            Destination::Log { quiet: false } => {
                tracing::info!("{}", text());
                Ok(())
            }
            Destination::Log { quiet: true } | Destination::Quiet => Ok(()),
        };
    }

    /// The open package, to start a line with.
    fn prefix(&self) -> String {
        match &*self.place() {
            PackageProgress { package: 0, .. } => String::new(),
            PackageProgress { package, of, .. } => format!("package {package}/{of}: "),
        }
    }

    fn place(&self) -> MutexGuard<'_, PackageProgress> {
        lock(&self.0.place)
    }
}

/// One line, whatever its width: the bar takes what the rest leaves. The template is a constant; were it wrong, a plain bar would stand
/// in.
fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

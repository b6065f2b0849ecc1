//! Progress on standard error: bars on a terminal, a line for each package and phase elsewhere. Code that
//! works opens a [`PhaseProgress`] and reports how far it is.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use obsdiff_proto::{counted, lock};
use obsdiff_store::manifests_in;

use crate::clock::Clock;
use crate::text;

/// How often a long phase prints a line where there are no bars.
const LINE_EVERY: Duration = Duration::from_secs(60);
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
    Quiet,
}

/// The package that is open, counted from 1, of how many; and its bar.
#[derive(Default)]
struct PackageProgress {
    package: usize,
    of: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// On standard error: bars where it is a terminal, else lines; nothing but notes where `quiet`.
    pub fn on_stderr(quiet: bool, clock: Clock) -> Self {
        match (quiet, io::stderr().is_terminal()) {
            (true, _) => Self::new(Destination::Quiet, clock),
            (false, true) => Self::new(Destination::Bars(MultiProgress::new()), clock),
            (false, false) => Self::lines(io::stderr(), clock),
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
            on_step: OnceLock::new(),
        }))
    }

    /// Calls `on_step` at every step of every phase from now on, for those who have to know that the work goes on. Only the first
    /// one that is given counts.
    pub fn call_at_steps(&self, on_step: OnStep) {
        // A second one would be a fault of the program, and do no harm.
        let _ = self.0.on_step.set(on_step);
    }

    /// Opens package `package`, counted from 1, of `of`; `what` says in a few words what is in it.
    pub fn package(&self, package: usize, of: usize, what: &str) {
        let mut place = self.place();
        place.package = package;
        place.of = of;
        if let Destination::Bars(bars) = &self.0.show {
            let bar = place.bar.get_or_insert_with(|| {
                let bar =
                    ProgressBar::new(of as u64).with_style(style("{prefix:>12} {bar:32} {pos}/{len}  {msg}"));
                bars.insert(0, bar.with_prefix("packages"))
            });
            bar.set_length(of as u64);
            bar.set_position(package.saturating_sub(1) as u64);
            bar.set_message(what.to_owned());
            bar.tick();
        }
        drop(place);
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
        let place = std::mem::take(&mut *self.place());
        if let Some(bar) = place.bar {
            bar.finish_and_clear();
        }
    }

    /// Opens a phase of `total` steps, each a `unit` (a plural, such as `prompt steps`).
    pub fn phase(&self, name: &'static str, unit: &'static str, total: u64) -> PhaseProgress {
        let bar = match &self.0.show {
            Destination::Bars(bars) => {
                let template = "{prefix:>12} {bar:32} {pos}/{len} {msg}  {rate}  {eta} left";
                let bar = bars.add(ProgressBar::new(total).with_style(style(template)));
                bar.set_prefix(name);
                bar.set_message(unit);
                bar.enable_steady_tick(REDRAW);
                Some(bar)
            }
            Destination::Lines(_) | Destination::Quiet => None,
        };
        let start = (self.0.clock)();
        let told = AtomicU64::new(start.as_secs());
        PhaseProgress { progress: self.clone(), name, unit, total, done: AtomicU64::new(0), start, told, bar }
    }

    /// Tells something that its user should know, `quiet` or not.
    pub fn note(&self, text: &str) {
        let line = format!("note: {text}");
        // Where standard error is gone there is nobody left to tell.
        let _ = match &self.0.show {
            Destination::Bars(bars) => bars.println(line),
            Destination::Lines(out) => writeln!(lock(out), "{line}"),
            Destination::Quiet => writeln!(io::stderr(), "{line}"),
        };
    }

    fn line(&self, text: impl FnOnce() -> String) {
        if let Destination::Lines(out) = &self.0.show {
            // As above.
            let _ = writeln!(lock(out), "{}", text());
        }
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

/// The template is a constant; were it wrong, a plain bar would stand in.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ").with_key("rate", rate)
}

fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    // A bar whose text cannot be written shows nothing.
    let _ = write!(out, "{:.1}/s", state.per_sec());
}

/// A part of the work that counts its steps. Dropped without [`PhaseProgress::finish`], it failed and says nothing more.
pub struct PhaseProgress {
    progress: Progress,
    name: &'static str,
    unit: &'static str,
    total: u64,
    done: AtomicU64,
    start: Duration,
    /// When a line was told last, in seconds of the clock.
    told: AtomicU64,
    bar: Option<ProgressBar>,
}

impl PhaseProgress {
    /// `steps` more are done. May be called from any thread.
    pub fn advance(&self, steps: u64) {
        if let Some(on_step) = self.progress.0.on_step.get() {
            on_step();
        }
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if matches!(self.progress.0.show, Destination::Lines(_)) {
            self.tell_now_and_then(done);
        }
    }

    /// So much of the phase is done, from 0 to 1. It never goes back.
    pub fn reach(&self, share: f64) {
        let steps = (self.total as f64 * share.clamp(0.0, 1.0)) as u64;
        let more = steps.saturating_sub(self.done.load(Ordering::Relaxed));
        if more > 0 {
            self.advance(more);
        }
    }

    fn tell_now_and_then(&self, done: u64) {
        let now = (self.progress.0.clock)();
        let told = self.told.load(Ordering::Relaxed);
        let due = now.as_secs().saturating_sub(told) >= LINE_EVERY.as_secs() && done < self.total;
        // Of several threads for which a line is due, one tells it.
        let mine =
            || self.told.compare_exchange(told, now.as_secs(), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if due && mine() {
            let left = (now - self.start).mul_f64((self.total - done) as f64 / done.max(1) as f64);
            let Self { name, unit, total, .. } = self;
            let prefix = self.progress.prefix();
            self.progress
                .line(|| format!("{prefix}{name}: {done} of {total} {unit}, {} left", text::duration(left)));
        }
    }

    /// Ends the phase, and tells how long it took.
    pub fn finish(self) {
        let took = (self.progress.0.clock)().saturating_sub(self.start);
        let done = self.done.load(Ordering::Relaxed);
        let rate = match took.as_secs_f64() {
            seconds if seconds > 0.0 => format!(" ({:.1}/s)", done as f64 / seconds),
            _ => String::new(),
        };
        let prefix = self.progress.prefix();
        let (name, unit) = (self.name, self.unit);
        self.progress.line(|| format!("{prefix}{name}: {done} {unit} in {}{rate}", text::duration(took)));
    }
}

impl Drop for PhaseProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is told, with a clock that goes on by `tick(seconds)` alone.
    fn told(run: impl FnOnce(&Progress, &dyn Fn(u64))) -> String {
        let (told, seconds) = (Captured::default(), Arc::new(AtomicU64::new(7)));
        let read = Arc::clone(&seconds);
        let clock: Clock = Arc::new(move || Duration::from_secs(read.load(Ordering::Relaxed)));
        run(&Progress::lines(told.clone(), clock), &|s| _ = seconds.fetch_add(s, Ordering::Relaxed));
        String::from_utf8(told.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn elsewhere_than_on_a_terminal_a_package_and_a_phase_are_a_line_each() {
        let text = told(|progress, tick| {
            let phase = progress.phase("encode", "prompts", 3);
            phase.advance(3);
            tick(2);
            phase.finish();
            progress.package(1, 2, "6 units, 48 linears");
            let phase = progress.phase("calibrate", "prompt steps", 2500);
            (0..2500).for_each(|_| phase.advance(1));
            tick(50);
            phase.finish();
            progress.packages_done();
            progress.note("nothing is held out");
            progress.phase("export", "files", 1).finish();
        });
        let expected = "encode: 3 prompts in 2.0 s (1.5/s)\n\
                        package 1/2: 6 units, 48 linears\n\
                        package 1/2: calibrate: 2500 prompt steps in 50.0 s (50.0/s)\n\
                        note: nothing is held out\n\
                        export: 0 files in 0 ms\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_long_phase_is_told_of_once_a_minute() {
        let text = told(|progress, tick| {
            let phase = progress.phase("calibrate", "prompt steps", 100);
            for _ in 0..100 {
                tick(2);
                phase.advance(1);
            }
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "calibrate: 30 of 100 prompt steps, 2 min 20 s left");
    }

    #[test]
    fn a_phase_that_fails_is_not_told_as_done() {
        assert_eq!(told(|progress, _| drop(progress.phase("solve", "linears", 9))), "");
    }
}

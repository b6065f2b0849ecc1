//! A part of the work that counts its steps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use obsdiff_proto::lock;

use super::time_left::{OpenWork, WorkKind};
use super::{Destination, Progress};
use crate::text;

/// How often a line reports a long phase where no bar shows it.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// A part of the work that counts its steps. Dropped without [`PhaseProgress::finish`], it failed and says nothing more.
pub struct PhaseProgress {
    pub(super) progress: Progress,
    pub(super) name: &'static str,
    /// Of several steps.
    pub(super) unit: &'static str,
    pub(super) total: u64,
    /// The package that it is a part of, counted from 0, and the kind of its work.
    pub(super) work: Option<(usize, WorkKind)>,
    /// Steps whose results are there.
    pub(super) done: AtomicU64,
    /// Steps that were done since the start. Where results are lost, these are more; where some were there at the start, fewer.
    pub(super) performed: AtomicU64,
    pub(super) start: Duration,
    /// When the last line was printed, in seconds of the clock.
    pub(super) printed: AtomicU64,
    pub(super) bar: Option<ProgressBar>,
}

impl PhaseProgress {
    /// `steps` more are done. May be called from any thread.
    pub fn advance(&self, steps: u64) {
        self.performed.fetch_add(steps, Ordering::Relaxed);
        self.show(self.done.fetch_add(steps, Ordering::Relaxed) + steps);
    }

    /// So much of the phase is done, from 0 to 1: more than before by work, or less where results were lost.
    pub fn reach(&self, share: f64) {
        let done = self.steps(share);
        let before = self.done.swap(done, Ordering::Relaxed);
        self.performed.fetch_add(done.saturating_sub(before), Ordering::Relaxed);
        if done != before {
            self.show(done);
        }
    }

    /// The same where no work has changed it: results were lost or found again.
    pub fn correct(&self, share: f64) {
        let done = self.steps(share);
        if done != self.done.swap(done, Ordering::Relaxed) {
            self.show(done);
        }
    }

    fn steps(&self, share: f64) -> u64 {
        (self.total as f64 * share.clamp(0.0, 1.0)) as u64
    }

    /// Shows that so many steps are done, and what that lets expect.
    fn show(&self, done: u64) {
        self.progress.alive();
        let left = self.left(done);
        self.expect(left);
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(format!(
                    "{}{}",
                    named(self.unit, self.total),
                    in_words(left, self.work.is_some())
                ));
            }
            None => self.tell_if_due(),
        }
    }

    /// Expects the end of the job after so long, where this phase is a part of its work.
    fn expect(&self, left: Option<Duration>) {
        if self.work.is_some() {
            *lock(&self.progress.0.expected_end) = left.map(|left| (self.progress.0.clock)() + left);
        }
    }

    /// Expects the end of the job anew where it should be over by now: no step was done for long.
    fn expect_again(&self) {
        let now = (self.progress.0.clock)();
        if self.progress.expected_end().is_some_and(|end| end <= now) {
            self.expect(self.left(self.done.load(Ordering::Relaxed)));
        }
    }

    /// Tells how far the phase is, where a line is due and no bar shows it. To be called now and then, as a step may take long.
    pub fn tell_if_due(&self) {
        self.expect_again();
        if matches!(self.progress.0.show, Destination::Bars(_) | Destination::Quiet) {
            return;
        }
        let (now, done) = ((self.progress.0.clock)(), self.done.load(Ordering::Relaxed));
        let printed = self.printed.load(Ordering::Relaxed);
        let due = now.as_secs().saturating_sub(printed) >= LINE_EVERY.as_secs() && done < self.total;
        // Of several threads for which a line is due, one prints it.
        let mine = || {
            self.printed
                .compare_exchange(printed, now.as_secs(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        if due && mine() {
            let Self { name, total, .. } = self;
            let unit = named(self.unit, *total);
            let (prefix, left) = (self.progress.prefix(), in_words(self.left(done), self.work.is_some()));
            self.progress.line(|| format!("{prefix}{name}: {done} of {total} {unit}{left}"));
        }
    }

    /// How long the job still takes, or this phase where it is no part of a package; none where it is not known yet.
    fn left(&self, done: u64) -> Option<Duration> {
        if let Some(open) = self.open_work(done) {
            return lock(&self.progress.0.time_left).left(open);
        }
        let performed = self.performed.load(Ordering::Relaxed);
        let left = self.total.saturating_sub(done) as f64;
        (performed > 0).then(|| self.took().mul_f64(left / performed as f64))
    }

    /// What the phase is of the open package's work.
    fn open_work(&self, done: u64) -> Option<OpenWork> {
        let (package, kind) = self.work?;
        let share = |steps: u64| steps as f64 / self.total.max(1) as f64;
        let performed = share(self.performed.load(Ordering::Relaxed));
        Some(OpenWork { package, kind, share: share(done).min(1.0), performed, took: self.took() })
    }

    fn took(&self) -> Duration {
        (self.progress.0.clock)().saturating_sub(self.start)
    }

    /// Ends the phase, and reports how long it took where anything was done.
    pub fn finish(self) {
        let took = self.took();
        if let Some(open) = self.open_work(self.done.load(Ordering::Relaxed)) {
            lock(&self.progress.0.time_left).finish(open);
        }
        let done = self.performed.load(Ordering::Relaxed);
        if done == 0 {
            return;
        }
        let rate = match took.as_secs_f64() {
            seconds if seconds > 0.0 => format!(" ({:.1}/s)", done as f64 / seconds),
            _ => String::new(),
        };
        let prefix = self.progress.prefix();
        let (name, unit) = (self.name, named(self.unit, done));
        self.progress.line(|| format!("{prefix}{name}: {done} {unit} in {}{rate}", text::duration(took)));
    }
}

/// What so many of a unit are called, given what several are.
pub(super) fn named(unit: &'static str, count: u64) -> &'static str {
    if count == 1 { unit.strip_suffix('s').unwrap_or(unit) } else { unit }
}

impl Drop for PhaseProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What follows a count: the time that is left to the job, or to a step of the work alone, where it is known.
fn in_words(left: Option<Duration>, of_job: bool) -> String {
    match left.map(text::duration) {
        Some(left) if of_job => format!(", about {left} left"),
        Some(left) => format!(", {left} left in this step"),
        None => String::new(),
    }
}

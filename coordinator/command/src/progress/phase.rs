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
    pub(super) done: AtomicU64,
    pub(super) start: Duration,
    /// When the last line was printed, in seconds of the clock.
    pub(super) printed: AtomicU64,
    pub(super) bar: Option<ProgressBar>,
}

impl PhaseProgress {
    /// `steps` more are done. May be called from any thread.
    pub fn advance(&self, steps: u64) {
        self.progress.alive();
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        let left = self.left(done);
        if self.work.is_some() {
            *lock(&self.progress.0.expected_end) = left.map(|left| (self.progress.0.clock)() + left);
        }
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

    /// So much of the phase is done, from 0 to 1. It never goes back.
    pub fn reach(&self, share: f64) {
        let steps = (self.total as f64 * share.clamp(0.0, 1.0)) as u64;
        let more = steps.saturating_sub(self.done.load(Ordering::Relaxed));
        if more > 0 {
            self.advance(more);
        }
    }

    /// Tells how far the phase is, where a line is due and no bar shows it. To be called now and then, as a step may take long.
    pub fn tell_if_due(&self) {
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
        let took = (self.progress.0.clock)().saturating_sub(self.start);
        if let Some((package, kind)) = self.work {
            let share = done as f64 / self.total.max(1) as f64;
            return lock(&self.progress.0.time_left).left(OpenWork { package, kind, share, took });
        }
        (done > 0).then(|| took.mul_f64(self.total.saturating_sub(done) as f64 / done as f64))
    }

    /// Ends the phase, and reports how long it took where anything was done.
    pub fn finish(self) {
        let took = (self.progress.0.clock)().saturating_sub(self.start);
        let done = self.done.load(Ordering::Relaxed);
        if let Some((package, kind)) = self.work {
            let share = done as f64 / self.total.max(1) as f64;
            lock(&self.progress.0.time_left).finish(OpenWork { package, kind, share, took });
        }
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

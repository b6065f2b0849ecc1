//! Where the time went: the self time of every span, so that a table of them adds up to the whole.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};
use std::time::Duration;

use obsdiff_engine::export::MeasuredPhase;
use obsdiff_proto::lock;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;
use crate::text::{self, Table};

/// Sums, on each thread, the time spent in each span but in none of its children. While the root span is open on several threads, each
/// of them accounts for an equal share of the time, so that the whole is what a clock on the wall shows. Entering and leaving a span costs
/// one lock of a small map, well below a microsecond. Whole times of spans, which other layers report, would count a child's time in its
/// parent as well: their sum would not be the whole.
#[derive(Clone)]
pub struct Spans {
    root: &'static str,
    clock: Clock,
    threads: Arc<Mutex<Threads>>,
}

/// The threads that spans were entered on.
#[derive(Default)]
struct Threads {
    all: HashMap<ThreadId, Thread>,
    /// On how many of them the root span is open.
    in_root: u32,
}

impl Threads {
    fn settle(&mut self, now: Duration, root: &str) {
        let in_root = self.in_root;
        self.all.values_mut().for_each(|thread| thread.settle(now, root, in_root));
    }

    fn count_roots(&mut self, root: &str) {
        self.in_root = self.all.values().map(|thread| u32::from(thread.is_in(root))).sum();
    }
}

/// What an event says that moves time from one span to another: that of work which a device did for the second while the first waited.
#[derive(Default)]
struct MovedTime {
    from: String,
    to: String,
    time: Duration,
}

impl MovedTime {
    /// The fields of such an event.
    const FROM: &str = "moved_from";
    const TO: &str = "moved_to";
    const NANOSECONDS: &str = "nanoseconds";
}

impl Visit for MovedTime {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            Self::FROM => self.from = value.to_owned(),
            Self::TO => self.to = value.to_owned(),
            _ => (),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == Self::NANOSECONDS {
            self.time = Duration::from_nanos(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// The spans of one thread, outermost first, and their self times so far.
#[derive(Default)]
struct Thread {
    open: Vec<(span::Id, &'static str)>,
    last: Duration,
    sums: BTreeMap<&'static str, Sum>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    entered: u64,
    /// Time that passed while the root span was open on the same thread: this thread's share of it.
    in_root: Duration,
    /// All other time.
    elsewhere: Duration,
}

impl Sum {
    /// The time on a thread where the root span is open, or where it is not.
    fn of(&mut self, is_in_root: bool) -> &mut Duration {
        if is_in_root { &mut self.in_root } else { &mut self.elsewhere }
    }
}

impl Thread {
    /// Gives the time since the last change to the innermost span: a share of it while the root span is open on `in_root` threads, this
    /// one among them.
    fn settle(&mut self, now: Duration, root: &str, in_root: u32) {
        let passed = now.saturating_sub(self.last);
        self.last = now;
        let is_in_root = self.is_in(root);
        if let Some((_, name)) = self.open.last() {
            let sum = self.sums.entry(name).or_default();
            *sum.of(is_in_root) += if is_in_root { passed / in_root.max(1) } else { passed };
        }
    }

    /// Gives so much of one span's time to another one, both of which it has been in.
    fn transfer(&mut self, moved: &MovedTime, root: &str, in_root: u32) {
        let is_in_root = self.is_in(root);
        let share = if is_in_root { moved.time / in_root.max(1) } else { moved.time };
        if !self.sums.contains_key(&*moved.to) {
            return;
        }
        let Some(from) = self.sums.get_mut(&*moved.from) else { return };
        let taken = from.of(is_in_root);
        let share = share.min(*taken);
        *taken -= share;
        if let Some(to) = self.sums.get_mut(&*moved.to) {
            *to.of(is_in_root) += share;
        }
    }

    fn is_in(&self, root: &str) -> bool {
        self.open.iter().any(|(_, name)| *name == root)
    }
}

impl Spans {
    /// An account of the spans within the span named `root`, by `clock`.
    pub fn new(root: &'static str, clock: Clock) -> Self {
        Self { root, clock, threads: Arc::default() }
    }

    /// The account as a layer of a subscriber. It takes obsdiff's own spans alone: those of libraries, such as `FramedWrite::flush` of
    /// HTTP/2, say nothing to a user, and their time belongs to the span of obsdiff's around them.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let own = |metadata: &Metadata<'_>| {
            let is_told = metadata.is_span() || metadata.fields().field(MovedTime::TO).is_some();
            is_told && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
        };
        self.clone().with_filter(filter_fn(own))
    }

    /// The clock that it reads.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What was spent so far, spans that are still open included.
    pub fn report(&self) -> SpanReport {
        let now = (self.clock)();
        let mut report = SpanReport::default();
        let mut rows: BTreeMap<&'static str, SpanRow> = BTreeMap::new();
        let mut threads = self.threads();
        threads.settle(now, self.root);
        for thread in threads.all.values() {
            for (name, sum) in &thread.sums {
                report.whole += sum.in_root;
                if *name == self.root {
                    report.other += sum.in_root;
                    continue;
                }
                let row = rows.entry(name).or_insert(SpanRow { name, ..SpanRow::default() });
                row.entered += sum.entered;
                row.time += sum.in_root;
                row.elsewhere += sum.elsewhere;
            }
        }
        report.rows = rows.into_values().collect();
        report.rows.sort_by(|a, b| b.time.cmp(&a.time).then(a.name.cmp(b.name)));
        report
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        lock(&self.threads)
    }

    /// Changes which spans are open on this thread by one, named `name`.
    fn here(&self, name: &str, change: impl FnOnce(&mut Thread)) {
        let (now, id) = ((self.clock)(), thread::current().id());
        let mut threads = self.threads();
        let in_root = threads.in_root;
        threads.all.entry(id).or_default().settle(now, self.root, in_root);
        if name == self.root {
            // The shares of all threads change.
            threads.settle(now, self.root);
        }
        threads.all.entry(id).and_modify(change);
        if name == self.root {
            threads.count_roots(self.root);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_enter(&self, id: &span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            self.here(span.name(), |thread| {
                thread.open.push((id.clone(), span.name()));
                thread.sums.entry(span.name()).or_default().entered += 1;
            });
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut moved = MovedTime::default();
        event.record(&mut moved);
        let mut threads = self.threads();
        let in_root = threads.in_root;
        threads
            .all
            .entry(thread::current().id())
            .and_modify(|thread| thread.transfer(&moved, self.root, in_root));
    }

    fn on_exit(&self, id: &span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            self.here(span.name(), |thread| {
                // Spans may be left in another order than they were entered.
                if let Some(at) = thread.open.iter().rposition(|(open, _)| open == id) {
                    thread.open.remove(at);
                }
            });
        }
    }
}

/// Where the time within the root span went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanReport {
    /// Spans by self time, the longest first.
    pub rows: Vec<SpanRow>,
    /// The root span's own self time: what no other span accounts for.
    pub other: Duration,
    /// All of it: the rows' times and `other` add up to it.
    pub whole: Duration,
}

/// The self time of the spans of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanRow {
    /// Their name.
    pub name: &'static str,
    /// How often one was entered.
    pub entered: u64,
    /// Time within the root span's thread.
    pub time: Duration,
    /// Time on threads where the root span was not open: it runs beside the rest, so it is no part of the whole.
    pub elsewhere: Duration,
}

impl SpanRow {
    /// Whether all of it ran beside the root span's thread, and for long enough to be listed.
    fn beside(&self) -> bool {
        self.time.is_zero() && self.elsewhere >= Duration::from_millis(1)
    }
}

impl SpanReport {
    /// The self time of the spans of this name within the root span; zero where none was entered.
    pub fn time(&self, name: &str) -> Duration {
        self.rows.iter().find(|row| row.name == name).map_or(Duration::ZERO, |row| row.time)
    }

    /// The rows as a record keeps them.
    pub fn phases(&self) -> Vec<MeasuredPhase> {
        let phase = |row: &SpanRow| MeasuredPhase {
            phase: row.name.to_owned(),
            calls: row.entered,
            seconds: row.time.as_secs_f64(),
            beside_seconds: row.elsewhere.as_secs_f64(),
        };
        self.rows.iter().map(phase).collect()
    }
}

impl fmt::Display for SpanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |time: Duration| {
            if self.whole.is_zero() {
                "-".to_owned()
            } else {
                format!("{:.1}%", 100.0 * time.as_secs_f64() / self.whole.as_secs_f64())
            }
        };
        let mut table = Table::new(["where the time went", "calls", "time", "share"]);
        let mut row = |row: &SpanRow, time, share| {
            table.row([row.name.to_owned(), row.entered.to_string(), text::duration(time), share]);
        };
        self.rows.iter().filter(|r| !r.time.is_zero()).for_each(|r| row(r, r.time, share(r.time)));
        table.row(["other".to_owned(), String::new(), text::duration(self.other), share(self.other)]);
        table.rule();
        table.row(["all".to_owned(), String::new(), text::duration(self.whole), share(self.whole)]);
        if self.rows.iter().any(SpanRow::beside) {
            table.heading("on other threads at the same time, so no part of the time above".to_owned());
        }
        let mut row = |row: &SpanRow| {
            let time = text::duration(row.elsewhere);
            table.row([row.name.to_owned(), row.entered.to_string(), time, String::new()]);
        };
        self.rows.iter().filter(|r| r.beside()).for_each(&mut row);
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests;

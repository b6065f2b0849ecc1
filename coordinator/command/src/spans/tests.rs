use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::info_span;
use tracing_subscriber::prelude::*;

use super::*;

/// An account with a clock that goes on by `tick(seconds)` alone.
fn account(run: impl FnOnce(&dyn Fn(u64), &Spans)) -> SpanReport {
    let seconds = Arc::new(AtomicU64::new(100));
    let read = Arc::clone(&seconds);
    let spans = Spans::new("run", Arc::new(move || Duration::from_secs(read.load(Ordering::Relaxed))));
    let subscriber = tracing_subscriber::registry().with(spans.layer());
    tracing::subscriber::with_default(subscriber, || {
        run(&|s| _ = seconds.fetch_add(s, Ordering::Relaxed), &spans);
    });
    spans.report()
}

fn row(name: &'static str, entered: u64, time: u64, elsewhere: u64) -> SpanRow {
    SpanRow { name, entered, time: Duration::from_secs(time), elsewhere: Duration::from_secs(elsewhere) }
}

#[test]
fn self_times_add_up_to_the_whole() {
    let report = account(|tick, _| {
        let _run = info_span!("run").entered();
        tick(1);
        for _ in 0..2 {
            let _outer = info_span!("calibrate").entered();
            tick(2);
            info_span!("forward").in_scope(|| tick(10));
            tick(3);
        }
        info_span!("solve").in_scope(|| tick(7));
    });
    assert_eq!(report.rows, [row("forward", 2, 20, 0), row("calibrate", 2, 10, 0), row("solve", 1, 7, 0)]);
    assert_eq!((report.other, report.whole), (Duration::from_secs(1), Duration::from_secs(38)));
    assert_eq!(report.time("solve"), Duration::from_secs(7));
}

#[test]
fn time_outside_the_root_and_on_other_threads_is_no_part_of_the_whole() {
    let report = account(|tick, spans| {
        info_span!("load").in_scope(|| tick(5));
        tick(50);
        let _run = info_span!("run").entered();
        info_span!("load").in_scope(|| tick(1));
        thread::scope(|scope| {
            scope.spawn(|| {
                let subscriber = tracing_subscriber::registry().with(spans.layer());
                tracing::subscriber::with_default(subscriber, || info_span!("solve").in_scope(|| ()));
            });
        });
    });
    assert_eq!(report.rows, [row("load", 2, 1, 5), row("solve", 1, 0, 0)]);
    assert_eq!(report.whole, Duration::from_secs(1));
}

/// What a device does for Grams while its forward call is waited for.
#[test]
fn time_is_moved_between_spans_and_the_whole_stays() {
    let report = account(|tick, _| {
        let _run = info_span!("run").entered();
        info_span!("forward").in_scope(|| {
            info_span!("gram").in_scope(|| tick(1));
            tick(10);
        });
        tracing::trace!(moved_from = "forward", moved_to = "gram", nanoseconds = 4_000_000_000_u64);
        // Nothing is taken that is not there, or given to what is not known.
        tracing::trace!(moved_from = "forward", moved_to = "solve", nanoseconds = 1_000_000_000_u64);
        tracing::trace!(moved_from = "load", moved_to = "gram", nanoseconds = 1_000_000_000_u64);
    });
    assert_eq!(report.rows, [row("forward", 1, 6, 0), row("gram", 1, 5, 0)]);
    assert_eq!(report.whole, Duration::from_secs(11));
    let report = account(|tick, _| {
        info_span!("gram").in_scope(|| ());
        info_span!("forward").in_scope(|| tick(3));
        tracing::trace!(moved_from = "forward", moved_to = "gram", nanoseconds = 4_000_000_000_u64);
    });
    assert_eq!(report.rows, [row("forward", 1, 0, 0), row("gram", 1, 0, 3)]);
}

#[test]
fn threads_that_work_at_the_same_time_share_it() {
    let report = account(|tick, spans| {
        info_span!("run").in_scope(|| tick(1));
        let (started, go_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let subscriber = tracing_subscriber::registry().with(spans.layer());
                tracing::subscriber::with_default(subscriber, || {
                    let _run = info_span!("run").entered();
                    let _solve = info_span!("solve").entered();
                    started.wait();
                    go_on.wait();
                });
                started.wait();
            });
            let _run = info_span!("run").entered();
            let _forward = info_span!("forward").entered();
            started.wait();
            tick(8);
            go_on.wait();
            started.wait();
            tick(2);
        });
    });
    assert_eq!(report.rows, [row("forward", 1, 6, 0), row("solve", 1, 4, 0)]);
    assert_eq!(report.whole, Duration::from_secs(11));
}

#[test]
fn what_ran_beside_is_told_apart() {
    let seconds = Duration::from_secs;
    let rows = vec![row("solve", 2, 8, 0), row("reduce", 3, 0, 1), row("load", 1, 2, 5)];
    let report = SpanReport { rows, other: Duration::ZERO, whole: seconds(10) };
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[3].starts_with("load") && lines[3].ends_with("20.0%"), "{text}");
    let all = lines.iter().position(|line| line.starts_with("all")).unwrap();
    assert!(lines[all].ends_with("100.0%"), "{text}");
    assert_eq!(lines[all + 1], "on other threads at the same time, so no part of the time above");
    assert!(lines[all + 2].starts_with("reduce") && lines[all + 2].ends_with("1.0 s"), "{text}");
    assert_eq!(lines.len(), all + 3, "{text}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn a_report_counts_what_is_still_open_once() {
    let mut early = SpanReport::default();
    let late = account(|tick, spans| {
        let _run = info_span!("run").entered();
        let _solve = info_span!("solve").entered();
        tick(4);
        early = spans.report();
        tick(5);
    });
    assert_eq!(early.time("solve"), Duration::from_secs(4));
    assert_eq!(late.time("solve"), Duration::from_secs(9));
}

#[test]
fn spans_left_out_of_order_are_told_apart() {
    let report = account(|tick, _| {
        let run = info_span!("run").entered();
        let outer = info_span!("outer").entered();
        let inner = info_span!("inner").entered();
        drop(outer);
        tick(3);
        drop(inner);
        tick(2);
        drop(run);
    });
    assert_eq!((report.time("inner"), report.time("outer")), (Duration::from_secs(3), Duration::ZERO));
    assert_eq!(report.other, Duration::from_secs(2));
}

#[test]
fn the_table_ends_with_other_and_all() {
    let report = account(|tick, _| {
        let _run = info_span!("run").entered();
        tick(1);
        info_span!("solve").in_scope(|| tick(3));
    });
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert!(lines[2].starts_with("solve") && lines[2].ends_with("75.0%"), "{text}");
    assert!(lines[3].starts_with("other") && lines[3].ends_with("25.0%"), "{text}");
    assert!(lines[5].starts_with("all") && lines[5].ends_with("100.0%"), "{text}");
}

#[test]
fn spans_of_libraries_are_no_rows_and_their_time_belongs_to_what_is_around_them() {
    let report = account(|tick, _| {
        let _run = info_span!("run").entered();
        info_span!(target: "h2::codec::framed_write", "FramedWrite::flush").in_scope(|| tick(1));
        let _store = info_span!("store").entered();
        info_span!(target: "hyper::client", "connect").in_scope(|| {
            tick(2);
            info_span!("solve").in_scope(|| tick(4));
        });
    });
    assert_eq!(report.rows, [row("solve", 1, 4, 0), row("store", 1, 2, 0)]);
    assert_eq!(report.other, Duration::from_secs(1));
    assert!(!report.to_string().contains("::"), "{report}");
}

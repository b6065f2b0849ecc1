//! Where a job stands, as text: what `obsdiff status` prints of a coordinator's answer.

use std::fmt::Write;
use std::time::Duration;

use console::truncate_str;
use obsdiff_proto::counted;
use obsdiff_proto::view::{JobReport, WatchMessage};

use crate::text::{Table, duration, printable_line};

/// A job's report: what it prunes, how far it is, and a line for each worker.
pub fn render(report: &JobReport) -> String {
    let JobReport { release, model, output, elapsed, left, view, .. } = report;
    let left = left.map_or(String::new(), |left| format!(", about {} left", duration(left)));
    let lines = [
        format!("{model} -> {output}"),
        format!("{}{left}", view.line()),
        format!("running for {}, obsdiff {release}", duration(*elapsed)),
    ];
    let mut text: String = lines.iter().map(|line| printable_line(line) + "\n").collect();
    if view.workers.is_empty() {
        if view.ending.is_none() {
            text.push_str("no workers\n");
        }
        return text;
    }
    let mut table = Table::plain(["worker", "now", "done"]).left_from(1);
    for worker in &view.workers {
        let pace = worker.pace.map_or(String::new(), |pace| format!(", {} each", duration(pace)));
        let held =
            if worker.held > 0 { format!("{}{pace}", counted(worker.held, "shard")) } else { String::new() };
        table.row([worker.worker.to_string(), worker.now(), held]);
    }
    // Writing to a string never fails.
    let _ = write!(text, "\n{table}");
    text
}

/// A report as it reads so much later, if nothing else has changed.
pub(crate) fn after(report: JobReport, time: Duration) -> JobReport {
    if report.view.ending.is_some() {
        return report;
    }
    let left = report.left.map(|left| left.saturating_sub(time));
    JobReport { elapsed: report.elapsed + time, left, ..report }
}

/// Text as it fits a screen of so many rows and columns: longer lines are cut, and where there are too many of them the last row counts
/// those that are missing.
pub(crate) fn fitted(text: &str, rows: usize, columns: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    // One row stays free for the cursor.
    let rows = rows.saturating_sub(1).max(1);
    let shown = if lines.len() > rows { rows - 1 } else { lines.len() };
    let mut fitting: Vec<String> =
        lines[..shown].iter().map(|line| truncate_str(line, columns, "…").into_owned()).collect();
    if shown < lines.len() {
        fitting.push(format!("and {}", counted(lines.len() - shown, "more line")));
    }
    fitting.join("\n")
}

/// A message to the watchers of a job, as one or more lines.
pub fn render_message(message: &WatchMessage) -> String {
    match message {
        WatchMessage::Report(report) => render(report),
        WatchMessage::Event(event) => format!("{}\n", printable_line(event)),
    }
}

#[cfg(test)]
mod tests;

//! Snapshots of a job, and the task that makes them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use obsdiff_proto::view::{JobReport, WorkerView};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::ReportSource;

/// The least time from one snapshot to the next.
const PERIOD: Duration = Duration::from_millis(500);

/// A job's report, ready to be sent.
pub struct Snapshot {
    /// The report as JSON: what `obsdiff status --json` prints, and as text what the job and each worker do.
    pub json: Bytes,
    /// The same as a server-sent event.
    pub frame: Bytes,
    /// The job is over: no other snapshot follows.
    pub over: bool,
}

/// A report, and the parts of it that are given as text.
#[derive(Serialize)]
struct InWords<'a> {
    #[serde(flatten)]
    report: &'a JobReport,
    /// Where the job stands.
    line: String,
    /// The workers' names.
    names: Vec<String>,
    /// What each of them does.
    doing: Vec<String>,
}

impl Snapshot {
    /// The snapshot of a report. JSON has no line breaks, so it is one line of the event.
    ///
    /// # Errors
    /// When a number in the report is not one of JSON.
    pub fn new(report: &JobReport) -> serde_json::Result<Self> {
        let workers = &report.view.workers;
        let words = InWords {
            report,
            line: report.view.line(),
            names: workers.iter().map(|worker| worker.worker.to_string()).collect(),
            doing: workers.iter().map(WorkerView::now).collect(),
        };
        let mut frame = b"event: job\ndata: ".to_vec();
        let start = frame.len();
        serde_json::to_writer(&mut frame, &words)?;
        let end = frame.len();
        frame.extend_from_slice(b"\n\n");
        let frame = Bytes::from(frame);
        Ok(Self { json: frame.slice(start..end), frame, over: report.view.ending.is_some() })
    }
}

/// Makes snapshots while somebody watches, until the job is over or its state is no longer available.
pub(super) async fn publish(
    source: impl ReportSource,
    latest: watch::Sender<Option<Arc<Snapshot>>>,
    wanted: Arc<Notify>,
) {
    let mut last: Option<JobReport> = None;
    loop {
        // The page itself keeps one receiver.
        if latest.receiver_count() <= 1 {
            last = None;
            latest.send_replace(None);
            tokio::select! {
                biased;
                () = latest.closed() => return,
                () = wanted.notified() => {}
            }
            continue;
        }
        let Some(report) = source.report().await else { return };
        let over = report.view.ending.is_some();
        if !last.as_ref().is_some_and(|last| is_same(last, &report)) {
            match Snapshot::new(&report) {
                Ok(snapshot) => drop(latest.send_replace(Some(Arc::new(snapshot)))),
                Err(error) => tracing::warn!(%error, "the page of the job cannot show how it stands"),
            }
            last = Some(report);
        }
        if over {
            return;
        }
        sleep(PERIOD).await;
    }
}

/// Whether two reports differ by nothing but the time at which they were made.
fn is_same(a: &JobReport, b: &JobReport) -> bool {
    let end = |report: &JobReport| report.left.map(|left| (report.elapsed + left).as_secs());
    end(a) == end(b) && a.view == b.view && a.details == b.details
}

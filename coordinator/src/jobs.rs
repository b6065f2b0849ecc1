//! The gRPC service that shows a job and its events.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::session::JobProgress;
use obsdiff_proto::view::{JobDetails, JobReport, JobRequest, View, WatchMessage};
use obsdiff_proto::wire::v1;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::announcing::Announcements;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::{CoreDriver, Handle};

/// How often a watcher gets a report while the job makes progress.
const LOOK: Duration = Duration::from_millis(100);

/// How far a job is, and what is expected of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outlook {
    /// When it is expected to end, by the coordinator's clock, if there is an estimate.
    pub end: Option<Duration>,
    /// The share of its work that is done, from 0 to 1.
    pub done: f64,
    /// Packages committed.
    pub committed: u32,
    /// Packages planned.
    pub packages: u32,
}

impl Outlook {
    /// The progress of a job that is not over, at this time.
    pub fn progress(&self, now: Duration) -> JobProgress {
        JobProgress {
            // Only a job that is done has come so far.
            percent: (100.0 * self.done).clamp(0.0, 99.0) as u8,
            left: self.end.map(|end| end.saturating_sub(now)),
            committed: self.committed,
            packages: self.packages,
        }
    }
}

/// A job as its coordinator shows it.
#[derive(Clone)]
pub struct ServedJob {
    /// How its driver is reached.
    pub handle: Handle,
    /// What the job asks for.
    pub request: JobRequest,
    /// The pipeline that is pruned.
    pub model: String,
    /// The location of the pruned pipeline.
    pub output: String,
    /// Time since the coordinator started.
    pub clock: Clock,
    /// How far the job is, and what is expected of it.
    pub outlook: watch::Receiver<Outlook>,
    /// Whether the progress is sent to a worker that can announce it where it runs. False where this process announces it itself.
    pub workers_announce: bool,
    /// What happens, in words.
    pub events: broadcast::Sender<String>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
}

impl ServedJob {
    /// Where the job stands, with all that is known of it; none once the driver has ended.
    pub(crate) async fn whole_report(&self) -> Option<JobReport> {
        let (view, details) = self.handle.details().await?;
        Some(self.report(view, details))
    }

    fn report(&self, view: View, details: JobDetails) -> JobReport {
        let elapsed = (self.clock)();
        let end = if view.ending.is_some() { None } else { self.outlook.borrow().end };
        JobReport {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.clone(),
            output: self.output.clone(),
            elapsed,
            left: end.map(|end| end.saturating_sub(elapsed)),
            request: self.request.clone(),
            view,
            details,
        }
    }

    /// The job's metrics as Prometheus reads them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub async fn metrics(&self) -> crate::Result<String> {
        let view = self.handle.view().await;
        self.metrics.text(view.map(|view| self.report(view, JobDetails::default())).as_ref())
    }

    /// The same for a driver that no longer runs.
    ///
    /// # Errors
    /// As there.
    pub fn last_metrics(&self, driver: &CoreDriver<'_>) -> crate::Result<String> {
        self.metrics.text(Some(&self.report(driver.view(), JobDetails::default())))
    }

    /// The workers that get the progress, where workers announce it.
    pub(crate) fn announcements(&self) -> Option<Announcements> {
        let (outlook, clock) = (self.outlook.clone(), self.clock.clone());
        let progress = move || outlook.borrow().progress(clock());
        self.workers_announce.then(|| Announcements::new(progress))
    }

    /// Sends messages until the job is over or the watcher has left.
    async fn send(self, out: mpsc::Sender<WatchMessage>, mut events: broadcast::Receiver<String>) {
        let mut last = None;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                biased;
                () = out.closed() => return,
                words = events.recv() => match words {
                    Ok(words) => drop(out.send(WatchMessage::Event(words)).await),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                _ = looks.tick() => {
                    let Some(view) = self.handle.view().await else { return };
                    let over = view.ending.is_some();
                    if last.as_ref() != Some(&view) {
                        last = Some(view.clone());
                        let report = self.report(view, JobDetails::default());
                        // If the watcher has left, the loop ends at its next turn.
                        let _ = out.send(WatchMessage::Report(Box::new(report))).await;
                    }
                    if over {
                        return;
                    }
                }
            }
        }
    }
}

#[tonic::async_trait]
impl v1::jobs_server::Jobs for ServedJob {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::Job>, Status> {
        let report = self.whole_report().await;
        let report = report.ok_or_else(|| Status::unavailable("the coordinator is about to stop"))?;
        Ok(Response::new((&report).into()))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (out, news) = mpsc::channel(64);
        tokio::spawn(self.clone().send(out, self.events.subscribe()));
        Ok(Response::new(Box::pin(ReceiverStream::new(news).map(|news| Ok((&news).into())))))
    }

    async fn cancel(&self, _: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        self.handle.cancel().await;
        Ok(Response::new(v1::CancelResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_ends_before_its_end_as_long_as_the_job_is_not_over() {
        let outlook = |done| Outlook { end: Some(Duration::from_secs(50)), done, committed: 1, packages: 4 };
        let percent = |done| outlook(done).progress(Duration::ZERO).percent;
        assert_eq!(
            [-1.0, 0.0, 0.129, 0.5, 0.999, 1.0, 7.0, f64::NAN].map(percent),
            [0, 0, 12, 50, 99, 99, 99, 0]
        );
        let left = |now| outlook(0.5).progress(Duration::from_secs(now)).left;
        assert_eq!([left(20), left(60)], [Some(Duration::from_secs(30)), Some(Duration::ZERO)]);
        let done = outlook(0.5).progress(Duration::ZERO).done();
        assert_eq!(done, JobProgress { percent: 100, left: Some(Duration::ZERO), committed: 4, packages: 4 });
    }
}

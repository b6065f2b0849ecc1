//! The page that shows a job while it runs: `/` for browsers, `/job` the same as JSON, and `/events`, where each change of it arrives as
//! a server-sent event (WHATWG HTML, section 9.2).
//!
//! One task makes the snapshots, once a change and at most twice a second, while anybody watches. All browsers share its bytes. A
//! browser that is slow skips snapshots, one that is stuck is dropped: memory is bounded by [`MOST_BROWSERS`] and one snapshot each.

mod document;
mod publish;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use obsdiff_proto::view::JobReport;
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::ServedJob;

pub use document::LOOK;
use document::PageDocument;
pub use publish::Snapshot;

/// Browsers that may watch at a time.
const MOST_BROWSERS: usize = 64;

/// A comment is sent after so long without a change, so that proxies between keep the connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// This comment.
const UNCHANGED: &[u8] = b": nothing has changed\n\n";

/// A browser that takes nothing for so long is dropped.
const STUCK: Duration = Duration::from_secs(30);

/// Where the page has its reports from.
pub trait ReportSource: Send + Sync + 'static {
    /// The job as it stands; none once the driver has ended.
    fn report(&self) -> impl Future<Output = Option<JobReport>> + Send;
}

impl ReportSource for ServedJob {
    async fn report(&self) -> Option<JobReport> {
        self.whole_report().await
    }
}

/// The page of a job. It is to be made in a task's context, where it starts the task that makes snapshots.
pub fn routes(source: impl ReportSource) -> Router {
    let wanted = Arc::new(Notify::new());
    let (sender, latest) = watch::channel(None);
    tokio::spawn(publish::publish(source, sender, wanted.clone()));
    let page = LivePage {
        document: Arc::new(PageDocument::new()),
        latest: Arc::new(latest),
        wanted,
        places: Arc::new(Semaphore::new(MOST_BROWSERS)),
    };
    Router::new()
        .route("/", get(document))
        .route("/job", get(job))
        .route("/events", get(events))
        .with_state(page)
}

#[derive(Clone)]
struct LivePage {
    document: Arc<PageDocument>,
    /// The last snapshot; none while nobody has watched.
    /// One receiver for all clones of this: further ones are those who watch.
    latest: Arc<watch::Receiver<Option<Arc<Snapshot>>>>,
    /// Notified when somebody watches.
    wanted: Arc<Notify>,
    places: Arc<Semaphore>,
}

impl LivePage {
    /// The snapshots from now on.
    fn watch(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        let latest = watch::Receiver::clone(&self.latest);
        self.wanted.notify_one();
        latest
    }
}

/// No page of another site learns anything from these answers, and nothing is kept of them.
const PRIVATE: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

async fn document(State(page): State<LivePage>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, page.document.policy.as_str()),
    ];
    (PRIVATE, headers, page.document.html.clone()).into_response()
}

async fn job(State(page): State<LivePage>) -> Response {
    let mut latest = page.watch();
    let snapshot = match latest.wait_for(Option::is_some).await {
        Ok(snapshot) => snapshot.clone(),
        Err(_) => None,
    };
    match snapshot {
        Some(snapshot) => {
            (PRIVATE, [(header::CONTENT_TYPE, "application/json")], snapshot.json.clone()).into_response()
        }
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, PRIVATE, "the coordinator is about to stop\n").into_response()
        }
    }
}

async fn events(State(page): State<LivePage>) -> Response {
    let Ok(place) = page.places.clone().try_acquire_owned() else {
        let words =
            format!("{MOST_BROWSERS} pages watch this job already: close one, then reload this one\n");
        return (StatusCode::SERVICE_UNAVAILABLE, PRIVATE, [(header::RETRY_AFTER, "10")], words)
            .into_response();
    };
    let (out, frames) = mpsc::channel(1);
    tokio::spawn(send(page.watch(), out, place));
    let frames = ReceiverStream::new(frames).map(Ok::<_, Infallible>);
    // Proxies are asked not to collect events before they pass them on.
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (HeaderName::from_static("x-accel-buffering"), "no")];
    (PRIVATE, headers, Body::from_stream(frames)).into_response()
}

/// Sends each snapshot that there is time for, until the job is over, the browser has left or no longer reads.
async fn send(
    mut latest: watch::Receiver<Option<Arc<Snapshot>>>,
    out: Sender<Bytes>,
    _place: OwnedSemaphorePermit,
) {
    latest.mark_changed();
    loop {
        let (frame, over) = tokio::select! {
            biased;
            () = out.closed() => return,
            changed = timeout(HEARTBEAT, latest.changed()) => match changed {
                Ok(Ok(())) => match &*latest.borrow_and_update() {
                    Some(snapshot) => (snapshot.frame.clone(), snapshot.over),
                    None => continue,
                },
                // The coordinator stops, and the page sees its connection end.
                Ok(Err(_)) => return,
                Err(_) => (Bytes::from_static(UNCHANGED), false),
            },
        };
        if !matches!(timeout(STUCK, out.send(frame)).await, Ok(Ok(()))) || over {
            return;
        }
    }
}

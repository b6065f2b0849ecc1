//! The page of a job as browsers get it, and how much of it waits for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use obsdiff_coordinator::page::{ReportSource, routes};
use obsdiff_proto::view::{
    Activity, Ending, Grid, JobDetails, JobReport, JobRequest, PastEvent, Phase, View, WorkerView,
};
use obsdiff_proto::{Digest, WorkerId, lock};
use tokio_stream::StreamExt;
use tower::ServiceExt;

/// The least time from one snapshot to the next.
const PERIOD: Duration = Duration::from_millis(500);
/// A browser that takes nothing for so long is dropped.
const STUCK: Duration = Duration::from_secs(30);
/// Browsers that may watch at a time.
const MOST_BROWSERS: usize = 64;

/// A model whose name would be markup, and break lines.
const HOSTILE: &str = "</script><script>alert(1)</script>\r\n\ndata: x\u{2028}&lt;\"'";

fn report() -> JobReport {
    let worker = WorkerView {
        worker: WorkerId((1 << 32) + 7),
        applied: 0,
        leased: 1,
        held: 2,
        pace: Some(Duration::from_secs(3)),
        draining: false,
        preparing: false,
        solving: 0,
        activity: Activity::Calibrates,
    };
    let view = View {
        phase: Phase::Calibrate,
        packages: 2,
        surveys: 0,
        committed: 0,
        package: None,
        shards: 6,
        held: 2,
        parts: 3,
        solved: 0,
        epoch: None,
        workers: vec![worker],
        ending: None,
    };
    let event = PastEvent { at: Duration::ZERO, fault: false, words: HOSTILE.to_owned() };
    JobReport {
        release: "0".to_owned(),
        model: HOSTILE.to_owned(),
        output: "out".to_owned(),
        elapsed: Duration::from_secs(1),
        left: None,
        request: JobRequest::default(),
        view,
        details: JobDetails { events: vec![event], ..JobDetails::default() },
    }
}

/// A job that a test changes, and that counts how often it is asked.
#[derive(Clone)]
struct ReportedJob {
    report: Arc<Mutex<Option<JobReport>>>,
    asked: Arc<AtomicU32>,
}

impl ReportedJob {
    fn new() -> Self {
        Self { report: Arc::new(Mutex::new(Some(report()))), asked: Arc::default() }
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut lock(&self.report).as_mut().unwrap().view);
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl ReportSource for ReportedJob {
    async fn report(&self) -> Option<JobReport> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        lock(&self.report).clone()
    }
}

async fn got(page: &Router, path: &str) -> Response {
    page.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap()
}

async fn words(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().into()).unwrap()
}

/// A browser at `/events`.
struct PageReader {
    headers: HeaderMap,
    frames: BodyDataStream,
}

impl PageReader {
    async fn new(page: &Router) -> Self {
        let response = got(page, "/events").await;
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers().clone();
        Self { headers, frames: response.into_body().into_data_stream() }
    }

    /// The next frame; none at the end.
    async fn frame(&mut self) -> Option<String> {
        Some(String::from_utf8(self.frames.next().await?.unwrap().into()).unwrap())
    }

    /// How many shards are held, by the next snapshot.
    async fn held(&mut self) -> Option<u64> {
        let frame = self.frame().await?;
        let data =
            frame.strip_prefix("event: job\ndata: ").and_then(|rest| rest.strip_suffix("\n\n")).unwrap();
        let snapshot: serde_json::Value = serde_json::from_str(data).unwrap();
        Some(snapshot["shards_held"].as_u64().unwrap())
    }
}

#[tokio::test]
async fn the_page_runs_its_own_script_and_no_other() {
    let page = routes(ReportedJob::new());
    let response = got(&page, "/").await;
    let headers = response.headers().clone();
    let policy = headers["content-security-policy"].to_str().unwrap().to_owned();
    let html = words(response).await;
    for (tag, rule) in [("script", "script-src"), ("style", "style-src")] {
        let content =
            html.split(&format!("<{tag}>")).nth(1).unwrap().split(&format!("</{tag}>")).next().unwrap();
        let digest = STANDARD.encode(Digest::of(content.as_bytes()).0);
        assert!(policy.contains(&format!("{rule} 'sha256-{digest}';")), "{rule} of {policy}");
        assert_eq!(html.matches(&format!("<{tag}")).count(), 1);
    }
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    for header in ["cache-control", "x-content-type-options", "referrer-policy"] {
        assert!(headers.contains_key(header), "{header}");
    }
    for elsewhere in ["http:", "https:", "src=", "@import", "url(", "innerHTML", "insertAdjacent", "eval("] {
        assert!(!html.contains(elsewhere), "{elsewhere}");
    }
    let markup = html.split("<body>").nth(1).unwrap().split("<script>").next().unwrap();
    assert!(!markup.contains(" style=") && !markup.contains(" on"), "inline styles or handlers");
}

#[tokio::test]
async fn a_snapshot_is_what_status_prints_and_names_cannot_leave_their_line() {
    let page = routes(ReportedJob::new());
    let json = words(got(&page, "/job").await).await;
    let mut shown: serde_json::Value = serde_json::from_str(&json).unwrap();
    let words = shown.as_object_mut().unwrap();
    assert_eq!(words.remove("line").unwrap(), "calibrate: 0 of 2 packages committed, 2 of 6 shards");
    assert_eq!(words.remove("names").unwrap(), serde_json::json!(["2.7"]));
    assert_eq!(words.remove("doing").unwrap(), serde_json::json!(["runs 1 shard"]));
    assert_eq!(shown, serde_json::to_value(report()).unwrap());
    let frame = PageReader::new(&page).await.frame().await.unwrap();
    let lines: Vec<_> = frame.split(['\n', '\r']).collect();
    assert_eq!(lines, ["event: job", &format!("data: {json}"), "", ""]);
}

#[tokio::test(start_paused = true)]
async fn a_browser_gets_a_snapshot_then_each_change_then_the_end() {
    let job = ReportedJob::new();
    let page = routes(job.clone());
    let mut browser = PageReader::new(&page).await;
    assert_eq!(browser.headers["content-type"], "text/event-stream");
    assert_eq!(browser.held().await, Some(2));
    job.change(|view| view.held = 3);
    assert_eq!(browser.held().await, Some(3));
    // Nothing changes: a comment keeps the connection.
    assert_eq!(browser.frame().await.unwrap(), ": nothing has changed\n\n");
    job.change(|view| view.ending = Some(Ending::Done));
    assert!(browser.frame().await.unwrap().contains("\"ending\":{\"outcome\":\"done\"}"));
    assert_eq!(browser.frame().await, None);
    // Who comes after the end sees it, too.
    assert_eq!(PageReader::new(&page).await.held().await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_with_a_coordinator_that_stops() {
    let job = ReportedJob::new();
    let page = routes(job.clone());
    let mut browser = PageReader::new(&page).await;
    assert_eq!(browser.held().await, Some(2));
    *lock(&job.report) = None;
    assert_eq!(browser.frame().await, None);
    assert_eq!(got(&page, "/job").await.status(), StatusCode::OK, "the last snapshot is still there");
    let stopped = routes(job);
    assert_eq!(got(&stopped, "/job").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_slow_browser_skips_snapshots_and_a_stuck_one_is_dropped() {
    let job = ReportedJob::new();
    let page = routes(job.clone());
    let (mut slow, mut stuck) = (PageReader::new(&page).await, PageReader::new(&page).await);
    for held in 0..20 {
        job.change(|view| view.held = held);
        tokio::time::sleep(PERIOD).await;
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&19) {
        seen.push(slow.held().await.unwrap());
    }
    assert!(seen.len() <= 4, "{seen:?} waited for a browser that took nothing");
    job.change(|view| view.held = 100);
    assert_eq!(slow.held().await, Some(100));
    // The clock is the test's: this takes no time.
    tokio::time::sleep(STUCK).await;
    let mut waited = 0;
    while stuck.frame().await.is_some() {
        waited += 1;
    }
    assert!(waited <= 2, "{waited} snapshots waited for a browser that was stuck");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_browsers_watch_at_a_time() {
    let page = routes(ReportedJob::new());
    let mut browsers = Vec::new();
    for _ in 0..MOST_BROWSERS {
        browsers.push(PageReader::new(&page).await);
    }
    let refused = got(&page, "/events").await;
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"10".parse().unwrap())
    );
    assert!(words(refused).await.starts_with("64 pages watch this job already"));
    drop(browsers);
    tokio::task::yield_now().await;
    assert_eq!(PageReader::new(&page).await.held().await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn one_snapshot_a_change_serves_everyone_and_none_is_made_while_nobody_watches() {
    let job = ReportedJob::new();
    let page = routes(job.clone());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(job.asked(), 0);
    let mut browsers = Vec::new();
    for _ in 0..20 {
        browsers.push(PageReader::new(&page).await);
    }
    for browser in &mut browsers {
        assert_eq!(browser.held().await, Some(2));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(job.asked() <= 21, "{} snapshots in 10 s", job.asked());
    drop(browsers);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = job.asked();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(job.asked(), asked);
}

/// What a browser gets in a second is bounded, however fast a large job changes: two snapshots of its workers, and grids of shards and parts
/// whose cells do not grow with these.
#[tokio::test(start_paused = true)]
async fn a_browser_of_a_large_job_that_changes_all_the_time_gets_few_bytes() {
    const SECONDS: u32 = 10;
    let job = ReportedJob::new();
    {
        let mut report = lock(&job.report);
        let report = report.as_mut().unwrap();
        let worker = report.view.workers[0].clone();
        report.view.workers =
            (0..256).map(|id| WorkerView { worker: WorkerId(id), ..worker.clone() }).collect();
        let mut grid = Grid::new(10_000);
        (0..5_000).for_each(|shard| grid.count(shard, true));
        report.details.shard_grid = grid;
    }
    let page = routes(job.clone());
    let mut browser = PageReader::new(&page).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(SECONDS.into());
    let (mut bytes, mut frames) = (0, 0);
    while tokio::time::Instant::now() < end {
        job.change(|view| view.held += 1);
        bytes += browser.frame().await.unwrap().len();
        frames += 1;
    }
    assert!(frames <= 2 * SECONDS + 2, "{frames} snapshots in {SECONDS} s");
    let each = bytes / SECONDS as usize;
    assert!((10_000..200_000).contains(&each), "{each} bytes a second");
}

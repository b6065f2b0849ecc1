//! The progress of a job in the status of its Kubeflow TrainJob.
//!
//! Kubeflow Trainer (2.2 and later, feature gate `TrainJobStatus`) names a server of its own to the pods of a TrainJob's trainer step, by
//! variables `KUBEFLOW_TRAINER_SERVER_...`. It takes the progress by HTTPS. Whatever goes wrong with it never touches the job: it is
//! reported once, and not again until it has worked in between.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use obsdiff_coordinator::Outlook;
use obsdiff_files::read_regular;
use obsdiff_proto::session::JobProgress;
use obsdiff_proto::{PrunedSoFar, causes};
use obsdiff_security::{https_client, is_this_machine};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock::Clock;

/// The variable that names the server.
const URL: &str = "KUBEFLOW_TRAINER_SERVER_URL";
/// The one that names the file with its authority's certificate.
const AUTHORITY: &str = "KUBEFLOW_TRAINER_SERVER_CA_CERT";
/// The one that names the file with the token.
const TOKEN: &str = "KUBEFLOW_TRAINER_SERVER_TOKEN";

/// The least time from one POST to the next, as Trainer asks for.
pub const PACE: Duration = Duration::from_secs(5);

/// What a POST may take, the answer included.
const POST: Duration = Duration::from_secs(5);

/// What the end of the process may wait for the last POST: for the one that is under way or was just made, and for the last itself.
const LAST: Duration = Duration::from_secs(12);

/// A token of a service account takes one or two kB.
const LONGEST_TOKEN: u64 = 64 << 10;

/// Where the progress goes, and what proves that it may come from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainerServer {
    url: Url,
    /// Certificates of its authority, PEM; none for a server on this machine without TLS.
    authority: Option<PathBuf>,
    /// The file with the token, whose content changes from time to time.
    token: PathBuf,
}

impl TrainerServer {
    /// The server that the environment names, if it does. A problem is logged, and there is no server then.
    pub fn of(environment: &[(OsString, OsString)]) -> Option<Self> {
        Self::read(environment).unwrap_or_else(|problem| {
            tracing::warn!("the job's progress is not sent to Kubeflow Trainer: {problem}");
            None
        })
    }

    /// The same, or why it cannot be used.
    ///
    /// # Errors
    /// The variable that makes no sense, and why.
    pub fn read(environment: &[(OsString, OsString)]) -> Result<Option<Self>, String> {
        let get = |wanted: &str| {
            let (_, value) = environment.iter().find(|(name, _)| name == wanted)?;
            Some(value).filter(|value| !value.is_empty())
        };
        let Some(url) = get(URL) else { return Ok(None) };
        let url = url.to_string_lossy();
        let url: Url = url.parse().map_err(|e| format!("{URL}: \"{url}\" is no URL: {e}"))?;
        let tls = match url.scheme() {
            "https" => true,
            "http" if url.host_str().is_some_and(is_this_machine) => false,
            scheme => {
                let problem = "to another machine the token is sent by https:// alone";
                return Err(format!(
                    "{URL}: is {scheme}://{}: {problem}",
                    url.host_str().unwrap_or_default()
                ));
            }
        };
        let file = |variable: &str| {
            let file = get(variable).ok_or_else(|| format!("{variable}: is missing beside {URL}"))?;
            Ok::<_, String>(PathBuf::from(file))
        };
        let authority = tls.then(|| file(AUTHORITY)).transpose()?;
        Ok(Some(Self { url, authority, token: file(TOKEN)? }))
    }

    /// Posts what `source` says every [`PACE`], until [`ProgressPoster::end`]. Where it says nothing, nothing is posted.
    pub fn post(self, runtime: &Handle, source: impl ProgressSource) -> ProgressPoster {
        self.post_at_pace(runtime, source, PACE)
    }

    /// The same at another pace.
    pub fn post_at_pace(
        self,
        runtime: &Handle,
        source: impl ProgressSource,
        pace: Duration,
    ) -> ProgressPoster {
        let (end, ended) = oneshot::channel();
        let task = runtime.spawn(async move {
            let mut posts = Posts { server: self, failing: false };
            posts.post_until(ended, source, pace).await;
        });
        ProgressPoster { task, end, runtime: runtime.clone() }
    }

    /// Posts once that a job of so many packages is done. To be called by a thread, not a task.
    pub(crate) fn post_done(self, runtime: &Handle, packages: u32) {
        let left = Some(Duration::ZERO);
        let done = JobProgress { percent: 100, left, committed: packages, packages };
        let mut posts = Posts { server: self, failing: false };
        runtime.block_on(async {
            let posted = posts.server.post_once(done, PrunedSoFar::default()).await;
            posts.report(posted);
        });
    }

    /// Posts the progress once.
    async fn post_once(&self, progress: JobProgress, pruned: PrunedSoFar) -> Result<(), String> {
        let body = body(progress, pruned, SystemTime::now()).to_string();
        // Read again each time: both files change while the job runs.
        let (token, client) = (self.bearer()?, self.client()?);
        let request = client.post(self.url.clone()).header(AUTHORIZATION, token);
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body);
        let response = request.send().await.map_err(|error| causes(&error.without_url()))?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(format!("the server answers {status}")) }
    }

    fn client(&self) -> Result<Client, String> {
        let tls = https_client(self.authority.as_deref()).map_err(|error| error.to_string())?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(self.authority.is_some())
            // The token is for this server alone, and directly.
            .redirect(Policy::none())
            .no_proxy()
            .timeout(POST)
            .build();
        client.map_err(|error| causes(&error))
    }

    /// The token as a header, which no log shows.
    fn bearer(&self) -> Result<HeaderValue, String> {
        let file = |problem: &dyn std::fmt::Display| format!("{}: {problem}", self.token.display());
        let token = read_regular(&self.token, LONGEST_TOKEN).map_err(|error| file(&error))?;
        let token = String::from_utf8(token).map_err(|_| file(&"is no text, so it holds no token"))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .map_err(|_| file(&"holds no token: it has characters that no header can carry"))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// Says how far the job is, and what its finished packages have become; nothing where somebody else posts that, or it is not known yet.
pub trait ProgressSource: Fn() -> Option<(JobProgress, PrunedSoFar)> + Send + 'static {}

impl<F: Fn() -> Option<(JobProgress, PrunedSoFar)> + Send + 'static> ProgressSource for F {}

/// The progress by an outlook and the clock that it was made by.
pub(crate) fn outlook_source(outlook: watch::Receiver<Outlook>, clock: Clock) -> impl ProgressSource {
    move || Some((outlook.borrow().progress(clock()), PrunedSoFar::default()))
}

/// The task that posts.
pub struct ProgressPoster {
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
    runtime: Handle,
}

impl ProgressPoster {
    /// Ends it. That the job is `done` is posted before, at the pace that Trainer asks for. To be called by a thread, not a task.
    pub fn end(mut self, done: bool) {
        if !done {
            self.task.abort();
            return;
        }
        // The task ends only after this.
        let _ = self.end.send(());
        let task = &mut self.task;
        if self.runtime.block_on(async { timeout(LAST, task).await }).is_err() {
            self.task.abort();
        }
    }
}

struct Posts {
    server: TrainerServer,
    /// Whether the last POST failed.
    failing: bool,
}

impl Posts {
    /// Posts at this pace. Once the job has `ended` well that is posted, and nothing after it.
    async fn post_until(
        &mut self,
        mut ended: oneshot::Receiver<()>,
        source: impl ProgressSource,
        pace: Duration,
    ) {
        let mut ticks = interval(pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                biased;
                end = &mut ended => match end {
                    Ok(()) => {
                        ticks.tick().await;
                        true
                    }
                    // Nobody waits for it any more.
                    Err(_) => return,
                },
                _ = ticks.tick() => false,
            };
            if let Some((progress, pruned)) = source() {
                let progress = if done { progress.done() } else { progress };
                let posted = self.server.post_once(progress, pruned).await;
                self.report(posted);
            }
            if done {
                return;
            }
        }
    }

    /// Tells the first of failures that follow each other, and that it works again.
    fn report(&mut self, posted: Result<(), String>) {
        match (posted, self.failing) {
            (Err(problem), false) => {
                tracing::warn!("Kubeflow Trainer does not take the job's progress, which goes on: {problem}");
                self.failing = true;
            }
            (Ok(()), true) => {
                tracing::info!("Kubeflow Trainer takes the job's progress again");
                self.failing = false;
            }
            _ => {}
        }
    }
}

/// What the server reads: the `trainerStatus` of a TrainJob. The values of metrics are text.
fn body(progress: JobProgress, pruned: PrunedSoFar, now: SystemTime) -> Value {
    let mut metrics = Vec::new();
    // Without any the job is not planned yet.
    if progress.packages > 0 {
        metrics.push(metric("packages", progress.packages.to_string()));
        metrics.push(metric("packages_committed", progress.committed.to_string()));
    }
    if pruned.weights > 0 {
        metrics.push(metric("sparsity_ratio", share(pruned.zeros as f64, pruned.weights)));
    }
    if pruned.measured > 0 {
        let errors = pruned.error_billionths as f64 / 1e9;
        metrics.push(metric("relative_error_ratio", share(errors, pruned.measured)));
    }
    let mut status = json!({
        "progressPercentage": progress.percent,
        "metrics": metrics,
        "lastUpdatedTime": humantime::format_rfc3339_seconds(now).to_string(),
    });
    if let Some(left) = progress.left {
        status["estimatedRemainingSeconds"] = left.as_secs().into();
    }
    json!({ "trainerStatus": status })
}

fn metric(name: &str, value: String) -> Value {
    json!({ "name": name, "value": value })
}

fn share(part: f64, whole: u64) -> String {
    format!("{:.4}", part / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<TrainerServer>, String> {
        let environment: Vec<_> =
            variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        TrainerServer::read(&environment)
    }

    #[test]
    fn a_server_is_used_where_its_variables_are_all_there() {
        let (ca, token) = ((AUTHORITY, "/ca.crt"), (TOKEN, "/token"));
        assert_eq!(read(&[ca, token]), Ok(None));
        assert_eq!(read(&[(URL, ""), ca, token]), Ok(None));
        let url = (URL, "https://trainer.kubeflow.svc:8082/apis/status");
        let server = read(&[url, ca, token]).unwrap().unwrap();
        assert_eq!((server.authority, server.token), (Some("/ca.crt".into()), "/token".into()));
        assert_eq!(read(&[url, ca]), Err(format!("{TOKEN}: is missing beside {URL}")));
        assert_eq!(
            read(&[url, (AUTHORITY, ""), token]),
            Err(format!("{AUTHORITY}: is missing beside {URL}"))
        );
        // On this machine nobody listens.
        for url in ["http://127.0.0.1:8082/", "http://localhost:8082/", "http://[::1]:8082/"] {
            assert_eq!(read(&[(URL, url), token]).unwrap().unwrap().authority, None, "{url}");
        }
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear() {
        for (url, problem) in [
            ("http://trainer.kubeflow.svc:8082/", "is http://trainer.kubeflow.svc: to another machine"),
            ("http://10.0.0.1/", "is http://10.0.0.1: to another machine"),
            ("ftp://127.0.0.1/", "is ftp://127.0.0.1: to another machine"),
            ("trainer", "\"trainer\" is no URL"),
        ] {
            let refused = read(&[(URL, url), (AUTHORITY, "c"), (TOKEN, "t")]).unwrap_err();
            assert!(refused.starts_with(&format!("{URL}: {problem}")), "{refused}");
        }
    }

    #[test]
    fn a_body_has_the_form_of_a_trainer_status() {
        let progress =
            JobProgress { percent: 42, left: Some(Duration::from_millis(90_900)), committed: 1, packages: 4 };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_500);
        let pruned = PrunedSoFar {
            weights: 200,
            zeros: 101,
            measured: 2,
            error_billionths: 30_000_000,
            ..PrunedSoFar::default()
        };
        let expected = json!({ "trainerStatus": {
            "progressPercentage": 42,
            "estimatedRemainingSeconds": 90,
            "metrics": [
                { "name": "packages", "value": "4" },
                { "name": "packages_committed", "value": "1" },
                { "name": "sparsity_ratio", "value": "0.5050" },
                { "name": "relative_error_ratio", "value": "0.0150" },
            ],
            "lastUpdatedTime": "2027-01-15T08:00:00Z",
        }});
        assert_eq!(body(progress, pruned, now), expected);
        let unknown = JobProgress { left: None, packages: 0, ..progress };
        let unknown = body(unknown, PrunedSoFar::default(), now);
        assert_eq!(unknown["trainerStatus"].as_object().unwrap().len(), 3, "{unknown}");
        assert_eq!(unknown["trainerStatus"]["metrics"], json!([]), "{unknown}");
    }
}

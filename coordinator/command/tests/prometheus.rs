//! A real Prometheus scrapes a coordinator at work.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

mod process;

use process::*;

/// A Prometheus with its data and configuration in a folder.
struct Prometheus {
    _process: Process,
    url: String,
}

impl Prometheus {
    /// Scrapes the coordinator at this URL all the time.
    fn start(folder: &Path, coordinator: &str) -> Self {
        let address = coordinator.strip_prefix("http://").unwrap();
        let config = format!(
            "scrape_configs:\n- job_name: obsdiff\n  scrape_interval: 100ms\n  scrape_timeout: 100ms\n  \
             static_configs: [{{targets: ['{address}']}}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        // Its log, on standard error, names the port that the system has picked.
        let command = "exec prometheus --config.file=prometheus.yml --storage.tsdb.path=data --web.listen-address=127.0.0.1:0 2>&1";
        let mut process = Process::spawn(Command::new("sh").args(["-c", command]).current_dir(folder));
        let line =
            process.line(|line| line.contains("address=127.0.0.1:") && !line.contains("address=127.0.0.1:0"));
        let line = line.expect("Prometheus does not start: tests/run installs it");
        let address = line.split_once("address=").unwrap().1.split(' ').next().unwrap();
        Self { url: format!("http://{address}"), _process: process }
    }

    /// The value of a query that has one, once it is as wanted.
    fn wait(&self, query: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let end = Instant::now() + LONG;
        loop {
            let (status, _, body) = get(&self.url, &format!("/api/v1/query?query={encoded}"));
            // Before its data is loaded it answers that it is not ready.
            let answer: Value = serde_json::from_str(&body).unwrap_or_default();
            let value = answer["data"]["result"][0]["value"][1].as_str().and_then(|value| value.parse().ok());
            match value {
                Some(value) if status == 200 && wanted(value) => return value,
                _ => assert!(Instant::now() < end, "{query}: {status} {body}"),
            }
            thread::park_timeout(Duration::from_millis(50));
        }
    }
}

/// A checker of Prometheus' own finds nothing to say of the metrics.
fn assert_conventional(metrics: &str) {
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is not there: tests/run installs it");
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = [checked.stdout, checked.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
    assert!(checked.status.success() && said.is_empty(), "{said}\n{metrics}");
}

#[test]
fn prometheus_sees_a_job_go_on_and_a_worker_die() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let prometheus = Prometheus::start(folder.path(), &coordinator.url);
    prometheus.wait("up", |up| up == 1.0);
    prometheus.wait("obsdiff_packages{state=\"pending\"}", |pending| pending > 0.0);
    let mut worker = worker(folder.path(), &coordinator.url);
    coordinator.until(BETWEEN);
    // Without a worker the job stays as it is, however long the next scrape takes.
    worker.kill();
    prometheus.wait("obsdiff_workers_lost_total", |lost| lost == 1.0);
    prometheus.wait("obsdiff_packages{state=\"committed\"}", |committed| committed == 1.0);
    prometheus.wait("obsdiff_packages{state=\"open\"}", |open| open == 1.0);
    prometheus.wait("sum(obsdiff_shards)", |shards| shards == 6.0);
    // Six prompts, and one for the pilot, of 16 steps each.
    prometheus.wait("obsdiff_prompt_steps_total", |steps| steps >= 112.0);
    for seconds in ["gram", "forward", "solve"] {
        prometheus.wait(&format!("obsdiff_{seconds}_seconds_total"), |seconds| seconds > 0.0);
    }
    prometheus.wait("obsdiff_epochs_total", |epochs| epochs >= 1.0);
    prometheus.wait("obsdiff_workers_joined_total", |joined| joined == 1.0);

    let (status, headers, metrics) = get(&coordinator.url, "/metrics");
    assert_eq!(status, 200);
    assert!(headers.contains("content-type: text/plain; version=0.0.4"), "{headers}");
    assert_conventional(&metrics);

    // What nobody scraped is kept.
    coordinator.process.terminate();
    assert_eq!(coordinator.process.end().code(), Some(143));
    let kept = fs::read_to_string(folder.path().join("out.state/metrics.json")).unwrap();
    assert!(kept.contains("obsdiff_workers_lost_total 1\\n"), "{kept}");
}

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::message::Status;
use obsdiff_proto::view::{Activity, Ending, JobDetails, JobRequest, Phase, View, WorkerView};
use obsdiff_proto::{GpuMemory, Measures, PackageId, PrunedSoFar, ShardId};
use prometheus::proto::MetricType;

use super::*;

fn report(workers: Vec<WorkerView>) -> JobReport {
    JobReport {
        release: "0.1.0".to_owned(),
        model: "pipeline".to_owned(),
        output: "out".to_owned(),
        elapsed: Duration::from_millis(2500),
        left: Some(Duration::from_secs(90)),
        view: View {
            phase: Phase::Calibrate,
            packages: 4,
            surveys: 0,
            committed: 1,
            package: Some(PackageId(1)),
            shards: 10,
            held: 3,
            parts: 8,
            solved: 2,
            epoch: None,
            workers,
            ending: None,
        },
        request: JobRequest::default(),
        details: JobDetails::default(),
    }
}

fn worker(id: u64, leased: usize) -> WorkerView {
    WorkerView {
        worker: WorkerId(id),
        applied: 1,
        leased,
        held: 0,
        pace: Some(Duration::from_millis(1500)),
        draining: false,
        preparing: false,
        solving: 0,
        activity: Activity::Calibrates,
    }
}

fn hello(instance: u128) -> Hello {
    let exponents = BTreeMap::new();
    Hello { instance, speed: 1, hardware: String::new(), exponents, status: Status::default() }
}

fn join(metrics: &mut Arc<Metrics>, id: u64, instance: u128) {
    metrics.joined(WorkerId(id), &hello(instance));
    metrics.event(&Event::Preparing { worker: WorkerId(id) });
}

fn left(metrics: &mut Arc<Metrics>, id: u64, drained: bool) {
    let why = "the connection ended".to_owned();
    let lost = vec![ShardId(0), ShardId(3)];
    metrics.event(&Event::Left { worker: WorkerId(id), why, quiet: Duration::ZERO, lost, saved: 0, drained });
}

fn says(metrics: &mut Arc<Metrics>, id: u64, measures: Measures) {
    metrics.reported(WorkerId(id), &Status { measures, ..Status::default() });
}

/// The value of a sample by its name and labels, as they are written.
fn value(text: &str, sample: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value)
}

fn measures(seconds: u64, prompt_steps: u64) -> Measures {
    Measures {
        prompt_steps,
        gram: Duration::from_secs(seconds),
        reduced_bytes: 10 * prompt_steps,
        peak_memory: Some(1 << 20),
        planned_memory: Some(3 << 20),
        gpu_memory: Some(GpuMemory { used: 30 << 30, total: 80 << 30 }),
        ..Measures::default()
    }
}

/// Metrics of a job of which every number is known.
fn busy() -> Vec<prometheus::proto::MetricFamily> {
    let mut metrics = Arc::new(Metrics::new().unwrap());
    join(&mut metrics, 7, 70);
    let pruned =
        PrunedSoFar { linears: 1, weights: 8, zeros: 4, raised: 0, measured: 1, error_billionths: 7 };
    says(&mut metrics, 7, Measures { pruned, ..measures(1, 1) });
    lock(&metrics.state).families.show_probes(1, 2);
    metrics.families(Some(&report(vec![worker(7, 2)])))
}

/// A panel that asks for a metric that is not there would stay empty.
#[test]
fn the_dashboard_asks_for_every_metric_and_for_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana/obsdiff.json");
    let dashboard: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = queries.iter().flat_map(|query| query.split(|c| !part_of_name(c)));
    let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("obsdiff_")).collect();
    let families = busy();
    let known: BTreeSet<&str> = families.iter().map(|family| family.name()).collect();
    assert_eq!(asked, known);
    assert!(queries.iter().all(|query| query.contains("{instance=~\"$instance\"")), "{queries:?}");
}

/// What `promtool check metrics` asks for as well.
#[test]
fn every_metric_is_named_described_and_typed_by_the_conventions() {
    let families = busy();
    assert!(families.len() >= 29, "{}", families.len());
    for family in families {
        let (name, help, kind) = (family.name(), family.help(), family.get_field_type());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.starts_with("obsdiff_") && name.chars().all(plain), "{name}");
        assert!(help.ends_with('.') && help.starts_with(char::is_uppercase), "{name}: {help}");
        assert_eq!(kind == MetricType::COUNTER, name.ends_with("_total"), "{name}: {kind:?}");
        assert!(matches!(kind, MetricType::COUNTER | MetricType::GAUGE), "{name}: {kind:?}");
        for other in
            ["_milliseconds", "_minutes", "_kilobytes", "_count", "_sum", "_bucket", "gauge", "counter"]
        {
            assert!(!name.contains(other), "{name}");
        }
        let base = name.strip_suffix("_total").unwrap_or(name);
        for (word, unit) in
            [("time", "_seconds"), ("memory", "_bytes"), ("sparsity", "_ratio"), ("error", "_ratio")]
        {
            assert!(!name.contains(word) || base.ends_with(unit), "{name}");
        }
        // A worker's number is the only label whose values nothing bounds: workers that left have none.
        for label in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
            let bounded = ["phase", "outcome", "state", "version"].contains(&label.name());
            assert!(bounded || (label.name() == "worker" && name.starts_with("obsdiff_worker_")), "{name}");
        }
    }
}

/// The metrics of a job, read by one who looks at each part of the text whether the job can go on.
struct Reader<'a> {
    metrics: &'a Metrics,
    parts: usize,
}

impl io::Write for Reader<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        assert!(self.metrics.state.try_lock().is_ok(), "the job waits for a text");
        self.parts += 1;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_job_goes_on_while_its_metrics_become_text() {
    let metrics = Metrics::new().unwrap();
    let mut reader = Reader { metrics: &metrics, parts: 0 };
    metrics.write(Some(&report(vec![worker(7, 2)])), &mut reader).unwrap();
    assert!(reader.parts > 100, "{}", reader.parts);
}

#[test]
fn a_scrape_has_samples_of_each_worker_and_none_of_each_shard() {
    let samples = |workers: u64, shards: usize| {
        let mut report = report((0..workers).map(|id| worker(id, 1)).collect());
        report.view.shards = shards;
        let text = Metrics::new().unwrap().text(Some(&report)).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    assert_eq!(samples(256, 10), samples(256, 10_000));
    let of_one = samples(2, 10) - samples(1, 10);
    assert_eq!(samples(256, 10_000), samples(1, 10) + 255 * of_one);
    assert!((1..=5).contains(&of_one), "{of_one}");
}

#[test]
fn probes_are_those_that_are_done_and_those_to_come() {
    let metrics = Metrics::new().unwrap();
    lock(&metrics.state).families.show_probes(3, 10);
    let shown = metrics.text(None).unwrap();
    assert_eq!(value(&shown, "obsdiff_probes{state=\"done\"}"), Some(3.0));
    assert_eq!(value(&shown, "obsdiff_probes{state=\"pending\"}"), Some(7.0));
}

#[test]
fn a_report_is_shown() {
    let metrics = Metrics::new().unwrap();
    let shown = metrics.text(Some(&report(vec![worker(7, 2), worker(8, 1)]))).unwrap();
    for (sample, expected) in [
        ("obsdiff_job_phase{phase=\"calibrate\"}", 1.0),
        ("obsdiff_job_phase{phase=\"solve\"}", 0.0),
        ("obsdiff_job_ended{outcome=\"failed\"}", 0.0),
        ("obsdiff_job_elapsed_seconds", 2.5),
        ("obsdiff_job_time_left_seconds", 90.0),
        ("obsdiff_packages{state=\"committed\"}", 1.0),
        ("obsdiff_packages{state=\"open\"}", 1.0),
        ("obsdiff_packages{state=\"pending\"}", 2.0),
        ("obsdiff_shards{state=\"held\"}", 3.0),
        ("obsdiff_shards{state=\"leased\"}", 3.0),
        ("obsdiff_shards{state=\"pending\"}", 4.0),
        ("obsdiff_parts{state=\"pending\"}", 6.0),
        ("obsdiff_workers{state=\"working\"}", 2.0),
        ("obsdiff_worker_shard_seconds{worker=\"7\"}", 1.5),
    ] {
        assert_eq!(value(&shown, sample), Some(expected), "{sample} in {shown}");
    }
    let mut over = report(Vec::new());
    (over.left, over.view.phase, over.view.package) = (None, Phase::Over, None);
    over.view.ending = Some(Ending::Failed("no worker for 3600 s".to_owned()));
    let shown = metrics.text(Some(&over)).unwrap();
    assert_eq!(value(&shown, "obsdiff_job_ended{outcome=\"failed\"}"), Some(1.0));
    assert_eq!(value(&shown, "obsdiff_job_phase{phase=\"over\"}"), Some(1.0));
    for gone in ["obsdiff_job_time_left_seconds", "obsdiff_worker_shard_seconds{worker=\"7\"}"] {
        assert_eq!(value(&shown, gone), None, "{gone}");
    }
}

#[test]
fn what_happens_is_counted() {
    let mut metrics = Arc::new(Metrics::new().unwrap());
    join(&mut metrics, 1, 10);
    join(&mut metrics, 2, 20);
    left(&mut metrics, 1, false);
    left(&mut metrics, 2, true);
    metrics.event(&Event::Retried { what: "a shard".to_owned(), tries: 1, error: "no".to_owned() });
    let shown = metrics.text(None).unwrap();
    for (name, expected) in [
        ("workers_joined", 2.0),
        ("workers_lost", 1.0),
        ("shards_lost", 4.0),
        ("retries", 1.0),
        ("epochs", 0.0),
    ] {
        assert_eq!(value(&shown, &format!("obsdiff_{name}_total")), Some(expected), "{name}");
    }
}

#[test]
fn counters_of_workers_add_up_and_never_go_down() {
    let mut metrics = Arc::new(Metrics::new().unwrap());
    let gram = |metrics: &Arc<Metrics>| {
        let shown = metrics.text(None).unwrap();
        let of = |name| value(&shown, name).unwrap();
        (
            of("obsdiff_gram_seconds_total"),
            of("obsdiff_prompt_steps_total"),
            of("obsdiff_reduced_bytes_total"),
        )
    };
    join(&mut metrics, 1, 10);
    join(&mut metrics, 2, 20);
    says(&mut metrics, 1, measures(5, 100));
    says(&mut metrics, 2, measures(1, 7));
    assert_eq!(gram(&metrics), (6.0, 107.0, 1070.0));
    // A report that comes late takes nothing back.
    says(&mut metrics, 1, measures(4, 90));
    assert_eq!(gram(&metrics), (6.0, 107.0, 1070.0));
    // The same process comes back as another worker, and continues its numbers.
    left(&mut metrics, 1, false);
    join(&mut metrics, 3, 10);
    says(&mut metrics, 3, measures(6, 101));
    assert_eq!(gram(&metrics), (7.0, 108.0, 1080.0));
    // A new process begins at zero.
    left(&mut metrics, 2, false);
    join(&mut metrics, 4, 40);
    says(&mut metrics, 4, measures(1, 1));
    assert_eq!(gram(&metrics), (8.0, 109.0, 1090.0));
    // Nothing counts of a worker that has left, or that only stood by.
    metrics.joined(WorkerId(5), &hello(50));
    says(&mut metrics, 5, measures(1, 1));
    says(&mut metrics, 2, measures(9, 99));
    assert_eq!(gram(&metrics), (8.0, 109.0, 1090.0));
}

#[test]
fn workers_that_left_take_their_own_samples_with_them() {
    let mut metrics = Arc::new(Metrics::new().unwrap());
    for id in [1, 2] {
        join(&mut metrics, id, u128::from(id));
        says(&mut metrics, id, measures(1, 1));
    }
    let both = metrics.text(Some(&report(vec![worker(1, 0), worker(2, 0)]))).unwrap();
    assert_eq!(value(&both, "obsdiff_worker_peak_memory_bytes{worker=\"1\"}"), Some(f64::from(1 << 20)));
    assert_eq!(value(&both, "obsdiff_worker_planned_memory_bytes{worker=\"2\"}"), Some(f64::from(3 << 20)));
    // Both states together are the whole.
    for (state, bytes) in [("free", 50u64 << 30), ("used", 30 << 30)] {
        let sample = format!("obsdiff_worker_gpu_memory_bytes{{state=\"{state}\",worker=\"1\"}}");
        assert_eq!(value(&both, &sample), Some(bytes as f64), "{sample} in {both}");
    }
    left(&mut metrics, 1, true);
    let one = metrics.text(Some(&report(vec![worker(2, 0)]))).unwrap();
    assert_eq!(value(&one, "obsdiff_worker_peak_memory_bytes{worker=\"1\"}"), None);
    assert!(value(&one, "obsdiff_worker_peak_memory_bytes{worker=\"2\"}").is_some());
    let of_gpus = one.lines().filter(|line| line.starts_with("obsdiff_worker_gpu_memory_bytes{"));
    assert!(
        of_gpus.clone().count() == 2 && of_gpus.clone().all(|line| line.contains("worker=\"2\"")),
        "{one}"
    );
    // A worker without a GPU has no such samples.
    join(&mut metrics, 3, 3);
    says(&mut metrics, 3, Measures { peak_memory: Some(1), ..Measures::default() });
    let without = metrics.text(Some(&report(vec![worker(3, 0)]))).unwrap();
    assert!(!without.contains("obsdiff_worker_gpu_memory_bytes{"), "{without}");
}

#[test]
fn sparsity_and_error_are_those_of_the_worker_that_has_applied_the_most() {
    let mut metrics = Arc::new(Metrics::new().unwrap());
    assert_eq!(value(&metrics.text(Some(&report(Vec::new()))).unwrap(), "obsdiff_sparsity_ratio"), None);
    join(&mut metrics, 1, 10);
    join(&mut metrics, 2, 20);
    let pruned = |linears, zeros| PrunedSoFar {
        linears,
        weights: 1000 * linears,
        zeros,
        raised: linears / 2,
        measured: 2,
        error_billionths: 50_000_000,
    };
    says(&mut metrics, 1, Measures { pruned: pruned(4, 2000), ..Measures::default() });
    says(&mut metrics, 2, Measures { pruned: pruned(2, 100), ..Measures::default() });
    let shown = metrics.text(Some(&report(Vec::new()))).unwrap();
    assert_eq!(value(&shown, "obsdiff_sparsity_ratio"), Some(0.5));
    assert_eq!(value(&shown, "obsdiff_relative_error_ratio"), Some(0.025));
    assert_eq!(value(&shown, "obsdiff_damping_raised_total"), Some(2.0));
}

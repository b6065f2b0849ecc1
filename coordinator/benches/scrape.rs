//! Scrapes the metrics of a job with many workers and shards, as Prometheus does, but for the connection. The time of a scrape is held to 50 ms.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use obsdiff_coordinator::metrics::Metrics;
use obsdiff_coordinator::{CoreDriver, Downlink, Handle, Outlook, Records, ServedJob, clock};
use obsdiff_core::{Dismissal, Exponents, Job, Options};
use obsdiff_proto::message::{Command, Hello, Manifest, Status};
use obsdiff_proto::view::JobRequest;
use obsdiff_proto::{
    Inventory, Linear, LinearId, LinearTarget, Measures, Package, PackageId, Plan, PrunedSoFar, Shard,
    ShardId, Site, SiteId, StreamId, Target, WorkerId,
};
use tokio::sync::{broadcast, watch};

const WORKERS: u32 = 256;
const SHARDS: u32 = 10_000;
/// What a scrape may take.
const BUDGET: Duration = Duration::from_millis(50);

/// A package of one site, gathered over all shards.
fn job() -> Job {
    let linears = vec![LinearId(0)];
    let site = Site { name: "s".to_owned(), width: 4, stream: StreamId(0), joined: Vec::new(), linears };
    let target = LinearTarget { linear: LinearId(0), target: Target::NToM { n: 2, m: 4 } };
    let package = Package {
        id: PackageId(0),
        units: 0..0,
        sites: vec![SiteId(0)],
        linears: vec![target],
        survey: false,
    };
    let shard = |i| Shard { id: ShardId(i), prompts: 4 * i..4 * i + 4 };
    let long = Duration::from_secs(3600);
    Job {
        inventory: Arc::new(Inventory {
            sites: vec![site],
            linears: vec![Linear { name: "l".to_owned(), rows: 8, bias: true, site: SiteId(0) }],
            ..Inventory::default()
        }),
        plan: Arc::new(Plan {
            packages: vec![package],
            shards: (0..SHARDS).map(shard).collect(),
            budget: None,
        }),
        committed: 0,
        exponents: Some(BTreeMap::from([(SiteId(0), 0)])),
        hardware: None,
        saved: Vec::new(),
        life: 0,
        options: Options { silence: long, stall: long, ..Options::default() },
    }
}

/// Records that nobody reads.
struct NoRecords;

#[tonic::async_trait]
impl Records for NoRecords {
    async fn commit(&self, _: &Manifest) -> Result<(), String> {
        Ok(())
    }

    async fn save(&self, _: &Exponents) -> Result<(), String> {
        Ok(())
    }

    async fn save_hardware(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn successor(&self) -> Result<Option<u32>, String> {
        Ok(None)
    }
}

/// Says a worker's number.
struct Named(mpsc::Sender<WorkerId>);

impl Downlink for Named {
    fn welcome(&self, worker: WorkerId) {
        self.0.send(worker).unwrap();
    }

    fn command(&self, _: Command) {}

    fn dismiss(&self, _: Dismissal) {}
}

/// A worker that is well into the job joins and reports all that it measured.
fn join(handle: &Handle, instance: u32) {
    let (named, name) = mpsc::channel();
    let measures = Measures {
        prompt_steps: 12_345,
        forward: Duration::from_millis(123_456_789),
        gram: Duration::from_millis(23_456_789),
        solve: Duration::from_millis(3_456_789),
        reduced_bytes: 1 << 40,
        peak_memory: Some(70 << 30),
        planned_memory: Some(80 << 30),
        gpu_memory: None,
        opening_excess: None,
        solving_excess: None,
        pruned: PrunedSoFar {
            linears: 300,
            weights: 8 << 30,
            zeros: 4 << 30,
            raised: 2,
            measured: 300,
            error_billionths: 7 << 30,
        },
    };
    let status = Status { pace: Some(Duration::from_secs(17)), measures, ..Status::default() };
    let hello = Hello {
        instance: u128::from(instance),
        speed: 1000,
        hardware: "a processor".to_owned(),
        exponents: BTreeMap::new(),
        status: status.clone(),
    };
    handle.join(hello, Box::new(Named(named)));
    handle.report(name.recv().unwrap(), status);
}

fn scrapes(criterion: &mut Criterion) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let clock = clock::monotonic();
    let (mut driver, handle) =
        CoreDriver::new(job(), Box::new(NoRecords), clock.clone(), Box::new(metrics.clone())).unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let driving = thread::spawn(move || runtime().block_on(driver.run()));
    (0..WORKERS).for_each(|instance| join(&handle, instance));
    let served = ServedJob {
        handle: handle.clone(),
        request: JobRequest::default(),
        model: "pipeline".to_owned(),
        output: "out".to_owned(),
        clock,
        outlook: watch::channel(Outlook::default()).1,
        workers_announce: false,
        events: broadcast::channel(1).0,
        metrics,
    };
    let runtime = runtime();
    let text = runtime.block_on(served.metrics()).unwrap();
    assert!(text.contains(&format!("obsdiff_workers{{state=\"working\"}} {WORKERS}\n")), "{text}");
    assert!(text.contains("obsdiff_worker_peak_memory_bytes{worker=\"256\"}"), "{text}");
    let times: Vec<Duration> = (0..100)
        .map(|_| {
            let begun = Instant::now();
            black_box(runtime.block_on(served.metrics()).unwrap());
            begun.elapsed()
        })
        .collect();
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    println!(
        "{WORKERS} workers, {SHARDS} shards: a scrape of {} kB takes {:.3} ms of at most {} ms",
        text.len() / 1000,
        1e3 * mean.as_secs_f64(),
        BUDGET.as_millis()
    );
    criterion.bench_function("a scrape with 256 workers", |b| {
        b.iter(|| runtime.block_on(served.metrics()).unwrap())
    });
    handle.stop();
    driving.join().unwrap();
}

criterion_group!(benches, scrapes);
criterion_main!(benches);

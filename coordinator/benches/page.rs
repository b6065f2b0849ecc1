//! What the page of a large job costs its coordinator: 256 workers and 10,000 shards.
//!
//! Twenty browsers watch, over connections of this machine, a job that changes all the time; the processor time of the thread that makes
//! the snapshots and sends them is given as a share of one core. Then one snapshot is measured by itself.

#![allow(clippy::expect_used, missing_docs)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use obsdiff_coordinator::page::{ReportSource, Snapshot, routes};
use obsdiff_core::{Action, Command, Core, Hello, Input, Job, Options, Status};
use obsdiff_proto::view::{JobDetails, JobReport, JobRequest, PastEvent};
use obsdiff_proto::{
    Inventory, Linear, LinearId, LinearTarget, Package, PackageId, Plan, Shard, ShardId, Site, SiteId,
    StreamId, Target, WorkerId, lock,
};

const WORKERS: u64 = 256;
const SHARDS: u32 = 10_000;
const SITES: u32 = 456;
const BROWSERS: usize = 20;
const WATCHED: Duration = Duration::from_secs(10);

fn job() -> Job {
    let site = |i: u32| Site {
        name: format!("blocks.{i}"),
        width: 3072,
        stream: StreamId(0),
        joined: Vec::new(),
        linears: vec![LinearId(i)],
    };
    let linear = |i: u32| Linear { name: format!("blocks.{i}"), rows: 3072, bias: true, site: SiteId(i) };
    let target = |i: u32| LinearTarget { linear: LinearId(i), target: Target::NToM { n: 2, m: 4 } };
    let package = Package {
        id: PackageId(0),
        units: 0..0,
        sites: (0..SITES).map(SiteId).collect(),
        linears: (0..SITES).map(target).collect(),
        survey: false,
    };
    let shard = |i: u32| Shard { id: ShardId(i), prompts: 4 * i..4 * i + 4 };
    Job {
        inventory: Arc::new(Inventory {
            sites: (0..SITES).map(site).collect(),
            linears: (0..SITES).map(linear).collect(),
            ..Inventory::default()
        }),
        plan: Arc::new(Plan {
            packages: vec![package],
            shards: (0..SHARDS).map(shard).collect(),
            budget: None,
        }),
        committed: 0,
        exponents: Some((0..SITES).map(|site| (SiteId(site), 12)).collect()),
        hardware: None,
        saved: Vec::new(),
        life: 0,
        options: Options::default(),
    }
}

/// A core half of whose shards are held, by workers that run others.
fn half_done() -> Core {
    let mut core = Core::new(job(), Duration::ZERO).expect("the job makes sense");
    let mut statuses =
        vec![Status { pace: Some(Duration::from_secs(3)), ..Status::default() }; WORKERS as usize];
    let mut todo = Vec::new();
    let step = |core: &mut Core, input, todo: &mut Vec<_>| {
        for action in core.step(Duration::ZERO, input) {
            if let Action::Send { worker, command: Command::Calibrate { tally, shard, opening } } = action {
                todo.push((worker, tally, shard, opening.package));
            }
        }
    };
    for worker in 0..WORKERS {
        let hello = Hello {
            instance: worker.into(),
            speed: 1000,
            hardware: "a processor".to_owned(),
            exponents: Default::default(),
            status: statuses[worker as usize].clone(),
        };
        step(&mut core, Input::Joined { worker: WorkerId(worker), hello: Box::new(hello) }, &mut todo);
    }
    let mut held = 0;
    while held < SHARDS / 2 {
        let (worker, tally, shard, package) = todo.remove(0);
        let status = &mut statuses[worker.0 as usize];
        status.progress += 1;
        status.sums.tally = tally;
        status.sums.package = Some(package);
        status.sums.held.insert(shard);
        held += 1;
        let input = Input::Reported { worker, status: Box::new(status.clone()) };
        step(&mut core, input, &mut todo);
    }
    core
}

/// A job of which every report differs from the one before.
#[derive(Clone)]
struct BusyJob {
    core: Arc<Mutex<Core>>,
    reports: Arc<AtomicU64>,
}

impl BusyJob {
    fn report_now(&self) -> JobReport {
        let number = self.reports.fetch_add(1, Ordering::Relaxed);
        let core = lock(&self.core);
        let (shard_grid, part_grid) = core.grids();
        let event = |i| PastEvent {
            at: Duration::from_secs(number + i),
            fault: false,
            words: format!("group {i} is connected and sums its Grams"),
        };
        let details = JobDetails {
            shard_grid,
            part_grid,
            events: (0..100).map(event).collect(),
            ..JobDetails::default()
        };
        JobReport {
            release: "0".to_owned(),
            model: "model".to_owned(),
            output: "out".to_owned(),
            elapsed: Duration::from_secs(number),
            left: Some(Duration::from_secs(60)),
            request: JobRequest::default(),
            view: core.view(),
            details,
        }
    }
}

impl ReportSource for BusyJob {
    async fn report(&self) -> Option<JobReport> {
        Some(self.report_now())
    }
}

/// Processor time of this thread so far.
fn processor_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// A browser that reads until the connection ends, and gives the bytes that came.
fn browse(address: SocketAddr) -> u64 {
    let mut stream = TcpStream::connect(address).expect("the page is served");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the page is served");
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes += read as u64;
    }
    bytes
}

/// Lets browsers watch, and prints what that takes.
fn watch(job: &BusyJob) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let started = job.reports.load(Ordering::Relaxed);
    let browsers = runtime.block_on(async {
        let page = routes(job.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let browsers: Vec<_> = (0..BROWSERS).map(|_| thread::spawn(move || browse(address))).collect();
        for _ in 0..BROWSERS {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = TowerToHyperService::new(page.clone());
            tokio::spawn(async move {
                // A browser that leaves ends it.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
        let (busy, start) = (processor_time(), Instant::now());
        tokio::time::sleep(WATCHED).await;
        let (busy, took) = (processor_time() - busy, start.elapsed());
        println!(
            "{WORKERS} workers, {SHARDS} shards: {BROWSERS} browsers take {:.2}% of a core, of at most 1%",
            100.0 * busy.as_secs_f64() / took.as_secs_f64()
        );
        browsers
    });
    // Closes the connections.
    drop(runtime);
    let bytes: u64 = browsers.into_iter().map(|browser| browser.join().expect("it reads")).sum();
    let snapshots = job.reports.load(Ordering::Relaxed) - started;
    println!("{snapshots} snapshots, {} KB each", bytes / snapshots.max(1) / BROWSERS as u64 / 1000);
}

fn snapshots(criterion: &mut Criterion) {
    let job = BusyJob { core: Arc::new(Mutex::new(half_done())), reports: Arc::default() };
    watch(&job);
    criterion.bench_function("make a snapshot", |bencher| {
        bencher.iter(|| Snapshot::new(&job.report_now()).expect("it is written"));
    });
}

criterion_group!(benches, snapshots);
criterion_main!(benches);

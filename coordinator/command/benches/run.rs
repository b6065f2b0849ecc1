//! A whole run on the shipped pipeline, against its own forward calls, Gram work and solving.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use obsdiff::clock::monotonic;
use obsdiff::job::JobFile;
use obsdiff::progress::Progress;
use obsdiff::run::{DenseSamples, RUN_SPAN, RunContext, Summary, run};
use obsdiff::spans::Spans;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::Disk;
use tracing_subscriber::prelude::*;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");

/// Runs the shipped pipeline's job with other numbers of prompts and steps, in four packages.
fn prune(prompts: u32, steps: u32, spans: &Spans) -> Summary {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        format!("model.path={ASSETS}/shapes-sd3"),
        format!("calibration.prompts={ASSETS}/shapes-prompts.txt"),
        format!("calibration.count={prompts}"),
        format!("calibration.steps={steps}"),
        "sparsity.allocation=uniform".to_owned(),
        "packages.count=4".to_owned(),
        format!("output.path={}", folder.path().join("out").display()),
    ];
    let file = Path::new(ASSETS).join("../../deploy/jobs/shapes-sd3.toml");
    let job = JobFile::load(&file, [], &sets).unwrap();
    let progress = Progress::lines(io::sink(), monotonic());
    let disk = Disk::default();
    run(
        &job,
        &RunContext {
            device: &ComputeDevice::Cpu,
            outlook: None,
            traces: None,
            workers: Some(1),
            memory: None,
            save_every: None,
            baseline: false,
            progress: &progress,
            spans,
            disk: &disk,
            dense: &DenseSamples::default(),
        },
    )
    .unwrap()
}

fn whole_run(c: &mut Criterion) {
    let spans = Spans::new(RUN_SPAN, monotonic());
    tracing_subscriber::registry().with(spans.clone()).init();
    let report = prune(100, 25, &spans).spans;
    let needed: Duration = ["forward", "gram", "solve", "refine"].iter().map(|name| report.time(name)).sum();
    let share = |time: Duration| time.as_secs_f64() / report.whole.as_secs_f64();
    println!("{report}");
    println!(
        "run of 100 prompts x 25 steps in 4 packages: {:.1?} = {:.3} of its forward calls, Gram work, solving and refining (at most 1.25); {:.2}% without a span",
        report.whole,
        1.0 / share(needed),
        100.0 * share(report.other)
    );
    c.bench_function("run of 4 prompts x 4 steps", |b| b.iter(|| prune(4, 4, &spans)));
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = whole_run }
criterion_main!(benches);

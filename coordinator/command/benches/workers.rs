//! The shipped pipeline's job by two worker processes of one thread each, against one of one thread.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");
const JOB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/jobs/shapes-sd3.toml");
/// Runs of each kind, one after the other in turn: the fastest counts.
const RUNS: usize = 2;

/// How long a job took, and the largest share of a worker's time that went into collectives.
struct Taken {
    time: Duration,
    collectives: f64,
}

fn start(folder: &Path, args: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The shipped job by so many workers, from their start to the end of the last; the coordinator is there before.
fn prune(workers: usize) -> Taken {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        format!("model.path={ASSETS}/shapes-sd3"),
        format!("calibration.prompts={ASSETS}/shapes-prompts.txt"),
        "evaluation.count=0".to_owned(),
        "output.path=out".to_owned(),
    ];
    let args = ["coordinator", JOB, "--quiet", "--listen", "127.0.0.1:0"].map(str::to_owned).into_iter();
    let args: Vec<_> = args.chain(sets.into_iter().flat_map(|set| ["--set".to_owned(), set])).collect();
    let mut coordinator = start(folder.path(), &args);
    let mut out = BufReader::new(coordinator.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let url = format!("http://{}", line.trim().strip_prefix("listening on ").unwrap());
    let begun = Instant::now();
    let worker = ["worker", "--coordinator", &url, "--quiet", "--threads", "1"].map(str::to_owned);
    let workers: Vec<_> = (0..workers).map(|_| start(folder.path(), &worker)).collect();
    let ended: Vec<_> = workers.into_iter().map(|worker| worker.wait_with_output().unwrap()).collect();
    let time = begun.elapsed();
    assert!(ended.iter().all(|output| output.status.success()));
    assert!(coordinator.wait().unwrap().success());
    Taken { time, collectives: ended.iter().map(share_of_collectives).fold(0.0, f64::max) }
}

/// How long Grams were being summed, beside other work or not, by the table at a worker's end.
fn share_of_collectives(output: &Output) -> f64 {
    let table = String::from_utf8_lossy(&output.stdout);
    // Where there is none, nothing was summed over workers.
    let Some(row) = table.lines().find(|line| line.starts_with("reduce ")) else { return 0.0 };
    let share = row.split_whitespace().find_map(|word| word.strip_suffix('%')?.parse().ok());
    share.expect("no share of the time")
}

fn main() {
    let mut fastest: [Option<Taken>; 2] = [None, None];
    for _ in 0..RUNS {
        for (workers, best) in (1..).zip(&mut fastest) {
            let taken = prune(workers);
            println!(
                "{workers} of one thread: {:.2?}, at most {:.1}% of it in collectives",
                taken.time, taken.collectives
            );
            if best.as_ref().is_none_or(|best| taken.time < best.time) {
                *best = Some(taken);
            }
        }
    }
    let [Some(one), Some(two)] = fastest else { return };
    println!(
        "two workers are {:.2} times as fast as one (at least 1.8), with {:.1}% of their time in collectives",
        one.time.as_secs_f64() / two.time.as_secs_f64(),
        two.collectives
    );
}

//! What `plan --workers` says of a job's times, against what one and two workers take.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[path = "../tests/wide/mod.rs"]
mod wide;

use wide::{ASSETS, wide_pipeline};

/// Whatever else the machine does adds to a time, never takes from it: both are measured so often, and the shortest ones count.
const RUNS: usize = 3;

/// Seconds of a package until all shards are held, and from then on until all parts are solved.
type Times = [f64; 2];

fn start(folder: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    command.args(args).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn job(folder: &Path) {
    wide_pipeline(&folder.join("wide"));
    let job = format!(
        "[model]\npath = \"wide\"\n[sparsity]\nmethod = \"obs\"\nallocation = \"uniform\"\npattern = \"unstructured\"\nratio = 0.5\n\
         [calibration]\nprompts = {:?}\ncount = 16\nsteps = 4\nguidance = 4.0\nmax_sequence_length = 24\n\
         [packages]\ncount = 2\n[evaluation]\ncount = 0\n[output]\npath = \"out\"\n",
        Path::new(ASSETS).join("shapes-prompts.txt"),
    );
    fs::write(folder.join("job.toml"), job).unwrap();
}

/// Durations as the command writes them, such as `1 min 5 s`.
fn durations(text: &str) -> Vec<f64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (mut found, mut minutes) = (Vec::new(), 0.0);
    for pair in words.windows(2) {
        let Ok(number) = pair[0].parse::<f64>() else { continue };
        match pair[1] {
            "min" => minutes = number * 60.0,
            "s" => found.push(std::mem::take(&mut minutes) + number),
            "ms" => found.push(number / 1e3),
            _ => {}
        }
    }
    found
}

fn predicted(folder: &Path, workers: usize) -> Vec<Times> {
    let workers = workers.to_string();
    let plan = ["plan", "job.toml", "--workers", &workers, "--bandwidth", "1GB", "--threads", "1"];
    let output = start(folder, &plan).wait_with_output().unwrap();
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = plan.lines().skip_while(|line| !line.starts_with("Time of ")).skip(3);
    let times = |row: &str| match durations(row)[..] {
        [calibrate, reduce, solve, _] => [calibrate, reduce + solve],
        _ => panic!("not a row of times: {row}\n{plan}"),
    };
    rows.take_while(|row| !row.starts_with('-')).map(times).collect()
}

fn taken(folder: &Path, workers: usize) -> Vec<Times> {
    let args = ["coordinator", "job.toml", "--listen", "127.0.0.1:0"];
    let mut coordinator = start(folder, &args);
    let mut line = String::new();
    BufReader::new(coordinator.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = format!("http://{}", line.trim().strip_prefix("listening on ").unwrap());
    let worker = ["worker", "--coordinator", &url, "--quiet", "--threads", "1"];
    let workers: Vec<_> = (0..workers).map(|_| start(folder, &worker)).collect();
    for worker in workers {
        assert!(worker.wait_with_output().unwrap().status.success());
    }
    let output = coordinator.wait_with_output().unwrap();
    assert!(output.status.success());
    fs::remove_dir_all(folder.join("out")).unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    let of = |phase: &str| -> Vec<f64> {
        let lines = printed.lines().filter(|line| line.starts_with("package ") && line.contains(phase));
        lines.map(|line| durations(line)[0]).collect()
    };
    of(": calibrate: ")
        .into_iter()
        .zip(of(": solve: "))
        .map(|(calibrate, solve)| [calibrate, solve])
        .collect()
}

/// Keeps the shorter ones.
fn shorten(times: &mut Vec<Times>, again: Vec<Times>) {
    assert_eq!(again.len(), 2, "packages");
    times.resize(again.len(), [f64::INFINITY; 2]);
    let pairs = times.iter_mut().flatten().zip(again.into_iter().flatten());
    pairs.for_each(|(time, again)| *time = time.min(again));
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    job(folder.path());
    for workers in [1, 2] {
        let (mut plan, mut job) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            shorten(&mut plan, predicted(folder.path(), workers));
            shorten(&mut job, taken(folder.path(), workers));
        }
        for (package, (plan, job)) in plan.iter().zip(&job).enumerate() {
            let ratio = |at: usize| format!("{:.2} of {:.2} s", plan[at] / job[at], job[at]);
            println!(
                "{workers} workers, package {package}: predicted times are {} calibrating and {} solving (0.75 to 1.25)",
                ratio(0),
                ratio(1),
            );
        }
    }
}

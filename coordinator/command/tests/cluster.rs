//! A job done by several processes that sum their Grams over a network: whatever happens to them, the result is that of one
//! undisturbed process.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use obsdiff_tests::copy_folder;

mod process;

use process::*;

/// A worker of one thread.
fn single(folder: &Path, url: &str) -> Process {
    Process::start(folder, &["worker", "--coordinator", url, "--quiet", "--threads", "1"])
}

/// A job's coordinator and two workers.
fn cluster(folder: &Path) -> (Coordinator, [Process; 2]) {
    let coordinator = Coordinator::start(folder);
    let workers = [single(folder, &coordinator.url), single(folder, &coordinator.url)];
    (coordinator, workers)
}

/// All that are left end well, with the undisturbed result.
fn assert_done<const N: usize>(folder: &Path, mut coordinator: Process, mut workers: [Process; N]) {
    for worker in &mut workers {
        let ended = worker.end();
        assert!(ended.success(), "a worker: {ended}");
    }
    let ended = coordinator.end();
    assert!(ended.success(), "the coordinator: {ended}");
    assert_undisturbed(folder);
}

/// The group of the first package is ordered to form: its members connect, reduce and solve within the next tenths of a second.
const FORMING: LineFilter = |line| line.contains("2 workers form group");
/// The first package's group is connected, and reduces.
const REDUCING: LineFilter = |line| line.contains("is connected and sums");
/// The first package's Grams are where they are solved.
const SOLVING: LineFilter = |line| line.contains("has summed its Grams");
/// The last package is finished.
const EXPORTING: LineFilter = |line| line.contains("package 2 is committed");

#[test]
fn a_coordinators_report_is_one_json_object() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let output = Command::new(env!("CARGO_BIN_EXE_obsdiff"))
        .args(["status", &coordinator.url, "--json"])
        .output()
        .unwrap();
    // The same port speaks HTTP.
    for (path, words) in [("/healthz", "the coordinator answers\n"), ("/readyz", "workers can join\n")] {
        let (status, _, body) = get(&coordinator.url, path);
        assert_eq!((status, &*body), (200, words));
    }
    assert_eq!(get(&coordinator.url, "/obsdiff.v1.Jobs/Get").0, 404);
    coordinator.process.kill();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["packages"], &report["packages_committed"]), (&2.into(), &0.into()), "{report}");
    assert_eq!((&report["shards"], &report["phase"]), (&6.into(), &"pilot".into()), "{report}");
    assert_eq!(report["workers"], serde_json::json!([]));
    assert!(report["elapsed_seconds"].as_f64().unwrap() >= 0.0);
}

/// The error of the pruned model, its memory, the time and what was expected, wherever the workers are.
#[test]
fn a_coordinator_ends_with_what_a_run_ends_with() {
    let jobs = [(); 2].map(|()| {
        let folder = setting_of("pattern = \"unstructured\"\nratio = 0.5", 2);
        let job = fs::read_to_string(folder.path().join("job.toml")).unwrap();
        let job = job.replace("[evaluation]\ncount = 0", "[evaluation]\ncount = 2");
        fs::write(folder.path().join("job.toml"), job).unwrap();
        folder
    });
    let [alone, shared] = &jobs;
    let mut run = Process::start(alone.path(), &["run", "job.toml", "--quiet"]);
    let lines = ["error     final latents differ by ", "expected  velocity differs"];
    let printed = lines.map(|start| run.line(|line| line.starts_with(start)).unwrap());
    assert!(run.end().success());
    let (mut coordinator, mut workers) = cluster(shared.path());
    let shared_printed = lines.map(|start| coordinator.process.line(|line| line.starts_with(start)).unwrap());
    assert_eq!(printed, shared_printed);
    let peak = coordinator.process.line(|line| line.starts_with("memory    peak ")).unwrap();
    assert!(peak.ends_with(" predicted)"), "{peak}");
    // The same screen goes on to the end.
    for start in ["written   out", "moving the velocity most", "load it in Python:"] {
        assert!(coordinator.process.line(|line| line.starts_with(start)).is_some(), "{start}");
    }
    assert!(coordinator.process.end().success());
    workers.iter_mut().for_each(|worker| assert!(worker.end().success()));
    assert_eq!(result(alone.path()), result(shared.path()));
    let record = fs::read(shared.path().join("out/pruning.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let measured = &record["measured"];
    assert!(
        measured["seconds"].as_f64().unwrap() > 0.0
            && measured["peak_memory_bytes"].as_u64().unwrap() > 10 << 20
    );
    // But for times, which the coordinator knows, the pages say the same.
    let pages = [alone, shared].map(|folder| {
        let page = fs::read_to_string(folder.path().join("out/report.html")).unwrap();
        let (before, rest) = page.split_once("<section aria-labelledby=\"time\">").unwrap();
        let (time, after) = rest.split_once("</section>").unwrap();
        (format!("{before}{after}"), time.to_owned())
    });
    assert!(pages[0].0 == pages[1].0 && pages[0].0.matches("<img ").count() == 6, "{}", pages[1].0);
    let seconds = Duration::from_secs_f64(measured["seconds"].as_f64().unwrap());
    let took = format!("The job took {}.", obsdiff::text::duration(seconds));
    assert!(pages[1].1.contains(&took), "{took} is not in {}", pages[1].1);
    let packages = measured["course"]["packages"].as_array().unwrap();
    assert!(!packages.is_empty() && pages[1].1.contains("Time and bytes of each package"), "{measured}");
    assert!(packages.iter().all(|package| package["gram_bytes"].as_u64().unwrap() > 0), "{packages:?}");
    let cards =
        [alone, shared].map(|folder| fs::read_to_string(folder.path().join("out/README.md")).unwrap());
    assert_eq!(cards[0], cards[1]);
    let shown = format!("{:.4}", measured["held_out"]["relative_error"].as_f64().unwrap());
    assert!(printed[0].contains(&shown), "{} and {shown}", printed[0]);
    // The last metrics, which no scrape may have seen.
    let last = fs::read_to_string(shared.path().join("out/metrics.prom")).unwrap();
    let ended = "obsdiff_job_ended{outcome=\"done\"} 1\n";
    for line in [ended, "obsdiff_packages{state=\"committed\"} 4\n"] {
        assert!(last.contains(line), "{line} is not in {last}");
    }
    let sparsity = last.lines().find_map(|line| line.strip_prefix("obsdiff_sparsity_ratio "));
    assert!((sparsity.unwrap().parse::<f64>().unwrap() - 0.5).abs() < 1e-3, "{sparsity:?}");
}

#[test]
fn two_workers_do_what_one_process_does() {
    let folder = setting(16);
    let (mut coordinator, workers) = cluster(folder.path());
    coordinator.until(FORMING);
    assert_done(folder.path(), coordinator.process, workers);
}

#[test]
fn a_worker_that_is_killed_at_any_moment_leaves_the_rest_to_the_other() {
    let mut missed = 0;
    let moments = [FIRST, FORMING, REDUCING, SOLVING, BETWEEN, SECOND, EXPORTING];
    for (number, moment) in moments.into_iter().enumerate() {
        let folder = setting(16);
        let (mut coordinator, [mut killed, other]) = cluster(folder.path());
        coordinator.until(moment);
        killed.kill();
        let line = coordinator.watch.line(|line| line.contains(" left (") || line.starts_with("over: "));
        if let Some(line) = line.filter(|line| line.contains(" left (")) {
            let (quiet, lost) = told_of_leaving(&line);
            // Not for its silence, which would take longer.
            assert!(line.contains(" (the connection "), "missed too late: {line}");
            assert!(quiet < MISSED, "missed too late: {line}");
            assert!(lost <= 6, "more is lost than a package's shards: {line}");
            missed += 1;
        }
        assert_done(folder.path(), coordinator.process, [other]);
        // The second of these is far from the job's end.
        if number == 1 {
            let page = fs::read_to_string(folder.path().join("out/report.html")).unwrap();
            let (_, faults) = page.split_once("<section aria-labelledby=\"faults\">").unwrap();
            assert!(
                faults.contains("1 worker left before the end.") && faults.contains(" left (the connection ")
            );
        }
    }
    // The job may be over before the last one is.
    assert!(missed >= 6, "{missed} are missed");
}

#[test]
fn two_workers_that_are_killed_at_once_are_replaced() {
    for moment in [FIRST, FORMING, SOLVING] {
        let folder = setting(16);
        let (mut coordinator, mut killed) = cluster(folder.path());
        coordinator.until(moment);
        killed.iter_mut().for_each(Process::kill);
        let replacements = [(); 2].map(|()| single(folder.path(), &coordinator.url));
        assert_done(folder.path(), coordinator.process, replacements);
    }
}

#[test]
fn a_worker_that_is_stopped_past_its_lease_and_woken_takes_part_again() {
    for moment in [FIRST, FORMING] {
        let folder = setting(16);
        let (mut coordinator, [stopped, other]) = cluster(folder.path());
        coordinator.until(moment);
        stopped.signal("STOP");
        coordinator.until(|line| line.contains(" left ("));
        stopped.signal("CONT");
        assert_done(folder.path(), coordinator.process, [stopped, other]);
    }
}

#[test]
fn a_late_worker_shares_what_is_left() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let first = single(folder.path(), &coordinator.url);
    coordinator.until(FIRST);
    let second = single(folder.path(), &coordinator.url);
    coordinator.until(FORMING);
    assert_done(folder.path(), coordinator.process, [first, second]);
}

#[test]
fn all_that_were_killed_at_once_go_on_where_they_were() {
    for moment in [FORMING, SECOND] {
        let folder = setting(16);
        let (mut coordinator, mut workers) = cluster(folder.path());
        coordinator.until(moment);
        coordinator.process.kill();
        workers.iter_mut().for_each(Process::kill);
        let (coordinator, workers) = cluster(folder.path());
        assert_done(folder.path(), coordinator.process, workers);
    }
}

#[test]
fn a_coordinator_that_is_killed_finds_its_workers_again() {
    for moment in [FIRST, FORMING, REDUCING, SOLVING, BETWEEN, SECOND, EXPORTING] {
        let folder = setting(16);
        let (mut first, workers) = cluster(folder.path());
        first.until(moment);
        assert_done(folder.path(), first.replace(folder.path()), workers);
    }
}

/// A worker begins to encode the prompts.
const ENCODING: LineFilter = |line| line.contains(" encodes the prompts");

/// The objects that hold the conditioning of prompts.
fn conditionings(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join("out.state/conditioning")) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    files
}

/// Held-out prompts are encoded, too: enough of them that encoding takes a while. What is denoised by them has few steps.
#[test]
fn another_worker_encodes_where_the_first_is_killed_at_it() {
    let folder = setting(2);
    let job = folder.path().join("job.toml");
    let words =
        fs::read_to_string(&job).unwrap().replace("[evaluation]\ncount = 0", "[evaluation]\ncount = 300");
    fs::write(&job, words).unwrap();
    let mut coordinator = Coordinator::start(folder.path());
    let mut killed = single(folder.path(), &coordinator.url);
    coordinator.until(ENCODING);
    killed.kill();
    let found = conditionings(folder.path()).len();
    assert!(found < 6 + 300 + 1, "it has encoded all of them already");
    let workers = [single(folder.path(), &coordinator.url), single(folder.path(), &coordinator.url)];
    coordinator.until(ENCODING);
    coordinator.until(FORMING);
    assert_eq!(conditionings(folder.path()).len(), 6 + 300 + 1);
    for mut worker in workers {
        assert!(worker.end().success());
    }
    assert!(coordinator.process.end().success());
    assert!(result(folder.path())[0] == undisturbed(2)[0], "the weights differ");
}

#[test]
fn conditioning_that_is_damaged_or_lost_is_made_again_by_the_same_command() {
    let folder = setting(16);
    let (mut coordinator, mut workers) = cluster(folder.path());
    coordinator.until(FIRST);
    coordinator.process.kill();
    workers.iter_mut().for_each(Process::kill);
    let objects = conditionings(folder.path());
    let whole: Vec<_> = objects.iter().map(|object| fs::read(object).unwrap()).collect();
    assert_eq!(objects.len(), 6 + 1);
    let mut flipped = whole[0].clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&objects[0], flipped).unwrap();
    fs::remove_file(&objects[1]).unwrap();
    fs::write(&objects[2], &whole[3]).unwrap();
    fs::write(&objects[4], &whole[4][..100]).unwrap();
    let (mut coordinator, workers) = cluster(folder.path());
    coordinator.until(FORMING);
    assert!(objects.iter().map(|object| fs::read(object).unwrap()).eq(whole), "they are not made again");
    assert_done(folder.path(), coordinator.process, workers);
}

#[test]
fn workers_keep_grams_and_go_by_them_as_one_process_does() {
    let kept = setting(4);
    let job = kept.path().join("job.toml");
    let text = fs::read_to_string(&job).unwrap();
    fs::write(&job, text.replace("[output]\n", "[output]\ngrams = \"grams\"\n")).unwrap();
    let by_grams = tempfile::tempdir().unwrap();
    let place = format!("[calibration]\ngrams = {:?}\n", kept.path().join("grams"));
    fs::write(by_grams.path().join("job.toml"), text.replace("[calibration]\n", &place)).unwrap();
    for folder in [kept.path(), by_grams.path()] {
        let coordinator = Coordinator::start(folder);
        let mut workers = [single(folder, &coordinator.url), single(folder, &coordinator.url)];
        for worker in &mut workers {
            assert!(worker.end().success());
        }
        let mut coordinator = coordinator.process;
        assert!(coordinator.end().success());
        assert!(result(folder)[0] == undisturbed(4)[0], "the weights differ");
    }
    assert!(kept.path().join("grams/grams.json").is_file());
}

/// A folder with the usual job, a pipeline of its own, and the job's prompts encoded in `prompts.safetensors`, which the job takes.
fn encoded_setting(steps: u32) -> tempfile::TempDir {
    let folder = setting(steps);
    let here = folder.path();
    let pipeline = Path::new(ASSETS).join("shapes-sd3");
    copy_folder(&pipeline, &here.join("pipeline"));
    let job = fs::read_to_string(here.join("job.toml")).unwrap();
    let job = job.replace(&format!("{pipeline:?}"), "\"pipeline\"");
    fs::write(here.join("job.toml"), &job).unwrap();
    let encode = ["encode", "job.toml", "--quiet", "--out", "prompts.safetensors"];
    assert!(Process::start(here, &encode).end().success());
    let prompts = format!("prompts = {:?}", Path::new(ASSETS).join("shapes-prompts.txt"));
    let encoded = job.replace(&prompts, "conditioning = \"prompts.safetensors\"");
    assert!(encoded != job);
    fs::write(here.join("job.toml"), encoded).unwrap();
    folder
}

/// The workers run in a folder that has neither the encoded prompts nor any part of a text encoder.
#[test]
fn workers_without_text_encoders_take_the_encoded_prompts_of_the_coordinator() {
    let folder = encoded_setting(4);
    let here = folder.path();
    assert!(Process::start(here, &["run", "job.toml", "--quiet"]).end().success());
    let expected = result(here);
    assert!(expected[0] == undisturbed(4)[0], "the weights differ");
    fs::remove_dir_all(here.join("out")).unwrap();

    let host = tempfile::tempdir().unwrap();
    copy_folder(&here.join("pipeline"), &host.path().join("pipeline"));
    for part in ["text_encoder", "tokenizer"] {
        for number in ["", "_2", "_3"] {
            fs::remove_dir_all(host.path().join("pipeline").join(format!("{part}{number}"))).unwrap();
        }
    }
    let mut coordinator = Coordinator::start(here);
    let mut workers = [single(host.path(), &coordinator.url), single(host.path(), &coordinator.url)];
    coordinator.until(FORMING);
    for worker in &mut workers {
        assert!(worker.end().success());
    }
    assert!(coordinator.process.end().success());
    // The output has what its worker's host has of the pipeline.
    let [weights, record] = result(host.path());
    assert!(weights == expected[0], "the weights differ");
    let [mut record, mut expected] =
        [&record, &expected[1]].map(|record| serde_json::from_slice::<serde_json::Value>(record).unwrap());
    let [found, files] = [&mut record, &mut expected].map(|record| record["files"].take());
    let of_encoders = |file: &&serde_json::Value| {
        let path = file["path"].as_str().unwrap();
        path.starts_with("text_encoder") || path.starts_with("tokenizer")
    };
    let (of_encoders, others): (Vec<_>, Vec<_>) = files.as_array().unwrap().iter().partition(of_encoders);
    assert!(!of_encoders.is_empty());
    assert_eq!(found.as_array().unwrap().iter().collect::<Vec<_>>(), others);
    assert_eq!(record, expected);
    assert!(!here.join("out.state").exists());
}

#[test]
fn a_job_is_not_resumed_with_other_encoded_prompts() {
    let folder = encoded_setting(16);
    let here = folder.path();
    let (mut coordinator, mut workers) = cluster(here);
    coordinator.until(FIRST);
    coordinator.process.kill();
    workers.iter_mut().for_each(Process::kill);

    let file = here.join("prompts.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut negated = whole.clone();
    // The sign of the last number.
    *negated.last_mut().unwrap() ^= 0x80;
    fs::write(&file, negated).unwrap();
    for command in [&["run", "job.toml"][..], &["coordinator", "job.toml", "--listen", "127.0.0.1:0"]] {
        let (code, said) = Process::start(here, &[command, &["--quiet"]].concat()).verdict();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("the content of prompts.safetensors changed"), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
    fs::write(&file, whole).unwrap();
    assert!(Process::start(here, &["run", "job.toml", "--quiet"]).end().success());
    assert!(result(here)[0] == undisturbed(16)[0], "the weights differ");
}

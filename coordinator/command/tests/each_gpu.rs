//! `worker --devices`: a process for each GPU of a host, here of a fake driver in host memory. Nothing here has a GPU.
#![cfg(all(feature = "cuda", feature = "gloo"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use obsdiff_tests::fake_cuda;
use serde_json::Value;

mod process;

use process::*;

/// The command on a machine with so many GPUs.
fn on_gpus(folder: &Path, gpus: usize, args: &[&str]) -> Process {
    Process::spawn(&mut command(folder, gpus, args))
}

fn command(folder: &Path, gpus: usize, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    command.args(args).current_dir(folder).env("LD_LIBRARY_PATH", fake_cuda());
    command.env("FAKE_CUDA_GPUS", gpus.to_string());
    command
}

fn workers(folder: &Path, url: &str, devices: &str) -> Process {
    let args = ["worker", "--coordinator", url, "--devices", devices, "--collective", "gloo", "--quiet"];
    on_gpus(folder, 2, &args)
}

#[test]
fn a_worker_for_each_gpu_does_what_one_process_does() {
    let [alone, shared] = [gpu_setting(2), gpu_setting(2)];
    let (code, said) =
        on_gpus(alone.path(), 1, &["run", "job.toml", "--quiet", "--device", "cuda"]).verdict();
    assert_eq!(code, Some(0), "{said}");
    let mut coordinator = Coordinator::start(shared.path());
    let mut workers = workers(shared.path(), &coordinator.url, "all");
    coordinator.until(|line| line.contains("is connected and sums"));
    let done: Vec<String> =
        (0..2).map(|_| workers.line(|line| line.contains("the job is over: done")).unwrap()).collect();
    let (code, said) = workers.verdict();
    assert_eq!(code, Some(0), "{said}");
    for gpu in ["GPU 0: ", "GPU 1: "] {
        assert_eq!(done.iter().filter(|line| line.starts_with(gpu)).count(), 1, "{done:?}");
    }
    assert!(coordinator.process.end().success());
    assert_same(&result(shared.path()), &result(alone.path()));
}

/// What a process takes of a GPU before it asks for memory, which the fake driver does not count.
const CONTEXT: u64 = 640 << 20;

/// The errors of latents that a job measured on held-out prompts.
fn held_out(folder: &Path) -> Value {
    let record: Value = serde_json::from_slice(&fs::read(folder.join("out/pruning.json")).unwrap()).unwrap();
    let errors = ["relative_error", "prompt_relative_errors", "step_relative_errors"];
    errors.iter().map(|key| record["measured"]["held_out"][key].clone()).collect()
}

/// In f32 the processor's sums differ from those of a GPU's libraries in their last bits, so it is seen where errors were measured.
#[test]
fn a_worker_measures_on_its_gpu_in_the_memory_that_pruning_was_planned_to_take() {
    let [alone, shared] = [gpu_setting(2), gpu_setting(2)];
    for folder in [&alone, &shared] {
        let path = folder.path().join("job.toml");
        let job = fs::read_to_string(&path).unwrap();
        fs::write(&path, job.replace("[evaluation]\ncount = 0", "[evaluation]\ncount = 2")).unwrap();
    }
    let (code, said) =
        on_gpus(alone.path(), 1, &["run", "job.toml", "--quiet", "--device", "cuda"]).verdict();
    assert_eq!(code, Some(0), "{said}");
    let planned =
        command(shared.path(), 1, &["plan", "job.toml", "--json", "--device-memory", "80GB"]).output();
    let planned: Value = serde_json::from_slice(&planned.unwrap().stdout).unwrap();
    let bytes = |key: &str| planned["device_memory"][key].as_u64().unwrap();
    let memory = bytes("peak_bytes") - CONTEXT;
    // Beside the weights that calibrate there is no room for others.
    assert!(2 * bytes("transformer_bytes") + bytes("context_bytes") - CONTEXT > memory, "{planned}");
    let mut coordinator = Coordinator::start(shared.path());
    let args = ["worker", "--coordinator", &coordinator.url, "--device", "cuda", "--collective", "gloo"];
    let mut worker = command(shared.path(), 1, &[&args[..], &["--quiet"]].concat());
    let mut worker = Process::spawn(worker.env("FAKE_CUDA_MEMORY", memory.to_string()));
    let (code, said) = worker.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(coordinator.process.end().success());
    assert_same(&result(shared.path()), &result(alone.path()));
    let found = held_out(shared.path());
    assert!(found[0].as_f64().is_some_and(|error| error > 0.0), "{found}");
    assert_eq!(found, held_out(alone.path()));
}

#[test]
fn what_each_worker_takes_of_its_gpu_beyond_the_plan_is_in_the_record() {
    let folder = gpu_setting(2);
    let mut coordinator = Coordinator::start(folder.path());
    let args = ["worker", "--coordinator", &coordinator.url, "--device", "cuda", "--collective", "gloo"];
    let start = || {
        let mut worker = command(folder.path(), 1, &[&args[..], &["--quiet"]].concat());
        // A context of 700 MiB, and cuSOLVER in 16 MiB.
        worker.env("FAKE_CUDA_CONTEXT", "734003200").env("FAKE_CUSOLVER_WORKSPACE", "4194304");
        Process::spawn(&mut worker)
    };
    let workers = [start(), start()];
    coordinator.until(|line| line.contains("worker 1 joined"));
    coordinator.until(|line| line.contains("worker 2 joined"));
    for mut worker in workers {
        let (code, said) = worker.verdict();
        assert_eq!(code, Some(0), "{said}");
    }
    assert!(coordinator.process.end().success());
    let record = fs::read(folder.path().join("out/pruning.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let faults = record["measured"]["course"]["faults"].as_array().unwrap();
    let report = fs::read_to_string(folder.path().join("out/report.html")).unwrap();
    let count = |words: &str| {
        assert!(report.contains(words), "{words} is not in {report}");
        faults.iter().filter(|fault| fault["what"].as_str().unwrap().contains(words)).count()
    };
    for worker in [1, 2] {
        let opened = format!(
            "worker {worker}: opening its GPU took 828.0 MiB of its memory, but plans count 768.0 MiB"
        );
        assert_eq!(count(&opened), 1, "{faults:?}");
    }
    // Whoever solves says it once.
    let solved = count(": a factorisation on its GPU works in 16.0 MiB of its memory, but plans count ");
    assert!((1..=2).contains(&solved), "{faults:?}");
}

/// Each product of this fake GPU takes a tenth of a second, and the processor is much faster.
#[test]
fn the_speed_of_a_worker_on_a_gpu_is_that_of_its_gpu() {
    let folder = tempfile::tempdir().unwrap();
    // It has no coordinator to work for, and gives up.
    let speed = |device: &str| {
        let args = ["worker", "--coordinator", "http://127.0.0.1:9", "--patience", "1s", "--device", device];
        let mut worker =
            command(folder.path(), 1, &[&args[..], &["--collective", "gloo", "--quiet"]].concat());
        worker.env("FAKE_CUBLAS_MILLISECONDS", "100").env("OBSDIFF_LOG", "obsdiff=info");
        let (_, said) = Process::spawn(&mut worker).verdict();
        let line = said.lines().find(|line| line.contains("the speed of this worker's products"));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        let field = |name: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            value.unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        (field("megaflops=").parse::<f64>().unwrap(), field("device="), field("numbers="))
    };
    // 256 x 256 x 256, the smallest, in a tenth of a second.
    let most = 2.0 * 256f64.powi(3) / 0.1 / 1e6;
    let (of_gpu, device, numbers) = speed("cuda");
    assert!((0.1 * most..most).contains(&of_gpu), "{of_gpu}");
    assert_eq!((&*device, &*numbers), ("cuda:0", "BF16"));
    let (of_processor, device, numbers) = speed("cpu");
    assert!(of_processor > most, "{of_processor}");
    assert_eq!((&*device, &*numbers), ("cpu", "F32"));
}

#[test]
fn a_run_starts_a_worker_for_each_gpu_and_ends_as_one_process_does() {
    let [alone, shared] = [gpu_setting(2), gpu_setting(2)];
    let (code, said) =
        on_gpus(alone.path(), 1, &["run", "job.toml", "--quiet", "--device", "cuda"]).verdict();
    assert_eq!(code, Some(0), "{said}");
    let args = ["run", "job.toml", "--quiet", "--device", "cuda", "--workers", "2"];
    let mut run = on_gpus(shared.path(), 2, &args);
    run.line(|line| line.starts_with("Pruned 50.00% of ")).unwrap();
    let (code, said) = run.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_same(&result(shared.path()), &result(alone.path()));
    let refused = |args: &[&str], words: &str| {
        let (code, said) = on_gpus(shared.path(), 2, &[&["run", "job.toml"], args].concat()).verdict();
        assert!(code == Some(2) && said.contains(words), "{code:?}: {said}");
    };
    refused(&["--device", "cuda", "--workers", "3"], "--workers: is 3, a GPU each, but the driver sees 2");
    refused(&["--device", "cuda", "--workers", "2", "--baseline"], "--baseline: needs one worker");
}

#[test]
fn a_signal_is_passed_on_and_every_worker_leaves() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut workers = workers(folder.path(), &coordinator.url, "0,1");
    coordinator.until(FIRST);
    workers.terminate();
    let (code, said) = workers.verdict();
    assert_eq!(code, Some(143), "{said}");
    for gpu in ["GPU 0: ended with exit code 143", "GPU 1: ended with exit code 143"] {
        assert!(said.contains(gpu), "{said}");
    }
    assert!(said.contains("stopped by SIGTERM"), "{said}");
    // They have left in good order: nobody waits for them.
    coordinator.until(|line| line.contains(" left (drained)"));
}

/// What a page of the coordinator says, once it is as wanted.
fn shown(url: &str, path: &str, wanted: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + LONG;
    loop {
        let (status, _, body) = get(url, path);
        if status == 200 && wanted(&body) {
            return body;
        }
        assert!(Instant::now() < end, "{path}: {status} {body}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_gpus_memory_is_shown_while_the_job_runs_and_a_processors_is_not() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let args = ["worker", "--coordinator", &coordinator.url, "--device", "cuda", "--collective", "gloo"];
    let mut on_gpu = on_gpus(folder.path(), 1, &[&args[..], &["--quiet"]].concat());
    coordinator.until(FIRST);
    let metric = |state: &str, text: &str| {
        let name = format!("obsdiff_worker_gpu_memory_bytes{{state=\"{state}\",worker=\"1\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
    };
    // Grams take their room before the first shard is held.
    let text = shown(&coordinator.url, "/metrics", |text| metric("used", text).is_some_and(|used| used > 0));
    let [used, free] = ["used", "free"].map(|state| metric(state, &text).unwrap());
    assert_eq!(used + free, 1 << 30, "all that the fake GPU has");
    let job: Value = serde_json::from_str(&get(&coordinator.url, "/job").2).unwrap();
    let memory = &job["memory"].as_array().unwrap()[..];
    assert!(memory.len() == 1 && memory[0]["worker"] == 1, "{memory:?}");
    assert!(memory[0]["gpu"]["used_bytes"].as_u64().unwrap() > 0, "{memory:?}");
    assert_eq!(memory[0]["gpu"]["total_bytes"], 1 << 30);
    on_gpu.terminate();
    assert_eq!(on_gpu.verdict().0, Some(143));

    let folder = setting(16);
    let coordinator = Coordinator::start(folder.path());
    let _on_processor = worker(folder.path(), &coordinator.url);
    let peak = "obsdiff_worker_peak_memory_bytes{worker=\"1\"}";
    let text = shown(&coordinator.url, "/metrics", |text| text.contains(peak));
    assert!(!text.contains("obsdiff_worker_gpu_memory_bytes{"), "{text}");
}

#[test]
fn workers_end_the_job_where_what_they_say_cannot_be_written() {
    let folder = setting(2);
    let mut coordinator = Coordinator::start(folder.path());
    let words = format!(
        "exec \"$0\" worker --coordinator {} --devices all --collective gloo --quiet > /dev/full",
        coordinator.url
    );
    let mut workers = Process::spawn(
        Command::new("sh")
            .args(["-c", &words, env!("CARGO_BIN_EXE_obsdiff")])
            .current_dir(folder.path())
            .env("LD_LIBRARY_PATH", fake_cuda())
            .env("FAKE_CUDA_GPUS", "2"),
    );
    let (code, said) = workers.verdict();
    assert!(code == Some(3) && said.contains("standard output: No space left on device"), "{code:?}: {said}");
    assert!(coordinator.process.end().success());
}

#[test]
fn each_worker_checks_its_share_of_the_hosts_memory() {
    let folder = setting(2);
    let coordinator = Coordinator::start(folder.path());
    let args =
        ["worker", "--coordinator", &coordinator.url, "--devices", "all", "--memory", "64MiB", "--quiet"];
    let (code, said) = on_gpus(folder.path(), 2, &[&args[..], &["--collective", "gloo"]].concat()).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("but of 32.0 MiB "), "{said}");
}

#[test]
fn the_exit_code_of_workers_that_fail_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["worker", "--coordinator", "nonsense", "--devices", "1", "--quiet"];
    let (code, said) = on_gpus(folder.path(), 2, &args).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("error: the worker for GPU 1 ended with exit code 2"), "{said}");
}

#[test]
fn gpus_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |gpus, devices: &str, words: &str| {
        let args = ["worker", "--coordinator", "http://127.0.0.1:9", "--devices", devices];
        let (code, said) = on_gpus(folder.path(), gpus, &args).verdict();
        assert!(code == Some(2) && said.contains(words), "{code:?}: {said}");
    };
    refused(2, "0,2", "--devices: there is no GPU 2: the driver sees 2");
    refused(0, "all", "--devices: there is no GPU: the driver sees none");
    refused(2, "0,0", "all or different numbers are expected, such as 0,1,3");
}

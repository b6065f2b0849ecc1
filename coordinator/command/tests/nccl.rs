//! A job done by workers that sum their Grams by NCCL: a fake one, in host memory, as is the driver under it. Nothing here has a GPU.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use obsdiff_tests::{FakeNccl, fake_cuda, fake_cuda_with};

mod process;

use process::*;

/// A worker of one thread, on the first GPU of the fake driver.
fn worker_on_a_gpu(folder: &Path, url: &str, nccl: FakeNccl, faults: &[(&str, &str)]) -> Process {
    let args = ["worker", "--coordinator", url, "--quiet", "--threads", "1", "--collective", "nccl"];
    Process::spawn(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(args)
            .current_dir(folder)
            .env("LD_LIBRARY_PATH", fake_cuda_with(nccl))
            .env("OBSDIFF_LOG", "obsdiff_worker=info")
            .envs(faults.iter().copied()),
    )
}

#[test]
fn two_workers_over_nccl_do_what_one_process_does() {
    for nccl in [FakeNccl::Current, FakeNccl::WithoutRevoke] {
        let folder = setting(16);
        let mut coordinator = Coordinator::start(folder.path());
        let start = || worker_on_a_gpu(folder.path(), &coordinator.url, nccl, &[]);
        let workers = [start(), start()];
        coordinator.until(|line| line.contains("is connected and sums"));
        for mut worker in workers {
            let (code, said) = worker.verdict();
            assert_eq!(code, Some(0), "{said}");
            assert!(said.contains("NCCL is loaded"), "{said}");
        }
        assert!(coordinator.process.end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn a_worker_that_dies_within_a_call_of_nccl_leaves_the_rest_to_the_other() {
    for call in ["1", "8", "41"] {
        let folder = setting(16);
        let mut coordinator = Coordinator::start(folder.path());
        let dies = [("FAKE_NCCL_DIE_AT_CALL", call)];
        let mut killed = worker_on_a_gpu(folder.path(), &coordinator.url, FakeNccl::Current, &dies);
        let mut other = worker_on_a_gpu(folder.path(), &coordinator.url, FakeNccl::Current, &[]);
        assert_eq!(killed.end().code(), None, "it is killed within call {call}");
        let (code, said) = other.verdict();
        assert_eq!(code, Some(0), "{said}");
        assert!(coordinator.process.end().success());
        assert_undisturbed(folder.path());
    }
}

#[test]
fn a_worker_whose_nccl_does_not_stop_ends_resumably_and_the_other_goes_on() {
    let faults = [("FAKE_NCCL_ERROR_AT_CALL", "8"), ("FAKE_NCCL_ABORT", "hang")];
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    let mut stuck = worker_on_a_gpu(folder.path(), &coordinator.url, FakeNccl::WithoutRevoke, &faults);
    let mut other = worker_on_a_gpu(folder.path(), &coordinator.url, FakeNccl::WithoutRevoke, &[]);
    let (code, said) = stuck.verdict();
    let words = "NCCL did not stop within 20 s; this process ends, and its shards are run again";
    assert!(code == Some(3) && said.contains(words), "{code:?}: {said}");
    let (code, said) = other.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(coordinator.process.end().success());
    assert_undisturbed(folder.path());
}

#[test]
fn a_gpu_that_is_not_there_is_refused_before_any_work() {
    let args = ["worker", "--coordinator", "http://127.0.0.1:9", "--collective", "nccl:9"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    command.args(args).env("LD_LIBRARY_PATH", fake_cuda()).env("FAKE_CUDA_GPUS", "8");
    let (code, said) = Process::spawn(&mut command).verdict();
    let words =
        "--collective nccl:9: there is no GPU 9 among 8: choose another, or check CUDA_VISIBLE_DEVICES";
    assert!(code == Some(2) && said.contains(words), "{code:?}: {said}");
}

/// A worker of one thread that computes, sums and solves on the GPU of a fake driver.
fn worker_wholly_on_a_gpu(folder: &Path, url: &str, faults: &[(&str, &str)]) -> Process {
    let args = ["worker", "--coordinator", url, "--quiet", "--threads", "1", "--device", "cuda"];
    Process::spawn(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(args)
            .current_dir(folder)
            .env("LD_LIBRARY_PATH", fake_cuda())
            .envs(faults.iter().copied()),
    )
}

#[test]
fn faults_while_grams_are_summed_in_the_memory_of_gpus_do_not_change_a_byte() {
    let alone = gpu_setting(2);
    let mut run = Process::spawn(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(["run", "job.toml", "--quiet", "--device", "cuda"])
            .current_dir(alone.path())
            .env("LD_LIBRARY_PATH", fake_cuda()),
    );
    let (code, said) = run.verdict();
    assert_eq!(code, Some(0), "{said}");
    // The header of the first Gram is summed by call 3, its sums by call 5.
    for (fault, call) in
        [("FAKE_NCCL_DIE_AT_CALL", "3"), ("FAKE_NCCL_DIE_AT_CALL", "5"), ("FAKE_NCCL_ERROR_AT_CALL", "5")]
    {
        let folder = gpu_setting(2);
        let mut coordinator = Coordinator::start(folder.path());
        let mut faulty = worker_wholly_on_a_gpu(folder.path(), &coordinator.url, &[(fault, call)]);
        let mut other = worker_wholly_on_a_gpu(folder.path(), &coordinator.url, &[]);
        let (code, said) = faulty.verdict();
        let expected = if fault == "FAKE_NCCL_DIE_AT_CALL" { None } else { Some(0) };
        assert_eq!(code, expected, "{fault}={call}: {said}");
        let (code, said) = other.verdict();
        assert_eq!(code, Some(0), "{said}");
        assert!(coordinator.process.end().success());
        assert_same(&result(folder.path()), &result(alone.path()));
    }
}

/// Lines of a worker's log that say how many bytes of Grams have crossed between the host and its GPU.
fn crossings(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.contains("bytes of Grams have crossed")).collect()
}

#[test]
fn no_sum_of_a_survey_or_of_structures_crosses_to_the_host_with_1_2_or_4_workers() {
    let structured = "pattern = \"structured\"\nbudget = 0.1\nbudget_by = \"velocity\"\n";
    let global =
        "method = \"admm\"\nallocation = \"global\"\npattern = \"unstructured\"\nratio = 0.5\nrefine = 0\n";
    let skipped = |linears: &[&str]| -> String {
        let rule = |linears| format!("[[sparsity.rules]]\nmatch = \"{linears}\"\nskip = true\n");
        linears.iter().map(rule).collect()
    };
    for sparsity in [
        format!("{structured}{}", skipped(&["transformer_blocks.[2-9].*"])),
        format!(
            "{global}{}",
            skipped(&["transformer_blocks.[1-9].*", "*.ff*", "*add_*", "*.to_k", "*.to_v"])
        ),
    ] {
        let alone = setting_of(&sparsity, 1);
        let mut run = Process::spawn(
            Command::new(env!("CARGO_BIN_EXE_obsdiff"))
                .args(["run", "job.toml", "--quiet", "--device", "cuda"])
                .current_dir(alone.path())
                .env("LD_LIBRARY_PATH", fake_cuda())
                .env("OBSDIFF_LOG", LOG),
        );
        let (code, said) = run.verdict();
        assert_eq!(code, Some(0), "{said}");
        assert_nothing_crossed(&said);
        for count in [2, 4] {
            let folder = setting_of(&sparsity, 1);
            let mut coordinator = Coordinator::start(folder.path());
            let start = |_| worker_wholly_on_a_gpu(folder.path(), &coordinator.url, &[("OBSDIFF_LOG", LOG)]);
            let workers: Vec<_> = (0..count).map(start).collect();
            for mut worker in workers {
                let (code, said) = worker.verdict();
                assert_eq!(code, Some(0), "{said}");
                assert_nothing_crossed(&said);
            }
            assert!(coordinator.process.end().success());
            assert_same(&result(folder.path()), &result(alone.path()));
        }
    }
}

/// What the workers' log is to say of Grams.
const LOG: &str = "obsdiff_worker::device::pruning=debug";

fn assert_nothing_crossed(said: &str) {
    let crossings = crossings(said);
    // At least one: who comes late applies several packages at once.
    assert!(!crossings.is_empty(), "{said}");
    for line in crossings {
        assert!(line.contains("to_host=0") && line.contains("to_device=0"), "{line}");
    }
}

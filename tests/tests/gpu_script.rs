//! What `tests/gpu run` does where things go wrong: each step that fails or lacks something is reported in one line, and the others go on.
//! Programs are scripts here, so this takes seconds; `tests/gpu check` runs the real ones.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use obsdiff_tests::{fake_cuda, not_tested};
use serde_json::Value;
use tempfile::TempDir;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python");

/// Programs that do their part, each by its name.
const GOOD: [(&str, &str); 7] = [
    (
        "obsdiff",
        "[ \"$1\" = --version ] && echo obsdiff 1; [ \"$1\" = selftest ] && echo '{\"checks\": [{\"off\": 0, \"limit\": 1}]}'; exit 0",
    ),
    (
        "device",
        "[ \"$1\" = --list ] && echo 'a: test' && exit; echo 'first: output 1.0e-7, of 3'; echo 'test result: ok. 3 passed; 0 failed'",
    ),
    ("operations", "echo 'test a ... ok'; echo 'test result: ok. 1 passed; 0 failed'"),
    ("collectives", "echo 'test a ... ok'; echo 'test result: ok. 1 passed; 0 failed'"),
    ("device_times", "[ $# = 0 ] && echo device_times DEVICE TOKENS >&2 && exit 1; echo '{\"grams\": []}'"),
    ("tools/nvidia-smi", "echo NVIDIA H200, 580.1"),
    ("tools/compute-sanitizer", "echo 'Error: Device not supported'; exit 1"),
];

/// A folder as `tests/gpu pack` fills it, where some programs do something else.
fn packed(others: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for made in ["tools", "goldens/transformers/first", "goldens/solver"] {
        fs::create_dir_all(place(made)).unwrap();
    }
    let programs: BTreeMap<_, _> = GOOD.iter().chain(others).copied().collect();
    for (name, text) in programs {
        fs::write(place(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(place(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// The script on what is packed, with a GPU in host memory; none where there is no Python.
fn run(folder: &Path, seconds: &str, settings: &[(&str, &str)]) -> Option<(Output, Value)> {
    let out = folder.join("out/gpu.json");
    let path = format!("{}:/usr/bin:/bin", folder.join("tools").display());
    let mut python = Command::new("python3");
    python.arg(format!("{SCRIPTS}/gpu")).arg(folder).arg(&out).args(["--small", "--seconds", seconds]);
    python.env("PATH", path).env("PYTHONDONTWRITEBYTECODE", "1").env("LD_LIBRARY_PATH", fake_cuda());
    let Ok(output) = python.envs(settings.iter().copied()).output() else {
        not_tested("python3 is not installed");
        return None;
    };
    let found =
        fs::read_to_string(&out).unwrap_or_else(|_| String::from_utf8(output.stderr.clone()).unwrap());
    // Nothing else is left of it.
    assert_eq!(fs::read_dir(folder.join("out")).unwrap().count(), 1);
    Some((output, serde_json::from_str(&found).unwrap()))
}

/// What the check says of what was found, which is not all that should be there.
fn checked(folder: &Path) -> String {
    let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/goldens");
    let shares = concat!(env!("CARGO_MANIFEST_DIR"), "/../coordinator/command/src/gpu_shares.json");
    let mut check = Command::new("python3");
    check.arg(format!("{SCRIPTS}/gpu_found.py")).arg(folder.join("out/gpu.json")).args([goldens, shares]);
    let check = check.output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert_eq!(check.status.code(), Some(1), "{said}");
    said
}

/// Why a step failed, or what it lacks.
fn why<'a>(found: &'a Value, how: &str, step: &str) -> &'a str {
    found[how][step].as_str().unwrap_or_else(|| panic!("{step} has not {how}: {found:#}"))
}

#[test]
fn each_step_that_fails_says_so_in_a_line_and_the_others_go_on() {
    let hangs = "[ \"$1\" = --list ] && echo 'a: test' && exit; echo 'test a ... ok'; sleep 600 & echo $! >child; wait";
    let folder = packed(&[
        ("device", hangs),
        ("operations", "[ \"$1\" = --list ] && exit; kill -SEGV $$"),
        (
            "collectives",
            "[ \"$1\" = --list ] && exit; echo 'test b ... FAILED'; echo 'test c ... ok'; exit 101",
        ),
        (
            "obsdiff",
            "[ \"$1\" = --version ] && exit; echo '{\"checks\": [{\"what\": \"a Gram\", \"off\": 2, \"limit\": 1}]}'; exit 3",
        ),
        ("device_times", "[ $# = 0 ] && echo device_times DEVICE TOKENS >&2 && exit 1; echo NaN"),
    ]);
    let Some((output, found)) = run(folder.path(), "5", &[]) else { return };
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let failed = |step: &str| why(&found, "failed", step);
    let suite = failed("suite of devices and goldens");
    assert!(suite.starts_with("device was not done after 2 s: test a ... ok; 1 passed"), "{suite}");
    // What a program has started ends with it.
    let child = fs::read_to_string(folder.path().join("child")).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    assert_eq!(failed("operations of blocks"), "operations was ended by signal 11; 0 passed");
    assert_eq!(failed("groups of one by NCCL"), "failed: b; 1 passed");
    assert_eq!(failed("selftest"), "these checks are off: a Gram");
    assert_eq!(found["found"]["selftest"]["checks"][0]["what"], "a Gram");
    assert!(failed("times").starts_with("device_times printed no JSON object"), "{found:#}");
    assert!(failed("shapes-sd3").contains("holds no weights"), "{found:#}");
    assert_eq!(why(&found, "missing", "memcheck"), "compute-sanitizer does not support this machine's GPU");
    assert_eq!(found["ok"], serde_json::json!(["programs", "libraries", "gpu"]));
    assert_eq!(found["found"]["gpu"]["nvidia-smi"], "NVIDIA H200, 580.1");
    assert_eq!(found["running"], Value::Null);
    // Nor does the check take that for what it should be.
    let said = checked(folder.path());
    for line in
        ["operations of blocks failed: ", "times failed: ", "the self-test made 1 checks", "compared were []"]
    {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn programs_that_the_machine_cannot_run_are_told_of() {
    let old =
        "echo \"device: /lib/libc.so.6: version \\`GLIBC_2.34' not found (required by device)\" >&2; exit 1";
    let folder = packed(&[("device", old)]);
    fs::remove_file(folder.path().join("collectives")).unwrap();
    let Some((output, found)) = run(folder.path(), "480", &[]) else { return };
    assert_eq!(output.status.code(), Some(1));
    let programs = why(&found, "failed", "programs");
    assert!(programs.contains("version `GLIBC_2.34' not found"), "{programs}");
    let groups = why(&found, "failed", "groups of one by NCCL");
    assert!(groups.ends_with("collectives cannot be started: No such file or directory"), "{groups}");
    assert!(found["ok"].as_array().unwrap().contains(&"operations of blocks".into()), "{found:#}");
}

#[test]
fn a_golden_that_is_not_compared_fails_the_suite() {
    let folder = packed(&[]);
    let step = "suite of devices and goldens";
    let Some((_, found)) = run(folder.path(), "480", &[]) else { return };
    assert_eq!(found["found"][step]["passed"], 3, "{found:#}");
    assert_eq!(found["found"][step]["goldens"]["first"][0], "output 1.0e-7, of 3");
    fs::create_dir(folder.path().join("goldens/transformers/second")).unwrap();
    let (_, found) = run(folder.path(), "480", &[]).unwrap();
    assert_eq!(why(&found, "failed", step), "these goldens were not compared: second");
}

#[test]
fn a_driver_that_cannot_do_it_is_told_of_once_and_what_needs_it_is_left_out() {
    let folder = packed(&[]);
    let cases = [
        (
            "FAKE_CUDA_VERSION",
            "12040",
            "the driver is for CUDA 12.4, but obsdiff needs 13.0: driver 580 or newer",
        ),
        ("FAKE_CUDA_GPUS", "0", "the driver does not start: cuInit gives 100"),
    ];
    for (setting, value, problem) in cases {
        let Some((output, found)) = run(folder.path(), "480", &[(setting, value)]) else { return };
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            found["failed"],
            serde_json::json!({ "libraries": format!("no GPU can be used: {problem}") })
        );
        for step in [
            "suite of devices and goldens",
            "groups of one by NCCL",
            "selftest",
            "times",
            "shapes-flux",
            "memcheck",
        ] {
            assert_eq!(why(&found, "missing", step), format!("a GPU: {problem}"));
        }
    }
}

/// Times of one Gram.
const TIMES: (&str, &str) = (
    "device_times",
    "[ $# = 0 ] && echo device_times DEVICE TOKENS >&2 && exit 1; echo '{\"grams\": [{\"width\": 8}]}'",
);

/// A folder of Python's packages with a PyTorch that can do nothing.
fn packages(folder: &Path) -> PathBuf {
    let packages = folder.join("packages");
    fs::create_dir_all(packages.join("torch")).unwrap();
    fs::write(packages.join("torch/__init__.py"), "").unwrap();
    packages
}

#[test]
fn pytorch_is_timed_where_only_obsdiffs_own_search_finds_the_driver() {
    let folder = packed(&[TIMES]);
    // As Python's packages lie, without LD_LIBRARY_PATH.
    let packages = packages(folder.path());
    fs::create_dir_all(packages.join("nvidia/driver")).unwrap();
    symlink(fake_cuda(), packages.join("nvidia/driver/lib")).unwrap();
    let script = "import ctypes, json\nctypes.CDLL('libcuda.so.1')\nprint(json.dumps({'grams': [], 'solves': [], 'blocks': []}))\n";
    fs::write(folder.path().join("published.py"), script).unwrap();
    let settings = [("PYTHONPATH", packages.to_str().unwrap()), ("LD_LIBRARY_PATH", "")];
    let Some((_, found)) = run(folder.path(), "480", &settings) else { return };
    assert!(found["ok"].as_array().unwrap().contains(&"times beside PyTorch's".into()), "{found:#}");
}

#[test]
fn a_job_weighs_many_observations_against_one_solve() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}:{SCRIPTS}", packages(folder.path()).display());
    let script = "import json\nfrom published import aligned, speedups\n\
                  gram = {'published_seconds': 10, 'seconds': 1}\n\
                  solve = {'published_seconds': 20, 'seconds': 40, 'obs_seconds': 4}\n\
                  sizes = [aligned(1, 333, 7, 9), aligned(24, 4429, 64, 4429), aligned(24, 4429, 4429, 64)]\n\
                  print(json.dumps([speedups(gram, solve), speedups(None, solve), sizes]))\n";
    let mut python = Command::new("python3");
    python.args(["-c", script]).env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    let Ok(output) = python.output() else { return not_tested("python3 is not installed") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let solves = serde_json::json!({ "published_over_seconds": 0.5, "published_over_obs_seconds": 5.0 });
    assert_eq!(found[1], solves);
    let expected = [
        ("published_over_seconds", 0.5),
        ("published_over_obs_seconds", 5.0),
        ("published_over_ours_with_gram", 30.0 / 41.0),
        ("published_over_ours_in_a_job", 25_020.0 / 2540.0),
    ];
    for (name, ratio) in expected {
        let found = found[0][name].as_f64().unwrap();
        assert!((found / ratio - 1.0).abs() < 1e-12, "{name}: {found}, and not {ratio}");
    }
    // Keys alone are rounded up, and those of attentions alone.
    let sizes = serde_json::json!([[1, 333, 7, 9], [24, 4429, 64, 4432], [24, 4429, 4432, 64]]);
    assert_eq!(found[2], sizes);
}

#[test]
fn the_ratio_of_a_job_is_held_to_its_bound_and_others_stand_beside_it() {
    let folder = packed(&[TIMES]);
    let packages = packages(folder.path());
    let script = "import json\nprint(json.dumps({'job': {'prompts': 100, 'steps': 25, 'observations': 2500}, 'grams': [], 'solves': [{\
                  'rows': 4, 'width': 8, 'over_its_arithmetic': 1.5, 'published_over_seconds': 0.5, 'published_over_obs_seconds': 3, \
                  'published_over_ours_with_gram': 2, 'published_over_ours_in_a_job': 7}], 'blocks': [{'block': 0, 'model': 'M', \
                  'of_its_products_rate': 0.7, 'of_its_linears_rate': 0.4}]}))\n";
    fs::write(folder.path().join("published.py"), script).unwrap();
    let settings = [("PYTHONPATH", packages.to_str().unwrap())];
    let Some((_, found)) = run(folder.path(), "480", &settings) else { return };
    let expected = serde_json::json!({
        "solve of 4 x 8 over its arithmetic": { "value": 1.5, "at most": 1.6, "met": true },
        "published solve of 4 x 8 over ours by OBS, the same method": { "value": 3 },
        "published solve of 4 x 8 over ours by alternating directions with refinement": { "value": 0.5 },
        "published Gram of 2500 observations, as of 100 prompts by 25 steps, and solve of 4 x 8 over ours":
            { "value": 7, "at least": 5, "met": true },
        "published Gram of one observation and solve of 4 x 8 over ours": { "value": 2 },
        "block 0 of M, of its products' rate": { "value": 0.7, "at least": 0.6, "met": true },
        "block 0 of M, of the rate of its linears' products alone": { "value": 0.4 },
    });
    assert_eq!(found["reached"], expected, "{found:#}");
    // Times without their parts, and ratios that lack some, are not what should be there.
    let said = checked(folder.path());
    for line in ["parts of a time: {'width': 8}", "linears_seconds of blocks beside PyTorch's: [{"] {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn what_was_found_is_there_after_the_script_is_ended_from_outside() {
    let folder = packed(&[("operations", "[ \"$1\" = --list ] && exit; kill -TERM $PPID; sleep 600")]);
    let Some((output, found)) = run(folder.path(), "480", &[]) else { return };
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(why(&found, "failed", "operations of blocks"), "SIGTERM ended it");
    assert_eq!(
        (&found["running"], &found["found"]["programs"]["obsdiff"]),
        (&"operations of blocks".into(), &"obsdiff 1".into())
    );
    assert!(found["found"]["suite of devices and goldens"]["passed"] == 3, "{found:#}");
}

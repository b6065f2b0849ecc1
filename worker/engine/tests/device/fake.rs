//! The suite on a GPU in host memory, and what is said where something is missing.
#![allow(unsafe_code)]

mod probes;
mod room;

use std::env;
use std::process::{Command, Output};

use candle_core::DType;
use cudarc::driver::sys::culib;
use obsdiff_engine::calibrate::{GramTap, WeightedTap};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::memory::structure_bytes;
use obsdiff_engine::gram::Gram;
use obsdiff_engine::model::NoTap;
use obsdiff_engine::solve::structured::{Columns, Score, neurons};
use obsdiff_proto::{Accumulate, SiteId, Target};
use obsdiff_tests::{fake_cuda, noise};

use crate::forward::grams_of;
use crate::golden::Golden;
use crate::new_device;
use crate::solver::{FAST, upper};
use crate::structured::linear;

/// What [`opening_a_gpu_says_what_is_wrong`] is to find.
const EXPECTED: &str = "EXPECTED_PROBLEM";

/// This program with other libraries.
pub(crate) fn child(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(arguments).env("LD_LIBRARY_PATH", fake_cuda()).env("OBSDIFF_DEVICE", "cuda");
    child.envs(settings.iter().copied()).output().unwrap()
}

/// A number that the fake driver counts; none under a real one.
pub(crate) fn counted(name: &str) -> Option<u64> {
    // SAFETY: the functions of this name take nothing and return a number.
    unsafe { culib().get::<unsafe extern "C" fn() -> u64>(name.as_bytes()).ok().map(|count| count()) }
}

/// Bytes that have crossed to the host and to the GPU.
fn crossed() -> [u64; 2] {
    ["fake_cuda_bytes_to_host", "fake_cuda_bytes_to_device"].map(|name| counted(name).unwrap())
}

/// Whether this process runs one test alone. Otherwise it has a child do so, because other tests copy at the same time.
fn counts_alone(test: &str) -> bool {
    if env::var_os("COUNTS").is_some() {
        return true;
    }
    let output = child(&["--exact", test], &[("COUNTS", "yes")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

#[test]
fn the_suite_passes_on_a_gpu_in_host_memory() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        // This is the suite on some device.
        return;
    }
    let output = child(&["--skip", "in_host_memory", "--test-threads", "2"], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for test in [
        "grams_equal_the_processors_where_products_are_exact",
        "blocks_hold_to_the_goldens",
        "prompts_are_encoded_as_by_the_processor",
        "pictures_are_decoded_as_by_the_processor",
    ] {
        assert!(said.contains(&format!("{test} ... ok")), "{said}");
    }
}

#[test]
fn other_streams_wait_for_the_first_one_in_host_memory() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        return;
    }
    let output = child(&["grams::"], &[("FAKE_CUDA_SIDES_FIRST", "1")]);
    let said = String::from_utf8_lossy(&output.stdout);
    let refused = "grams::what_cannot_be_added_is_refused_as_by_the_processor ... ok";
    assert!(output.status.success() && said.contains(refused), "{said}");
}

#[test]
fn opening_a_gpu_says_what_is_wrong() {
    match env::var(EXPECTED) {
        Ok(expected) => {
            let name = env::var("OBSDIFF_DEVICE").unwrap().parse().unwrap();
            assert_eq!(ComputeDevice::open(name).unwrap_err().to_string(), expected);
        }
        Err(_) => drop(new_device()),
    }
}

#[test]
fn what_is_missing_in_host_memory_is_said_with_its_remedy() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        return;
    }
    let cases: [(&[(&str, &str)], &str); 6] = [
        (
            &[("FAKE_CUDA_GPUS", "0")],
            "there is no GPU 0: the driver sees 0; see `nvidia-smi -L`, and check CUDA_VISIBLE_DEVICES",
        ),
        (
            &[("OBSDIFF_DEVICE", "cuda:2"), ("FAKE_CUDA_GPUS", "2")],
            "there is no GPU 2: the driver sees 2; see `nvidia-smi -L`, and check CUDA_VISIBLE_DEVICES",
        ),
        (
            &[("FAKE_CUDA_CAPABILITY", "75")],
            "GPU 0 (Fake GPU) has compute capability 7.5, but obsdiff needs 8.0 (A100, RTX 30) or newer",
        ),
        (
            &[("FAKE_CUDA_VERSION", "12040")],
            "the NVIDIA driver supports CUDA 12.4 at most, but obsdiff needs 13.0: install driver 580 or newer",
        ),
        (
            &[("FAKE_CUDA_COMPILES", "0")],
            "cuModuleLoadData failed: a PTX JIT compilation failed: ptxas fatal   : Result 218 of the fake compiler",
        ),
        (
            &[("FAKE_CUDA_MEMORY", "1048576")],
            "the GPU has no room for another 32.0 MiB when it is opened: 1.0 MiB of 1.0 MiB are free; stop what else runs there (see `nvidia-smi`), or choose another GPU by --device cuda:N",
        ),
    ];
    for (settings, expected) in cases {
        let settings: Vec<_> = settings.iter().copied().chain([(EXPECTED, expected)]).collect();
        let output = child(&["--exact", "fake::opening_a_gpu_says_what_is_wrong"], &settings);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[test]
fn an_observation_crosses_to_the_gpu_once_and_only_a_verdict_comes_back_when_it_is_asked_for() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    let (width, tokens) = (64, 100);
    let mut grams = new_device().grams();
    grams.open(SiteId(0), &std::sync::Arc::new(Gram::new(width, Accumulate::Exact, 20))).unwrap();
    let rows = noise(1, tokens * width);
    grams.observe(SiteId(0), &rows, 1.0).unwrap();
    if !counts_alone(
        "fake::an_observation_crosses_to_the_gpu_once_and_only_a_verdict_comes_back_when_it_is_asked_for",
    ) {
        return;
    }
    let mut last = crossed();
    let mut moved = || {
        let now = crossed();
        let moved = [now[0] - last[0], now[1] - last[1]];
        last = now;
        moved
    };
    for _ in 0..2 {
        grams.observe(SiteId(0), &rows, 1.0).unwrap();
        assert_eq!(moved(), [0, 4 * (tokens * width) as u64]);
    }
    grams.settle().unwrap();
    assert_eq!(moved(), [12, 0]);
}

#[test]
fn what_adds_an_observation_goes_ahead_of_products() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_launches_ahead").is_none() {
        return;
    }
    if !counts_alone("fake::what_adds_an_observation_goes_ahead_of_products") {
        return;
    }
    let (device, width) = (new_device(), 64);
    let mut grams = device.grams();
    grams.open_empty(SiteId(0), &std::sync::Arc::new(Gram::new(width, Accumulate::Exact, 20))).unwrap();
    let launched = || ["fake_cuda_launches", "fake_cuda_launches_ahead"].map(|name| counted(name).unwrap());
    let before = launched();
    grams.observe(SiteId(0), &noise(1, 10 * width), 1.0).unwrap();
    // Squares, their sums, the verdict, and the one panel.
    assert_eq!([0, 1].map(|at| launched()[at] - before[at]), [4, 4]);
}

#[test]
fn only_latents_and_times_cross_to_the_gpu_and_only_the_velocity_comes_back() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::only_latents_and_times_cross_to_the_gpu_and_only_the_velocity_comes_back") {
        return;
    }
    for (name, waves) in [("sd35-medium", 1), ("flux-dev", 2)] {
        let device = new_device();
        let golden = Golden::open(name, DType::BF16, &device);
        let inventory = golden.model.inventory();
        let mut grams = grams_of(&golden, &device, 0);
        let mut tap = GramTap::new(inventory, &mut *grams);
        // Weights and conditioning go to the GPU with the first call, and stay.
        golden.forward(&mut tap);
        let before = crossed();
        let velocity = golden.forward(&mut tap);
        let after = crossed();
        // In bf16. What timesteps and guidances become has 256 numbers each.
        let latents = golden.call().latents;
        let batch = latents.dim(0).unwrap();
        let to_gpu = 2 * (latents.elem_count() + waves * 256 * batch) as u64;
        let to_host = 2 * velocity.elem_count() as u64;
        assert_eq!([after[0] - before[0], after[1] - before[1]], [to_host, to_gpu], "{name}");
        // Whether each site's Gram took the observations.
        tap.settle().unwrap();
        assert_eq!(crossed(), [after[0] + 12 * inventory.sites.len() as u64, after[1]], "{name}");
    }
}

#[test]
fn a_forward_call_takes_what_its_configuration_predicts() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::a_forward_call_takes_what_its_configuration_predicts") {
        return;
    }
    for (name, dtype) in [("sd35-medium", DType::F32), ("flux-dev", DType::BF16)] {
        let device = new_device();
        let golden = Golden::open(name, dtype, &device);
        golden.forward(&mut NoTap);
        counted("fake_cuda_passing_bytes");
        golden.forward(&mut NoTap);
        let passing = counted("fake_cuda_passing_bytes").unwrap();
        let predicted = golden.predicted_gpu_bytes(dtype);
        assert!(
            (passing..2 * passing).contains(&predicted),
            "{name}: {passing} bytes, predicted {predicted}"
        );
    }
}

#[test]
fn columns_of_a_linear_go_in_the_memory_that_is_predicted() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::columns_of_a_linear_go_in_the_memory_that_is_predicted") {
        return;
    }
    let (rows, n) = (60, 250);
    let (weight, gram) = linear(1, rows, n, &[]);
    let (device, columns) = (new_device(), Columns::all(n, 1));
    for (score, copied) in [(Score::Exact, false), (Score::Published, true)] {
        counted("fake_cuda_passing_bytes");
        let before = counted("fake_cuda_passing_bytes").unwrap();
        assert_eq!(before, 0);
        let mut layer = device.structured(n, &weight, &gram, 0.01).unwrap();
        let copy = copied.then(|| layer.duplicate().unwrap());
        neurons(&mut layer, columns, 120, score).unwrap();
        device.output_energy(&weight, &gram).unwrap();
        drop((layer, copy));
        let taken = counted("fake_cuda_passing_bytes").unwrap();
        let predicted = structure_bytes(&[(rows, n)], copied);
        assert!((taken..2 * taken).contains(&predicted), "{score:?}: {taken} bytes, predicted {predicted}");
    }
}

#[test]
fn a_linear_crosses_to_the_gpu_once_and_back_once() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::a_linear_crosses_to_the_gpu_once_and_back_once") {
        return;
    }
    let (rows, n) = (12, 24);
    let weight = noise(2, rows * n);
    let device = new_device();
    let mut solver = device.solver();
    solver.begin(n, upper(n, &[]), FAST).unwrap();
    let before = crossed();
    solver.solve(&[(&weight, Target::NToM { n: 2, m: 4 })]).remove(0).unwrap();
    let after = crossed();
    // Each row's errors of the dense weight, and of the pruned one.
    let errors = 2 * 16 * rows;
    let weight = 4 * (rows * n) as u64;
    assert_eq!([after[0] - before[0], after[1] - before[1]], [weight + errors as u64, weight]);
    // What the site and the linear took goes with the solver.
    let held = counted("fake_cuda_allocations").unwrap();
    drop(solver);
    let left = counted("fake_cuda_allocations").unwrap();
    assert!(left < held, "{left} of {held} allocations are left");
    drop(device);
    assert_eq!(counted("fake_cuda_allocations"), Some(0));
}

#[test]
fn of_a_gram_that_a_site_is_solved_by_only_the_diagonal_comes_to_the_host() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::of_a_gram_that_a_site_is_solved_by_only_the_diagonal_comes_to_the_host") {
        return;
    }
    let (rows, n) = (12, 96);
    let device = new_device();
    let mut grams = device.grams();
    let before = crossed();
    grams.open_empty(SiteId(0), &std::sync::Arc::new(Gram::new(n, Accumulate::Exact, 20))).unwrap();
    // Zeros are made where they are needed.
    assert_eq!(crossed(), before);
    grams.observe(SiteId(0), &noise(1, 3 * n * n), 1.0).unwrap();
    let gram = grams.share(SiteId(0)).unwrap().unwrap();
    for mut solver in [Some(device.solver()), device.obs_solver(0.01)].into_iter().flatten() {
        let before = crossed();
        solver.begin_in_place(&gram.packed().unwrap(), FAST).unwrap().unwrap();
        let after = crossed();
        let [to_host, to_gpu] = [after[0] - before[0], after[1] - before[1]];
        // Vectors of the site's width, and what libraries say.
        assert!(to_host >= 4 * n as u64 && to_host < 40 * n as u64, "{to_host} bytes");
        assert!(to_gpu < 40 * n as u64, "{to_gpu} bytes");
        let weight = noise(2, rows * n);
        solver.solve(&[(&weight, Target::Unstructured { ratio: 0.5 })]).remove(0).unwrap();
    }
    let before = crossed();
    gram.trace().unwrap();
    assert_eq!(crossed()[0] - before[0], 8 * n as u64);
    gram.to_host().unwrap();
    assert_eq!(crossed()[0] - before[0], 8 * n as u64 + Gram::bytes(n, Accumulate::Exact));
}

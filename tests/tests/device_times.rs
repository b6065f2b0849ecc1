//! What `examples/device_times` measures is all there: on the processor, and on a GPU in host memory.
#![allow(clippy::unwrap_used)]

#[path = "../examples/device_times/measured/mod.rs"]
mod measured;

use std::env;
use std::process::Command;

use measured::measured;
use obsdiff_engine::device::{ComputeDevice, DeviceError, DeviceName};
use obsdiff_tests::{fake_cuda, not_tested};
use serde_json::Value;

/// Names the device in a process that has its libraries.
const DEVICE: &str = "DEVICE_TO_TIME";

fn shipped(name: &str, batch: usize) -> String {
    format!("{}/assets/{name}/transformer:{batch}:8:5", env!("CARGO_MANIFEST_DIR"))
}

/// Measures on a device, with two widths, a linear, and blocks of both shipped transformers.
fn holds(device: &str) {
    let [joint, two] = [shipped("shapes-sd3", 2), shipped("shapes-flux", 1)];
    let arguments = [device, "40", "24,33,260", "12x24", &joint, &two].map(str::to_owned);
    let times = measured(&arguments).unwrap();
    let listed = |key: &str| times[key].as_array().unwrap().clone();
    let seconds = |of: &Value, key: &str| assert!(of[key].as_f64().unwrap() > 0.0, "{of}");
    assert_eq!(listed("grams").len(), 3);
    listed("grams").iter().for_each(|gram| seconds(gram, "seconds"));
    assert_eq!(listed("grams")[0]["operations"], 40 * 24 * 25);
    let tuning: Vec<_> =
        listed("grams").iter().map(|gram| gram["tuning"].as_array().unwrap().clone()).collect();
    let number = |of: &Value, key: &str| of[key].as_u64().unwrap();
    let tried: Vec<_> = tuning[2].iter().map(|of| (number(of, "rows"), number(of, "blocks"))).collect();
    let pairs = [8, 16, 24, 48].map(|blocks| (256, blocks));
    assert_eq!((tuning[0].len(), &*tried), (0, if device == "cpu" { &[][..] } else { &pairs[..] }));
    for of in tuning[2].iter().chain(listed("grams").iter().filter(|_| device != "cpu")) {
        ["seconds", "over_whole_product"].iter().for_each(|key| seconds(of, key));
    }
    assert_eq!(listed("solves").len(), 1);
    for solve in listed("solves") {
        ["seconds", "inverses_seconds", "obs_seconds"].iter().for_each(|key| seconds(&solve, key));
    }
    // On a GPU alone each part is timed besides.
    let parts = |of: &Value, names: &[&str]| match of["parts"].as_object() {
        None => assert!(of["parts"].is_null() && device == "cpu", "{of}"),
        Some(parts) => {
            let keys: Vec<_> = parts.keys().map(String::as_str).collect();
            assert_eq!((&*keys, device == "cpu"), (names, false));
            names.iter().for_each(|name| seconds(&of["parts"], name));
        }
    };
    let of_observation = ["adds_seconds", "judge_seconds", "products_seconds", "whole_product_seconds"];
    listed("grams").iter().for_each(|gram| parts(gram, &of_observation));
    let of_solve = ["copies_seconds", "factor_seconds", "inverse_seconds", "products_seconds"];
    listed("solves").iter().for_each(|solve| parts(solve, &of_solve));
    // Nine factorisations' operations for three inverses, and 44 for each weight and column; one, and three.
    let cube = 24.0f64.powi(3) / 3.0;
    let each = 12.0 * 24.0 * 24.0;
    assert_eq!(listed("solves")[0]["operations"], 9.0 * cube + 44.0 * each);
    assert_eq!(listed("solves")[0]["obs_operations"], cube + 3.0 * each);
    let blocks = listed("blocks");
    // How often numbers of a kind cross to the host and to the device.
    let crossed = |of: &Value, kind: &str| {
        ["to_host", "to_device"].map(|way| of["transfers"][kind][way]["count"].as_u64().unwrap())
    };
    let once = u64::from(device != "cpu");
    for gram in listed("grams") {
        // Rows lie there already; what became of all of them comes back once, in two parts.
        assert_eq!(crossed(&gram, "activations"), [0, 0]);
        assert_eq!(crossed(&gram, "figures"), [2 * once, 0]);
    }
    for solve in listed("solves") {
        // The Gram is solved where it lies.
        assert_eq!((crossed(&solve, "grams"), crossed(&solve, "weights")), ([0, 0], [0, once]));
        assert_eq!(crossed(&solve, "results"), [once, 0]);
        assert!(solve["obs_transfers"]["grams"].is_object());
    }
    for block in &blocks {
        // No state, weight or verdict of a block crosses once its weights are there.
        for kind in ["weights", "inputs", "activations", "grams", "results", "figures"] {
            assert_eq!(crossed(block, kind), [0, 0], "{kind} of {block}");
        }
    }
    // Of both, one block that is like most of them, and one of the other kind.
    let products: Vec<_> = blocks.iter().map(|block| block["products"].as_array().unwrap().len()).collect();
    assert_eq!(products, [16, 12, 16, 8]);
    blocks.iter().for_each(|block| seconds(block, "seconds"));
    // 16 image tokens of two pictures, and the scores of 8 heads of each.
    let first = |at: usize| blocks[0]["products"][at].to_string();
    assert_eq!(first(0), r#"{"columns":128,"count":1,"inner":128,"rows":32}"#);
    assert!(
        blocks[0].to_string().contains(r#"{"columns":21,"count":16,"inner":16,"rows":21}"#),
        "{}",
        blocks[0]
    );
    // The text's attention is not read after the last block.
    assert!(
        blocks[1].to_string().contains(r#"{"columns":21,"count":16,"inner":16,"rows":16}"#),
        "{}",
        blocks[1]
    );
}

#[test]
fn the_processor_is_timed() {
    if let Ok(device) = env::var(DEVICE) {
        return holds(&device);
    }
    holds("cpu");
}

#[test]
fn a_gpu_in_host_memory_is_timed() {
    if env::var_os(DEVICE).is_some() {
        return;
    }
    if matches!(ComputeDevice::open(DeviceName::Cuda(0)), Err(DeviceError::NotBuilt)) {
        return not_tested("this build has no code for GPUs");
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "the_processor_is_timed"]).env(DEVICE, "cuda").env("LD_LIBRARY_PATH", fake_cuda());
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn lists_may_be_empty() {
    let arguments = ["cpu", "40", "-", "-"].map(str::to_owned);
    let mut times = measured(&arguments).unwrap();
    let rates = times.as_object_mut().unwrap().remove("rates").unwrap();
    let rates: Vec<_> = ["f32", "bf16"].iter().map(|numbers| rates[numbers].as_f64().unwrap()).collect();
    assert!(rates.iter().all(|rate| *rate > 1e6), "{rates:?}");
    assert_eq!(times.as_object_mut().unwrap().remove("hardware").unwrap(), obsdiff_engine::hardware());
    assert_eq!(times.to_string(), r#"{"blocks":[],"device":"cpu","grams":[],"solves":[]}"#);
}

#[test]
fn sizes_that_are_not_understood_are_refused() {
    for arguments in
        [&["cpu", "40", "24"][..], &["cpu", "x", "24", "12x24"], &["cpu", "40", "24", "12x24", "folder"]]
    {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let error = measured(&arguments).unwrap_err();
        assert!(format!("{error:#}").contains("device_times DEVICE TOKENS"), "{error:#}");
    }
}

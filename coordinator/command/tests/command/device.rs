//! `--device`.

use std::fs;
use std::path::Path;

#[cfg(feature = "cuda")]
use obsdiff_engine::device::transfers::TransferKind;
#[cfg(feature = "cuda")]
use serde_json::Value;

use super::{asset, obsdiff, printed, text};

/// A job that prunes the three linears of one site.
fn small_job(folder: &Path, output: &str) -> std::path::PathBuf {
    let path = folder.join(format!("{output}.toml"));
    let skipped = ["transformer_blocks.[1-9].*", "*.ff*", "*add_*", "*.to_out.*"];
    let rules: String = skipped
        .iter()
        .map(|linears| format!("[[sparsity.rules]]\nmatch = \"{linears}\"\nskip = true\n"))
        .collect();
    let job = format!(
        "[model]\npath = \"{}\"\n[sparsity]\nmethod = \"admm\"\npattern = \"unstructured\"\nallocation = \"uniform\"\nratio = 0.5\nrefine = 3\n{rules}\
         [calibration]\nprompts = \"{}\"\ncount = 2\nsteps = 2\nmax_sequence_length = 24\n[evaluation]\ncount = 1\n[output]\npath = \"{output}\"\n",
        asset("shapes-sd3").display(),
        asset("shapes-prompts.txt").display(),
    );
    fs::write(&path, job).unwrap();
    path
}

#[cfg(feature = "cuda")]
fn pruned(folder: &Path, output: &str, device: &str) -> Value {
    let job = small_job(folder, output);
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let arguments = ["run", "--quiet", "--device", device, job.to_str().unwrap()];
    let ran = obsdiff(folder, &arguments, &[("LD_LIBRARY_PATH", libraries)]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    serde_json::from_str(&fs::read_to_string(folder.join(output).join("pruning.json")).unwrap()).unwrap()
}

/// The bytes of the pruned transformer.
#[cfg(feature = "cuda")]
pub(crate) fn weights(folder: &Path, output: &str) -> Vec<u8> {
    let folder = folder.join(output).join("transformer");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|of| of == "safetensors"));
    files.sort();
    files.iter().flat_map(|file| fs::read(file).unwrap()).collect()
}

#[cfg(feature = "cuda")]
#[test]
fn a_job_on_a_gpu_prunes_as_one_on_the_processor_and_twice_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [gpu, processor] =
        [("gpu", "cuda"), ("processor", "cpu")].map(|(to, device)| pruned(folder, to, device));
    let hardware = |record: &Value| record["hardware"].as_str().unwrap().to_owned();
    assert_eq!(
        hardware(&gpu),
        format!("{}, Fake GPU with cuBLAS 130000 and cuSOLVER 12000", hardware(&processor))
    );
    let linears = |record: &Value| record["linears"].as_array().unwrap().clone();
    assert_eq!(linears(&gpu).len(), 3);
    for (gpu, processor) in linears(&gpu).iter().zip(&linears(&processor)) {
        assert_eq!((&gpu["name"], &gpu["zeros"]), (&processor["name"], &processor["zeros"]));
        let [a, b] = [gpu, processor].map(|linear| linear["relative_error"].as_f64().unwrap());
        assert!((a / b - 1.0).abs() < 0.01, "{a} on the GPU, {b} on the processor");
    }
    pruned(folder, "again", "cuda:0");
    assert!(weights(folder, "gpu") == weights(folder, "again"));
}

/// In bf16 the products of text encoders are rounded on a GPU, so it is seen in the weights where the prompts were encoded.
#[cfg(feature = "cuda")]
#[test]
fn a_job_on_a_gpu_encodes_its_prompts_there_and_so_does_encode() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = small_job(folder, "out");
    let job = job.to_str().unwrap();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let on = |device: &str, arguments: &[&str]| {
        let common = ["--quiet", "--set", "model.dtype=bf16", "--device", device, job];
        let ran = obsdiff(folder, &[arguments, &common].concat(), &[("LD_LIBRARY_PATH", libraries)]);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
    };
    let encoded = ["cuda", "cpu"].map(|device| {
        let file = format!("{device}.safetensors");
        on(device, &["encode", "--out", &file]);
        let tensors = candle_core::safetensors::load(folder.join(&file), &candle_core::Device::Cpu).unwrap();
        let text = tensors["prompt.0.text"].to_dtype(candle_core::DType::F32).unwrap();
        text.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    });
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |most: f32, x| most.max(x.abs()));
    let off = largest(&mut encoded[0].iter().zip(&encoded[1]).map(|(a, b)| a - b));
    assert!(off > 0.0 && off < 0.03 * largest(&mut encoded[1].iter().copied()), "off by {off}");
    let pruned = |output: &str, sets: &[&str]| {
        let path = format!("output.path={output}");
        on("cuda", &[&["run", "--set", &path], sets].concat());
        weights(folder, output)
    };
    let by_itself = pruned("by-itself", &[]);
    assert!(by_itself == pruned("on-gpu", &["--set", "calibration.conditioning=cuda.safetensors"]));
    assert!(by_itself != pruned("on-processor", &["--set", "calibration.conditioning=cpu.safetensors"]));
}

#[cfg(feature = "cuda")]
#[test]
fn heads_and_neurons_go_on_a_gpu_as_on_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let records = ["cuda", "cpu"].map(|device| {
        let path = folder.join(format!("{device}.toml"));
        let job = format!(
            "[model]\npath = \"{}\"\n[sparsity]\npattern = \"structured\"\nratio = 0.375\n\
             [[sparsity.rules]]\nmatch = \"transformer_blocks.[2-9].*\"\nskip = true\n\
             [calibration]\nprompts = \"{}\"\ncount = 2\nsteps = 1\nmax_sequence_length = 24\n[evaluation]\ncount = 1\n[output]\npath = \"{device}\"\n",
            asset("shapes-sd3").display(),
            asset("shapes-prompts.txt").display(),
        );
        fs::write(&path, job).unwrap();
        let arguments = ["run", "--quiet", "--device", device, path.to_str().unwrap()];
        let ran = obsdiff(folder, &arguments, &[("LD_LIBRARY_PATH", libraries)]);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        let record = fs::read_to_string(folder.join(device).join("pruning.json")).unwrap();
        serde_json::from_str::<Value>(&record).unwrap()
    });
    let listed = |record: &Value, key: &str| record[key].as_array().unwrap().clone();
    let [gpu, processor] = &records;
    let structures = listed(processor, "structures");
    assert!(
        structures.iter().any(|structure| structure["heads"] == true && structure["kept"] != structure["of"])
    );
    for (gpu, processor) in listed(gpu, "structures").iter().zip(&structures) {
        for key in ["name", "kept", "removed"] {
            assert_eq!(gpu[key], processor[key], "{gpu} {processor}");
        }
    }
    let mut compared = 0;
    for (gpu, processor) in listed(gpu, "linears").iter().zip(&listed(processor, "linears")) {
        assert_eq!(gpu["name"], processor["name"]);
        if let Some(error) = processor["relative_error"].as_f64() {
            let off = gpu["relative_error"].as_f64().unwrap() / error - 1.0;
            assert!(off.abs() < 0.01, "{gpu} {processor}");
            compared += 1;
        }
    }
    assert!(compared >= 3, "{compared}");
}

#[cfg(feature = "cuda")]
#[test]
fn a_sweep_on_a_gpu_finds_what_solving_there_finds() {
    let dir = tempfile::tempdir().unwrap();
    let (grams, out) = (dir.path().join("grams"), dir.path().join("sweep"));
    let job = small_job(dir.path(), "out");
    let keeps = format!("output.grams={}", grams.display());
    printed(dir.path(), &["run", "--quiet", "--set", &keeps, job.to_str().unwrap()]);
    let on_gpu = |arguments: &[&str], memory: u64| {
        let memory = memory.to_string();
        let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
        let environment = [("LD_LIBRARY_PATH", libraries), ("FAKE_CUDA_MEMORY", memory.as_str())];
        obsdiff(dir.path(), arguments, &environment)
    };
    let options = ["--ratios", "0.6", "--set", "sparsity.refine=0", "--out", out.to_str().unwrap()];
    let sweep = [&["sweep", grams.to_str().unwrap()], &options[..]].concat();
    // No room but for what opening takes; and no such GPU.
    for (device, memory, words) in [
        ("cuda", 136 << 20, "but the GPU has "),
        ("cuda:1", 1 << 40, "--device: cannot be cuda:1: there is no GPU 1"),
    ] {
        let refused = on_gpu(&[&sweep[..], &["--device", device]].concat(), memory);
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains(words), "{said}");
        assert!(!out.exists());
    }
    // What is expected takes no GPU.
    let predicted = on_gpu(&[&sweep[..], &["--device", "cuda:1", "--predicted"]].concat(), 1 << 40);
    assert!(predicted.status.success(), "{}", text(&predicted.stderr));
    let hardware = || {
        let json = fs::read(out.join("sweep.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&json).unwrap()["hardware"].clone()
    };
    assert!(hardware().is_null());
    fs::remove_dir_all(&out).unwrap();
    let swept = on_gpu(&[&sweep[..], &["--device", "cuda"]].concat(), 1 << 40);
    assert!(swept.status.success(), "{}", text(&swept.stderr));
    assert!(
        hardware().as_str().unwrap().ends_with(", Fake GPU with cuBLAS 130000 and cuSOLVER 12000"),
        "{}",
        hardware()
    );
    let output = format!("output.path={}", dir.path().join("solved").display());
    let sets = ["sparsity.ratio=0.6", "sparsity.refine=0", &output];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    let solve = [&["solve", grams.to_str().unwrap(), "--device", "cuda"], &sets[..]].concat();
    let solved = text(&on_gpu(&solve, 1 << 40).stdout);
    let row = text(&swept.stdout);
    let row: Vec<&str> =
        row.lines().rev().find(|line| line.starts_with("unstructured")).unwrap().split_whitespace().collect();
    assert!(solved.contains(&format!("final latents differ by {} ", row[3])), "{row:?}: {solved}");
    // In the least memory of a point another one follows: what the first has given back is kept for it.
    fs::remove_dir_all(&out).unwrap();
    let sets = ["--set", "sparsity.refine=0", "--set", "sparsity.ratio=0.6"];
    let plan = [&["plan", "--json", "--device-memory", "80GB", job.to_str().unwrap()], &sets[..]].concat();
    let planned: Value = serde_json::from_str(&printed(dir.path(), &plan)).unwrap();
    let least = planned["device_memory"]["peak_bytes"].as_u64().unwrap() - CONTEXT;
    let both = [&sweep[..], &["--ratios", "0.5", "--device", "cuda"]].concat();
    let swept = on_gpu(&both, least);
    assert!(swept.status.success(), "{}", text(&swept.stderr));
}

/// What a process takes of a GPU before it asks for memory, which the fake driver does not count.
#[cfg(feature = "cuda")]
pub(crate) const CONTEXT: u64 = 640 << 20;

#[cfg(feature = "cuda")]
#[test]
fn a_job_runs_in_the_memory_of_a_gpu_that_its_plan_predicts_and_is_refused_in_less() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let job = small_job(folder, "out");
    let job = job.to_str().unwrap();
    let planned = obsdiff(folder, &["plan", "--json", "--device-memory", "80GB", job], &[]);
    assert!(planned.status.success(), "{}", text(&planned.stderr));
    let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
    let memory = &planned["device_memory"];
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    assert_eq!(memory["fewest_packages"], 1);
    let parts = bytes("transformer_bytes") + bytes("grams_bytes") + bytes("context_bytes");
    let most = bytes("activations_bytes").max(bytes("solver_bytes"));
    assert_eq!(bytes("peak_bytes"), parts + most);
    assert!((100_000..parts).contains(&bytes("encoding_bytes")), "{memory}");
    let run = |memory: u64| {
        let environment = [("LD_LIBRARY_PATH", libraries), ("FAKE_CUDA_MEMORY", &*memory.to_string())];
        obsdiff(folder, &["run", "--quiet", "--device", "cuda", job], &environment)
    };
    let refused = run(bytes("peak_bytes") - CONTEXT - 1);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(said.contains("packages.count: is 1, with which Grams take "), "{said}");
    assert!(said.contains("but the GPU has ") && said.contains("no number of packages is enough"), "{said}");
    assert!(!folder.join("out").exists());
    let ran = run(bytes("peak_bytes") - CONTEXT);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_that_takes_more_than_plans_count_is_reported_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let run = |output: &str, faults: &[(&str, &str)]| {
        let job = small_job(folder.path(), output);
        let environment = [&[("LD_LIBRARY_PATH", libraries)], faults].concat();
        let ran = obsdiff(
            folder.path(),
            &["run", "--quiet", "--device", "cuda", job.to_str().unwrap()],
            &environment,
        );
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        text(&ran.stderr)
    };
    let lines = |said: &str, words: &str| said.lines().filter(|line| line.contains(words)).count();
    let words = ["opening cuda:0 took ", "cuSOLVER works in "];
    // A context of 640 MiB with cuBLAS's workspaces of 32 MiB is what plans count, and any matrix may take 4 MiB.
    let faults = [("FAKE_CUDA_CONTEXT", "671088640"), ("FAKE_CUSOLVER_WORKSPACE", "1048576")];
    let said = run("within", &faults);
    assert_eq!(words.map(|words| lines(&said, words)), [0, 0], "{said}");
    let faults = [("FAKE_CUDA_CONTEXT", "734003200"), ("FAKE_CUSOLVER_WORKSPACE", "4194304")];
    let said = run("more", &faults);
    assert_eq!(words.map(|words| lines(&said, words)), [1, 1], "{said}");
    assert!(
        said.contains("opening cuda:0 took 828.0 MiB of its memory, but plans count 768.0 MiB: "),
        "{said}"
    );
    assert!(
        said.contains("cuSOLVER works in 16.0 MiB for a matrix of 128 x 128, but plans count 64.0 KiB: "),
        "{said}"
    );
    // What is said of memory does not change the result. The record and the report say it, too.
    assert!(weights(folder.path(), "within") == weights(folder.path(), "more"));
    let recorded = [
        "worker 1: opening its GPU took 828.0 MiB of its memory, but plans count 768.0 MiB",
        "worker 1: a factorisation on its GPU works in 16.0 MiB of its memory, but plans count 64.0 KiB",
    ];
    let faults = |output: &str| {
        let record = fs::read_to_string(folder.path().join(output).join("pruning.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        let faults = record["measured"]["course"]["faults"].as_array().cloned().unwrap_or_default();
        faults.iter().map(|fault| fault["what"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((faults("within"), faults("more")), (vec![], recorded.map(str::to_owned).to_vec()));
    let report = fs::read_to_string(folder.path().join("more/report.html")).unwrap();
    assert!(recorded.iter().all(|words| report.contains(words)), "{report}");
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_that_is_not_there_is_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let job = small_job(folder.path(), "out");
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let arguments = ["run", "--device", "cuda:1", job.to_str().unwrap()];
    let ran = obsdiff(folder.path(), &arguments, &[("LD_LIBRARY_PATH", libraries)]);
    assert_eq!(ran.status.code(), Some(2));
    let said = text(&ran.stderr);
    assert!(said.contains("--device: cannot be cuda:1: there is no GPU 1: the driver sees 1"), "{said}");
    assert!(!folder.path().join("out").exists());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_gpus_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let job = small_job(folder.path(), "out");
    let ran = obsdiff(folder.path(), &["run", "--device", "cuda", job.to_str().unwrap()], &[]);
    assert_eq!(ran.status.code(), Some(2));
    let said = text(&ran.stderr);
    assert!(said.contains("--device: cannot be cuda:0: this build of obsdiff cannot use GPUs"), "{said}");
}

#[test]
fn a_device_has_one_of_three_names() {
    let folder = tempfile::tempdir().unwrap();
    let job = small_job(folder.path(), "out");
    for name in ["gpu", "cuda:", "cuda:x", "cpu:0"] {
        let ran = obsdiff(folder.path(), &["run", "--device", name, job.to_str().unwrap()], &[]);
        assert_eq!(ran.status.code(), Some(2));
        let said = text(&ran.stderr);
        assert!(said.contains(&format!("\"{name}\" is not a device: cpu, cuda or cuda:N")), "{said}");
    }
}

/// The lines of a table that `selftest` prints, of that of checks or the one behind it. All fit a terminal but the first, which names the
/// hardware.
fn table(said: &str, which: usize) -> Vec<&str> {
    assert!(said.lines().skip(1).all(|line| line.chars().count() <= 80), "{said}");
    let tables = said.split("\n\n").nth(1 + which).unwrap_or_default();
    tables.lines().skip(2).collect()
}

fn checks(said: &str) -> Vec<&str> {
    table(said, 0)
}

#[test]
fn the_processor_passes_its_own_test() {
    let folder = tempfile::tempdir().unwrap();
    let said = printed(folder.path(), &["selftest"]);
    assert!(said.starts_with("cpu: "), "{said}");
    assert_eq!((checks(&said).len(), table(&said, 1).len()), (13, 0), "{said}");
    assert!(checks(&said).iter().all(|line| line.trim_end().ends_with("ok")), "{said}");
    // It is as fast as itself.
    assert!(!said.contains("speed-up"), "{said}");
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_in_host_memory_passes_the_test_of_devices() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let tested = |arguments: &[&str]| {
        let arguments = [&["selftest", "--device", "cuda"][..], arguments].concat();
        obsdiff(folder.path(), &arguments, &[("LD_LIBRARY_PATH", libraries)])
    };
    let ran = tested(&[]);
    let said = text(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", text(&ran.stderr));
    assert_eq!(checks(&said).len(), 15, "{said}");
    assert!(said.contains("speed-up"), "{said}");
    for what in
        ["FluxTransformer2DModel in bf16", "Gram of 300 x 100, exact sums", "obs, error of", "by NCCL"]
    {
        assert!(checks(&said).iter().any(|line| line.contains(what) && line.ends_with("ok")), "{said}");
    }
    let copied = |kind: &str| {
        let line = table(&said, 1).into_iter().find(|line| line.starts_with(kind));
        line.unwrap_or_default().split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(table(&said, 1).len(), TransferKind::ALL.len(), "{said}");
    // The velocities of two calls of two transformers in three types, and a solved weight of each method and target.
    let results = copied("results");
    assert_eq!((&*results[0], &*results[3]), ("0", "16"), "{said}");
    // Two observations of the host to each of two Grams.
    let activations = copied("activations");
    assert_eq!((&*activations[0], &*activations[1]), ("4", "468.8"), "{said}");
    let ran = tested(&["--json"]);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let directions = &report["transfers"]["activations"];
    assert_eq!(
        (&directions["to_device"]["bytes"], &directions["to_host"]["count"]),
        (&480_000.into(), &0.into())
    );
}

use obsdiff_proto::ByteSize;
use serde_json::Value;

use crate::{asset, job, obsdiff, printed, text};

/// By which linears are not surveyed.
const UNIFORM: &str = "sparsity.allocation=uniform";

/// What `plan` prints for the small pipeline, whose linears are not surveyed, with these overrides.
fn plan(sets: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let mut args = vec!["plan", job.to_str().unwrap(), "--set", UNIFORM];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let printed = printed(&asset(""), &args);
    assert!(!dir.path().join("out").exists());
    printed
}

/// The rows of packages: the second column.
fn units(plan: &str) -> Vec<&str> {
    let rows = plan
        .lines()
        .skip_while(|line| !line.starts_with("---"))
        .skip(1)
        .take_while(|line| !line.starts_with("---"));
    rows.map(|row| row.split_whitespace().nth(1).unwrap()).collect()
}

#[test]
fn a_plan_shows_packages_totals_and_memory() {
    let plan = plan(&["packages.count=4", "packages.balance=units"]);
    assert_eq!(units(&plan), ["1-6", "7-12", "13-18", "19-24"]);
    assert!(plan.contains("24 units, 69 linears"), "{plan}");
    assert!(plan.contains("100 prompts x 25 steps at guidance 7, 64 image and 48 text tokens"), "{plan}");
    let all: Vec<&str> =
        plan.lines().find(|line| line.starts_with("all ")).unwrap().split_whitespace().collect();
    // 45 sites, 69 linears, 2.21 M weights, and 4 packages of 100 prompts x 25 steps x 2.
    assert_eq!((&all[1..6], all[8]), (&["24", "45", "69", "2.21", "M"][..], "20000"), "{plan}");
    assert!(plan.contains("Peak memory, predicted: "), "{plan}");
}

#[test]
fn a_plan_counts_what_is_surveyed_and_pruned_once() {
    let plan = plan(&["sparsity.allocation=global"]);
    let row = |start: &str| {
        let row = plan.lines().find(|line| line.starts_with(start)).unwrap();
        row.trim_start_matches(start).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for packages in ["1 (survey) ", "2 "] {
        assert_eq!(row(packages)[..5], ["1-24", "45", "69", "2.21", "M"], "{plan}");
    }
    assert_eq!(row("all ")[..5], ["24", "45", "69", "2.21", "M"], "{plan}");
}

#[test]
fn a_plan_shows_what_all_grams_come_to() {
    let plan = plan(&[]);
    let line = |start: &str| plan.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert!(line("Grams of all sites: 45, ").ends_with(" as squares of f32"), "{plan}");
    assert!(line("A step of a prompt: ").contains("FLOP of forward calls, "), "{plan}");
    let fewest = "Fewest packages by the memory of their Grams: 1 for 24 GB, 1 for 48 GB, 1 for 80 GB";
    assert_eq!(line("Fewest packages"), fewest, "{plan}");
    assert!(line("model ").contains("% of them in what can be pruned: 24 units, 69 linears"), "{plan}");
}

#[test]
fn memory_and_rules_shape_the_plan() {
    // The text stream of the last block ends at its attention, so its hidden features take half of another block's.
    assert_eq!(units(&plan(&["packages.memory=3MiB", "packages.balance=units"])).len(), 6);
    assert_eq!(units(&plan(&["packages.memory=1GiB"])), ["1-24"]);
    let skipped =
        plan(&["sparsity.rules[0].match=*.attn.*", "sparsity.rules[0].skip=true", "packages.count=12"]);
    // Two of each block's four units are left.
    assert_eq!(units(&skipped).len(), 12);
    let magnitude = ["sparsity.method=magnitude", "sparsity.refine=0"];
    assert!(plan(&magnitude).contains("magnitude without refinement needs no activations"));
    assert!(plan(&magnitude[..1]).contains("50% unstructured by magnitude, refined by 5 steps"));
}

/// The rows of numbers of packages.
fn counts(plan: &str) -> Vec<&str> {
    let rows = plan.lines().skip_while(|line| !line.starts_with("packages "));
    rows.skip(2).take_while(|line| line.starts_with(|c: char| c.is_ascii_digit())).collect()
}

#[test]
fn a_plan_shows_what_other_numbers_of_packages_would_take() {
    let one = plan(&[]);
    let rows = counts(&one);
    let first = |row: &&str| row.split_whitespace().next().unwrap().to_owned();
    assert_eq!(rows.iter().map(first).collect::<Vec<_>>(), ["1", "2", "4", "8", "16", "24"], "{one}");
    assert!(rows[0].starts_with("1 (this job)") && rows[0].contains("  5000  "), "{one}");
    assert!(rows[2].contains("  20000  ") && rows[2].trim_end().ends_with(['s', 'n']), "{one}");
    let three = plan(&["packages.count=3"]);
    assert!(counts(&three)[2].starts_with("3 (this job)"), "{three}");
}

#[test]
fn a_plan_of_a_job_that_does_not_fit_exits_with_2_and_says_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let plan = |memory: &str, sets: &[&str]| {
        let mut args = vec!["plan", job.to_str().unwrap(), "--memory", memory];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let output = obsdiff(&asset(""), &args, &[]);
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        assert!(printed.contains("Other numbers of packages"), "{printed}{said}");
        // What does not fit is no job that a script may go on with.
        assert_eq!(output.status.code(), Some(if said.is_empty() { 0 } else { 2 }), "{said}");
        (printed, said)
    };
    // Small batches leave Grams the largest part of what the job holds.
    let small = "calibration.shard_size=1";
    let peak: f64 = {
        let (plan, said) = plan("1GiB", &[small]);
        assert_eq!(said, "");
        let peak = plan.split("Peak memory, predicted: ").nth(1).unwrap();
        peak.split(" MiB").next().unwrap().parse().unwrap()
    };
    let tight = format!("{}MiB", peak - 2.0);
    let (_, said) = plan(&tight, &[small]);
    assert!(said.contains("job.toml: packages.count: is 1, with which Grams take"), "{said}");
    assert!(said.contains("give packages.count = 2 or more"), "{said}");
    assert_eq!(plan(&tight, &[small, "packages.count=2"]).1, "");
    assert!(plan("1MiB", &[]).1.contains("no number of packages is enough"));
    assert_eq!(plan("1MiB", &["sparsity.method=magnitude", "sparsity.refine=0"]).1, "");
}

#[test]
fn a_plan_notes_that_no_prompt_is_held_out() {
    assert!(plan(&["calibration.count=2000"]).contains("Note: no prompt of shapes-prompts.txt is held out"));
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let environment = [("OBSDIFF_SPARSITY__RATIO", "0.25")];
    let summary = |args: &[&str]| text(&obsdiff(&asset(""), args, &environment).stdout);
    let job = job.to_str().unwrap();
    assert!(summary(&["plan", job]).contains("25% unstructured, of each linear"));
    assert!(
        summary(&["plan", job, "--set", "sparsity.ratio=0.75"]).contains("75% unstructured, of each linear")
    );
}

/// The table of times has a row for each package and one for all; how near they come is printed by `cargo bench --bench times`.
#[test]
fn a_plan_gives_the_times_of_each_package_by_so_many_workers() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let plan = |workers: &str| {
        let args = ["plan", job.to_str().unwrap(), "--set", "packages.count=2", "--set", UNIFORM];
        printed(&asset(""), &[&args[..], &["--bandwidth", "1GB", "--workers", workers]].concat())
    };
    let one = "Time of 1 worker like this machine, on its processor:";
    for (workers, who) in [("1", one), ("2", "Time of 2 workers like this machine, on its processor, ")] {
        let plan = plan(workers);
        assert!(plan.contains(who), "{plan}");
        assert!(
            plan.contains(
                "Other numbers of packages, with the time of computing on this machine's processor:"
            ),
            "{plan}"
        );
        let rows = plan.lines().skip_while(|line| !line.starts_with("Time of ")).skip(3);
        let times =
            |row: &str| row.split_whitespace().filter(|word| ["s", "ms", "min"].contains(word)).count();
        let rows: Vec<usize> = rows.take_while(|row| !row.starts_with('-')).map(times).collect();
        assert!(rows.len() == 2 && rows.iter().all(|times| *times >= 4), "{plan}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_plan_for_a_gpu_measures_that_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let job = job.to_str().unwrap();
    let sets = ["sparsity.pattern=2:4", "sparsity.ratio=", "calibration.height=32", "calibration.width=32"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let plan = |device: &str| {
        let arguments = [&["plan", job, "--workers", "2", "--device", device], &sets[..]].concat();
        obsdiff(&asset(""), &arguments, &[("LD_LIBRARY_PATH", libraries)])
    };
    let planned = plan("cuda");
    let said = text(&planned.stdout);
    assert!(planned.status.success(), "{}", text(&planned.stderr));
    for words in
        ["Time of 2 workers like this machine, on its cuda:0, ", "with the time of computing on cuda:0:"]
    {
        assert!(said.contains(words), "{said}");
    }
    let refused = plan("cuda:7");
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("--device: cannot be cuda:7"), "{said}");
}

/// The forward calls of this job are of bf16, its solving is of f32. Each product of the fake GPU takes half a second, and the processor is
/// much faster.
#[cfg(feature = "cuda")]
#[test]
fn the_rates_of_a_plan_for_a_gpu_are_those_of_products_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let plan = |milliseconds: &str, arguments: &[&str]| {
        let fixed = ["plan", job.to_str().unwrap(), "--set", UNIFORM, "--set", "model.dtype=bf16"];
        let environment = [("LD_LIBRARY_PATH", libraries), ("FAKE_CUBLAS_MILLISECONDS", milliseconds)];
        let planned = obsdiff(&asset(""), &[&fixed[..], arguments].concat(), &environment);
        assert!(planned.status.success(), "{}", text(&planned.stderr));
        text(&planned.stdout)
    };
    let rates = |milliseconds: &str, device: &str| -> Value {
        let plan: Value = serde_json::from_str(&plan(milliseconds, &["--json", "--device", device])).unwrap();
        plan["rates"].clone()
    };
    let products = |rates: &Value| {
        ["forward", "solve"].map(|of| rates[format!("{of}_flops_per_second")].as_f64().unwrap())
    };
    // 256 x 256 x 256, the smallest, in half a second.
    let most = 2.0 * 256f64.powi(3) / 0.5;
    let slow = rates("500", "cuda");
    assert!(products(&slow).iter().all(|rate| (0.1 * most..most).contains(rate)), "{slow}");
    let quick = rates("0", "cuda");
    assert!(products(&quick).iter().all(|rate| *rate > most), "{quick}");
    for (of, share) in [("forward", 0.6), ("gram", 0.769), ("sweep", 0.625), ("products", 0.625)] {
        assert_eq!(quick["shares"][of]["share"], share, "{quick}");
        assert!(quick["shares"][of]["from"].as_str().unwrap().starts_with("target: "), "{quick}");
    }
    assert!(quick["shares"]["measured_on"].is_null(), "{quick}");
    let processor = rates("500", "cpu");
    assert!(products(&processor).iter().all(|rate| *rate > most), "{processor}");
    assert_eq!(processor["shares"]["forward"]["share"], 0.7);
    let said = plan("0", &["--device", "cuda"]);
    let words = "Its products run at ";
    let said: Vec<&str> = said.lines().skip_while(|line| !line.starts_with(words)).take(3).collect();
    assert!(said.len() == 3 && said.iter().all(|line| line.chars().count() <= 80), "{said:?}");
    assert!(said[1].ends_with("forward calls reach 60%, Grams 77%,"), "{said:?}");
    assert_eq!(said[2], "sweeps 62%, products of solving 62%: assumed, not measured");
    assert!(!plan("0", &["--device", "cpu"]).contains(words));
}

/// Text and JSON come from two runs of the command, so figures that it measures are compared by their places alone.
#[test]
fn the_plan_as_json_has_the_figures_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path());
    let args = [
        "plan",
        job.to_str().unwrap(),
        "--set",
        UNIFORM,
        "--set",
        "packages.count=3",
        "--memory",
        "8GiB",
        "--workers",
        "2",
    ];
    let text = printed(&asset(""), &args);
    let plan = printed(&asset(""), &[&args[..], &["--json"]].concat());
    let plan: Value = serde_json::from_str(&plan).unwrap_or_else(|e| panic!("{e}: {plan}"));
    let size = |bytes: &Value| ByteSize(bytes.as_u64().unwrap()).to_string();
    let has = |line: String| assert!(text.lines().any(|other| other == line), "no \"{line}\" in {text}");

    assert_eq!(plan["job"]["packages"]["count"], 3);
    let model = &plan["model"];
    assert_eq!((&model["units"], &model["linears"]), (&24.into(), &69.into()));
    let first_cells = |start: &str| -> Vec<String> {
        let row = text.lines().find(|line| line.starts_with(start)).unwrap();
        row.split_whitespace().take(4).map(str::to_owned).collect()
    };
    let packages = plan["packages"].as_array().unwrap();
    assert_eq!(packages.len(), 3);
    for (place, package) in packages.iter().enumerate() {
        assert_eq!(package["package"], place);
        let unit = |key: &str| package[key].as_u64().unwrap() + 1;
        let row = [
            (place + 1).to_string(),
            format!("{}-{}", unit("first_unit"), unit("last_unit")),
            package["sites"].to_string(),
            package["linears"].to_string(),
        ];
        assert_eq!(first_cells(&format!("{} ", place + 1)), row);
    }
    assert_eq!(plan["total"]["passes"], 15_000);
    let memory = &plan["memory"];
    has(format!("Peak memory, predicted: {}", size(&memory["peak_bytes"])));
    let parts = ["transformer", "prompts", "grams", "activations", "solver", "program"];
    let parts: u64 = parts.iter().map(|part| memory[format!("{part}_bytes")].as_u64().unwrap()).sum();
    assert_eq!(memory["peak_bytes"], parts);
    let traffic = &plan["traffic"];
    has(format!(
        "Traffic of each worker past the first: {} of Grams sent, {} of weights taken",
        size(&traffic["sent_gram_bytes"]),
        size(&traffic["taken_weight_bytes"])
    ));
    assert_eq!(plan["whole_model"]["grams"], 45);
    assert_eq!(plan["whole_model"]["fewest_packages"][0]["memory_bytes"], 24_000_000_000_u64);
    let conditioning = &plan["conditioning"];
    let words = format!(
        "Conditioning of {} prompts and the empty one: {} in ",
        conditioning["prompts"],
        size(&conditioning["bytes"])
    );
    assert!(text.contains(&words), "no \"{words}\" in {text}");

    let others = plan["other_package_counts"].as_array().unwrap();
    let rows = counts(&text);
    assert_eq!(others.len(), rows.len());
    for (other, row) in others.iter().zip(rows) {
        assert_eq!(other["of_job"], row.contains(" (this job)"));
        for cell in
            [other["packages"].to_string(), size(&other["gram_bytes"]), size(&other["peak_memory_bytes"])]
        {
            assert!(row.contains(&cell), "{row} has no {cell}");
        }
        assert!(other["seconds"].as_f64().unwrap() > 0.0);
    }
    let times = &plan["times"];
    assert_eq!((&times["workers"], &times["bandwidth_bytes_per_second"]), (&2.into(), &1_000_000_000.into()));
    let seconds = |times: &Value| times["seconds"].as_f64().unwrap();
    let sum: f64 = times["packages"].as_array().unwrap().iter().map(seconds).sum();
    assert!((sum - seconds(&times["total"])).abs() < 1e-6 * sum, "{times}");
}

//! `compare` and `sample` go by the job that pruned, and JSON says what the text says.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::setting::{RUN, Setting, listing};
use crate::{obsdiff, printed};

/// The error of final latents.
fn error_line(text: &str) -> &str {
    let (_, error) = text.split_once("final latents differ by ").expect("no error is printed");
    error.split_once(' ').unwrap().0
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let printed = printed(folder, args);
    serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"))
}

/// A setting whose job is run, with further arguments, and what it printed.
fn pruned(sets: &[&str]) -> (Setting, String) {
    let setting = Setting::new(&[]);
    let text = printed(setting.dir.path(), &[RUN, sets].concat());
    (setting, text)
}

#[test]
fn a_comparison_by_the_output_alone_finds_the_error_that_the_run_told() {
    let cases: [&[&str]; 3] = [
        &["--set", "calibration.guidance=3.5", "--set", "calibration.seed=5"],
        &["--set", "model.dtype=bf16", "--set", "sparsity.ratio=0.6", "--set", "calibration.shard_size=1"],
        &["--set", "sparsity.pattern=structured", "--set", "sparsity.ratio=0.3"],
    ];
    for sets in cases {
        let (setting, ran) = pruned(sets);
        let folder = setting.dir.path();
        // Neither the job nor its prompts are needed.
        fs::remove_file(folder.join("job.toml")).unwrap();
        fs::remove_file(folder.join("prompts.txt")).unwrap();
        let compared = printed(folder, &["compare", "pipeline", "out", "--quiet"]);
        assert_eq!(error_line(&compared), error_line(&ran), "{sets:?}: {compared}{ran}");
    }
}

#[test]
fn options_are_stronger_than_the_job_that_pruned() {
    let (setting, ran) = pruned(&[]);
    let folder = setting.dir.path();
    let compare =
        |args: &[&str]| json(folder, &[&["compare", "pipeline", "out", "--quiet", "--json"], args].concat());
    let own = compare(&[]);
    let settings = &own["settings"];
    assert_eq!(
        (&settings["steps"], &settings["seed"]),
        (&2.into(), &2.into()),
        "of its two held-out prompts"
    );
    assert_eq!(error_line(&ran), format!("{:.4}", own["relative_error"].as_f64().unwrap()));
    let other =
        compare(&["--steps", "3", "--seed", "7", "--guidance", "1.5", "--batch", "1", "--count", "1"]);
    let settings = &other["settings"];
    assert_eq!((&settings["steps"], &settings["seed"]), (&3.into(), &7.into()));
    assert_eq!((&settings["guidance"], &settings["batch"]), (&1.5.into(), &1.into()));
    assert_eq!(other["prompts"].as_array().unwrap().len(), 1);
    // Prompts of one's own start from the job's seed.
    let given = compare(&["--prompt", "a red circle"]);
    assert_eq!(given["settings"]["seed"], 0);
    assert_eq!(given["prompts"][0]["prompt"], "a red circle");
}

#[test]
fn the_held_out_prompts_are_sampled_where_none_is_given() {
    let (setting, _) = pruned(&[]);
    let folder = setting.dir.path();
    let listed = printed(folder, &["sample", "out", "--out", "pictures", "--quiet"]);
    let record: Value = serde_json::from_slice(&fs::read(setting.path("out/pruning.json")).unwrap()).unwrap();
    let held_out: Vec<&str> =
        record["held_out"].as_array().unwrap().iter().map(|prompt| prompt.as_str().unwrap()).collect();
    let prompts: Vec<&str> = listed.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    assert_eq!((prompts.len(), &prompts), (2, &held_out));
}

#[test]
fn a_record_of_another_release_is_refused_and_a_file_of_others_is_passed_over() {
    let (mut setting, _) = pruned(&[]);
    setting.write("out/pruning.json", r#"{"obsdiff": "9.0", "job": {}}"#);
    let before = listing(setting.dir.path());
    let output = obsdiff(setting.dir.path(), &["compare", "pipeline", "out"], &[]);
    let said = crate::text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("out/pruning.json: is no record that this release of obsdiff can read"), "{said}");
    assert_eq!(listing(setting.dir.path()), before);
    setting.write("out/pruning.json", r#"{"amount": 0.3}"#);
    let compared = json(
        setting.dir.path(),
        &["compare", "pipeline", "out", "--quiet", "--json", "--prompt", "a", "--steps", "2"],
    );
    assert_eq!(compared["settings"]["guidance"], 7.0, "as diffusers has it");
}

#[test]
fn what_a_run_prints_as_json_is_its_record_and_what_its_text_tells() {
    let (setting, _) = pruned(&["--set", "output.path=text"]);
    let folder = setting.dir.path();
    let run = json(folder, &[RUN, &["--json"]].concat());
    let record: Value = serde_json::from_slice(&fs::read(setting.path("out/pruning.json")).unwrap()).unwrap();
    assert_eq!(run["record"], record, "all of it is in the output");
    let linears = record["linears"].as_array().unwrap();
    let zeros: u64 = linears.iter().map(|linear| linear["zeros"].as_u64().unwrap()).sum();
    assert_eq!(run["zeros"], zeros);
    let measured = &record["measured"];
    assert!(measured["peak_memory_bytes"].as_u64().unwrap() > 10 << 20, "{measured}");
    let number = |value: &Value| value.as_f64().unwrap();
    let phases = measured["phases"].as_array().unwrap();
    let sum: f64 = phases.iter().map(|phase| number(&phase["seconds"])).sum();
    assert!((sum + number(&measured["other_seconds"]) - number(&measured["seconds"])).abs() < 1e-6);
    for phase in ["encode text", "held-out prompts"] {
        assert!(
            phases.iter().any(|p| p["phase"] == phase && number(&p["seconds"]) > 0.0),
            "{phase}: {measured}"
        );
    }
    let errors = &measured["held_out"];
    assert_eq!(errors["prompt_relative_errors"].as_array().unwrap().len(), 2);
    assert!(number(&errors["relative_error"]) > 0.0);
}

/// What differs between two runs of a job is in `measured` alone.
#[test]
fn the_same_figures_are_told_as_text_and_as_json() {
    let (setting, text) = pruned(&[]);
    let folder = setting.dir.path();
    let run = json(folder, &[RUN, &["--json", "--set", "output.path=out2"]].concat());
    let lines = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    let share = 100.0 * run["zeros"].as_f64().unwrap() / run["weights"].as_f64().unwrap();
    let linears = run["record"]["linears"].as_array().unwrap();
    let headline = lines(&format!("Pruned {share:.2}% of "));
    assert!(headline.contains(&format!(" weights in {} linears: ", linears.len())), "{headline}");
    let error = run["record"]["measured"]["held_out"]["relative_error"].as_f64().unwrap();
    let told_error = lines("error     ");
    assert!(
        told_error.contains(&format!(" {error:.4} ")) && told_error.ends_with(" on 2 held-out prompts"),
        "{told_error}"
    );
    let named: Vec<&Value> =
        linears.iter().filter(|linear| text.contains(linear["name"].as_str().unwrap())).collect();
    assert_eq!(named.len(), 5, "{text}");
    for linear in named {
        let row = lines(linear["name"].as_str().unwrap());
        let error = format!("{:.5}", linear["relative_error"].as_f64().unwrap());
        assert!(row.split_whitespace().any(|cell| cell == error), "{row}");
    }
    let compared = json(folder, &["compare", "pipeline", "out", "--quiet", "--json"]);
    let table = printed(folder, &["compare", "pipeline", "out", "--quiet"]);
    let psnr = |value: &Value| value.as_f64().map_or("equal".to_owned(), |psnr| format!("{psnr:.2} dB"));
    // Long ones are cut off in the table.
    let cut = |prompt: &Value| prompt.as_str().unwrap().chars().take(50).collect::<String>();
    for prompt in compared["prompts"].as_array().unwrap() {
        let end =
            format!("{:.4}  {}", prompt["relative_error"].as_f64().unwrap(), psnr(&prompt["psnr_decibels"]));
        let row = table.lines().find(|line| line.starts_with(&cut(&prompt["prompt"]))).unwrap();
        assert!(row.ends_with(&end), "{row} has not {end}");
    }
    let mean = format!(
        "{:.4}  {}",
        compared["mean_relative_error"].as_f64().unwrap(),
        psnr(&compared["mean_psnr_decibels"])
    );
    assert!(table.lines().any(|line| line.starts_with("mean ") && line.ends_with(&mean)), "{table}");
}

#[test]
fn a_baseline_is_what_a_job_by_magnitude_finds_and_pictures_are_as_compared() {
    let cases: [(&[&str], &str); 3] = [
        (&[], "magnitude"),
        (
            &["--set", "sparsity.ratio=", "--set", "sparsity.pattern=2:4", "--set", "sparsity.allocation="],
            "magnitude",
        ),
        (
            &[
                "--set",
                "sparsity.pattern=structured",
                "--set",
                "sparsity.allocation=",
                "--set",
                "sparsity.ratio=0.3",
            ],
            "l1",
        ),
    ];
    for (sets, method) in cases {
        let setting = Setting::new(&[]);
        let folder = setting.dir.path();
        let own = json(folder, &[RUN, sets, &["--baseline", "--json"]].concat());
        let by = format!("sparsity.method={method}");
        // Heads and neurons are never refined.
        let refine: &[&str] = if method == "l1" { &[] } else { &["--set", "sparsity.refine=0"] };
        let simple = ["--json", "--set", &by, "--set", "output.path=simple", "--set", "packages.count=1"];
        let simple = json(folder, &[RUN, sets, refine, &simple].concat());
        let (measured, of_simple) = (&own["record"]["measured"], &simple["record"]["measured"]);
        assert_eq!(measured["baseline"]["held_out"], of_simple["held_out"], "{sets:?}");
        assert_eq!(measured["baseline"]["method"], method);
        assert_eq!(
            (&measured["baseline"]["zeros"], &measured["baseline"]["weights"]),
            (&simple["zeros"], &simple["weights"])
        );
        assert!(of_simple.get("baseline").is_none(), "it was not asked for");
        let pictures = &measured["held_out"]["pictures"];
        let compared = json(folder, &["compare", "pipeline", "out", "--quiet", "--json"]);
        assert_eq!(
            (&pictures["count"], &pictures["mean_psnr_decibels"]),
            (&2.into(), &compared["mean_psnr_decibels"])
        );
        assert!(pictures["mean_psnr_decibels"].as_f64().unwrap() > 5.0, "{pictures}");
    }
}

#[test]
fn the_summary_says_in_words_what_the_error_means() {
    let (setting, text) = pruned(&["--baseline"]);
    let record: Value = serde_json::from_slice(&fs::read(setting.path("out/pruning.json")).unwrap()).unwrap();
    let measured = &record["measured"];
    let number = |value: &Value| value.as_f64().unwrap();
    let (own, baseline) = (&measured["held_out"], &measured["baseline"]);
    let psnr = number(&own["pictures"]["mean_psnr_decibels"]);
    let levels = 255.0 / 10f64.powf(psnr / 20.0);
    let lines = [
        format!("pictures  PSNR {psnr:.2} dB on these prompts (colours {levels:.1} of 255 levels off)"),
        format!(
            "baseline  magnitude pruning (50.00% of the weights): error {:.4}, PSNR {:.2} dB",
            number(&baseline["held_out"]["relative_error"]),
            number(&baseline["held_out"]["pictures"]["mean_psnr_decibels"])
        ),
    ];
    for line in lines {
        assert!(text.lines().any(|found| found.starts_with(&line)), "\"{line}\" is not in {text}");
    }
}

#[test]
fn a_pipeline_whose_pictures_cannot_be_decoded_is_pruned_all_the_same() {
    let mut setting = Setting::new(&[]);
    setting.replace("pipeline/vae/config.json", "\"act_fn\": \"silu\"", "\"act_fn\": \"mish\"");
    let loud: Vec<&str> = RUN.iter().copied().filter(|argument| *argument != "--quiet").collect();
    let output = obsdiff(setting.dir.path(), &loud, &[]);
    let (said, printed) = (crate::text(&output.stderr), crate::text(&output.stdout));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("pictures are not compared: pipeline/vae/config.json"), "{said}");
    assert!(printed.contains("on 2 held-out prompts") && !printed.contains("PSNR"), "{printed}");
}

#[test]
fn a_baseline_that_cannot_be_told_is_refused_before_any_work() {
    let cases: [(&[&str], &str); 2] = [
        (
            &["--set", "evaluation.count=0"],
            "error: --baseline: compares on held-out prompts, but the job holds out none",
        ),
        (
            &[
                "--set",
                "sparsity.pattern=structured",
                "--set",
                "sparsity.ratio=",
                "--set",
                "sparsity.allocation=",
                "--set",
                "sparsity.budget=0.2",
            ],
            "error: --baseline: cannot be given for sparsity.budget",
        ),
    ];
    for (sets, says) in cases {
        let setting = Setting::new(&[]);
        let before = listing(setting.dir.path());
        let output = obsdiff(setting.dir.path(), &[RUN, sets, &["--baseline"]].concat(), &[]);
        let said = crate::text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with(says), "{said}");
        assert_eq!(listing(setting.dir.path()), before);
    }
}

//! Kept Grams: what `solve` makes of them is what a whole job makes, byte for byte.

use std::fs;
use std::path::Path;

use crate::{asset, job, obsdiff, printed, text};

/// A small job whose Grams can be kept.
pub(crate) const SMALL: [&str; 8] = [
    "sparsity.method=admm",
    "sparsity.allocation=global",
    "calibration.count=3",
    "calibration.steps=2",
    "calibration.shard_size=2",
    "calibration.height=32",
    "calibration.width=32",
    "evaluation.count=2",
];

/// A command line with `--set` before each of the sets.
pub(crate) fn with_sets<'a>(command: &[&'a str], sets: &[&'a str]) -> Vec<&'a str> {
    command.iter().copied().chain(sets.iter().flat_map(|set| ["--set", *set])).collect()
}

/// The weights of a pruned pipeline.
pub(crate) fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
}

/// The line that says how far the pruned model is from the dense one.
fn found(summary: &str) -> &str {
    summary.lines().find(|line| line.starts_with("error     final latents differ by ")).unwrap()
}

/// Runs a small job that keeps its Grams in `folder/grams`.
pub(crate) fn keep(folder: &Path, sets: &[&str]) {
    let file = job(folder);
    let grams = format!("output.grams={}", folder.join("grams").display());
    let arguments = with_sets(&with_sets(&["run", file.to_str().unwrap()], &SMALL), sets);
    printed(&asset("."), &with_sets(&arguments, &[&grams]));
}

/// Solves by the kept Grams and runs the whole job, with the same sets: weights and the comparison must be the same.
fn same_as_whole(folder: &Path, sets: &[&str], workers: &str) {
    let (solved, whole) = (folder.join("solved"), folder.join("whole"));
    let output = format!("output.path={}", solved.display());
    let grams = folder.join("grams");
    let arguments = with_sets(&["solve", grams.to_str().unwrap(), "--workers", workers], sets);
    let run = obsdiff(&asset("."), &with_sets(&arguments, &[&output]), &[]);
    let (of_solved, progress) = (text(&run.stdout), text(&run.stderr));
    assert!(run.status.success(), "{sets:?}: {progress}");
    assert!(progress.contains("read Grams") && !progress.contains("calibrate"), "{progress}");
    let file = folder.join("job.toml");
    let output = format!("output.path={}", whole.display());
    let own: Vec<&str> = SMALL
        .into_iter()
        .filter(|set| !sets.contains(&"sparsity.pattern=2:4") || !set.contains("allocation"))
        .collect();
    let arguments = with_sets(&with_sets(&["run", file.to_str().unwrap()], &own), sets);
    let unset: &[&str] = if sets.contains(&"sparsity.pattern=2:4") { &["sparsity.ratio="] } else { &[] };
    let of_whole = printed(&asset("."), &with_sets(&with_sets(&arguments, unset), &[&output]));
    assert_eq!(found(&of_solved), found(&of_whole), "{sets:?}");
    assert!(weights(&solved) == weights(&whole), "{sets:?}: the weights differ");
    fs::remove_dir_all(solved).unwrap();
    fs::remove_dir_all(whole).unwrap();
}

#[test]
fn solving_by_kept_grams_gives_the_bytes_of_the_whole_job() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &["packages.count=2"]);
    assert!(dir.path().join("grams/grams.json").exists());
    same_as_whole(dir.path(), &["sparsity.ratio=0.6", "packages.count=1"], "1");
    same_as_whole(dir.path(), &["sparsity.ratio=0.6", "packages.count=1"], "2");
    same_as_whole(dir.path(), &["sparsity.pattern=2:4", "sparsity.dense=0.2", "packages.count=1"], "1");
    same_as_whole(
        dir.path(),
        &["sparsity.allocation=uniform", "sparsity.method=obs", "packages.count=1"],
        "1",
    );
}

#[test]
fn grams_of_floats_are_kept_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let floats = "hessian.accumulate=f32";
    keep(dir.path(), &[floats, "sparsity.allocation=uniform"]);
    let sets = [floats, "sparsity.allocation=uniform", "sparsity.ratio=0.7"];
    same_as_whole(dir.path(), &sets, "1");
}

/// What a command that is refused before any work says.
pub(crate) fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = obsdiff(folder, arguments, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    said
}

#[test]
fn grams_gathered_package_by_package_are_kept_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &["sparsity.allocation=uniform", "packages.count=2"]);
    let grams = dir.path().join("grams");
    let output = format!("output.path={}", dir.path().join("again").display());
    let run = obsdiff(&asset("."), &with_sets(&["solve", grams.to_str().unwrap()], &[&output]), &[]);
    let progress = text(&run.stderr);
    assert!(run.status.success() && progress.contains("near a whole run's, not equal to it"), "{progress}");
    // Nothing differs from the first job, so neither do the weights.
    assert!(weights(&dir.path().join("again")) == weights(&dir.path().join("out")));
}

#[test]
fn what_kept_grams_cannot_serve_is_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &["sparsity.rules=[{ match = \"transformer_blocks.0.*\", skip = true }]"]);
    let grams = dir.path().join("grams");
    let output = format!("output.path={}", dir.path().join("again").display());
    let kept = grams.to_str().unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["calibration.steps=3"], "--set calibration.steps: is 3, but it was 2 for the Grams of"),
        (&["hessian.accumulate=f32"], "--set hessian.accumulate: is \"f32\", but it was \"exact\" for"),
        (
            &["evaluation.prompts=other.txt"],
            "--set evaluation.prompts: is \"other.txt\", but it was absent for",
        ),
        (
            &["sparsity.pattern=structured", "sparsity.ratio=0.2"],
            "--set sparsity.pattern: is \"structured\", but the Grams of",
        ),
        (&["sparsity.rules="], "holds no Gram of"),
        (&["output.grams=elsewhere"], "output.grams: has no use beside calibration.grams"),
        (&["model.path=shapes-flux"], "which is not the model that the Grams of"),
    ];
    for (sets, says) in cases {
        let arguments = with_sets(&with_sets(&["solve", kept], sets), &[&output]);
        let said = refused(&asset("."), &arguments);
        assert!(said.contains(says), "{sets:?}: {said}");
    }
    assert!(refused(&asset("."), &["solve", kept]).contains("output.path: is missing"));
    let inside = format!("output.path={}", grams.join("out").display());
    assert!(
        refused(&asset("."), &with_sets(&["solve", kept], &[&inside])).contains("lies in calibration.grams")
    );
    assert!(
        refused(dir.path(), &with_sets(&["solve", "nowhere"], &[&output]))
            .contains("nowhere: is no directory")
    );
    assert!(
        refused(dir.path(), &with_sets(&["solve", "~/grams"], &[&output])).contains("only a shell expands")
    );
}

#[test]
fn a_place_for_grams_must_be_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = job(dir.path());
    let run = |place: &Path| {
        let grams = format!("output.grams={}", place.display());
        refused(&asset("."), &with_sets(&with_sets(&["run", file.to_str().unwrap()], &SMALL), &[&grams]))
    };
    let foreign = dir.path().join("thesis");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
    assert!(run(&foreign).contains("holds thesis.tex, which obsdiff did not write"));
    assert!(run(&dir.path().join("out.state")).contains("is the same as output.state"));
    assert!(run(&dir.path().join("out/grams")).contains("lies in output.path"));
    assert_eq!(fs::read_to_string(foreign.join("thesis.tex")).unwrap(), "years of work");
    // Those of a finished job are not replaced.
    keep(dir.path(), &[]);
    fs::remove_dir_all(dir.path().join("out")).unwrap();
    assert!(run(&dir.path().join("grams")).contains("holds Grams already, which obsdiff solve can use"));
    assert!(dir.path().join("grams/grams.json").exists());
}

#[test]
fn a_damaged_or_missing_gram_is_named() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &["sparsity.allocation=uniform"]);
    let grams = dir.path().join("grams");
    let output = format!("output.path={}", dir.path().join("again").display());
    let solve = || {
        let run = obsdiff(&asset("."), &with_sets(&["solve", grams.to_str().unwrap()], &[&output]), &[]);
        assert!(!run.status.success());
        text(&run.stderr)
    };
    let gram = fs::read_dir(grams.join("grams")).unwrap().next().unwrap().unwrap().path();
    let name = format!("grams/{}", gram.file_name().unwrap().to_str().unwrap());
    let mut content = fs::read(&gram).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&gram, &content).unwrap();
    let said = solve();
    assert!(said.contains(&name) && said.contains("is damaged: its content has the digest"), "{said}");
    fs::write(&gram, &content[..content.len() - 8]).unwrap();
    let said = solve();
    assert!(
        said.contains(&name) && said.contains("it was truncated or replaced; run the job that kept"),
        "{said}"
    );
    fs::remove_file(&gram).unwrap();
    let said = solve();
    assert!(said.contains(&name) && said.contains("it is missing"), "{said}");
    fs::write(grams.join("grams.json"), "{").unwrap();
    assert!(solve().contains("grams.json is damaged"));
    fs::remove_file(grams.join("grams.json")).unwrap();
    assert!(solve().contains("holds no grams.json: give the output.grams of a job that is done"));
}

#[test]
fn a_sweep_tells_what_is_expected_and_what_is_found() {
    let dir = tempfile::tempdir().unwrap();
    keep(dir.path(), &[]);
    let (grams, out) = (dir.path().join("grams"), dir.path().join("sweep"));
    let options = ["--ratios", "0.6,0.4", "--patterns", "unstructured,2:4", "--out", out.to_str().unwrap()];
    let sweep = [&["sweep", grams.to_str().unwrap()], &options[..]].concat();
    let predicted = printed(&asset("."), &[&sweep[..], &["--predicted"]].concat());
    let rows = |text: &str| -> Vec<Vec<String>> {
        let rows = text.lines().filter(|line| line.starts_with("unstructured") || line.starts_with("2:4"));
        rows.map(|row| row.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let expected = rows(&predicted);
    let names: Vec<String> = expected.iter().map(|row| row[..2].join(" ")).collect();
    assert_eq!(names, ["unstructured 60.0%", "unstructured 40.0%", "2:4 50.0%"], "{predicted}");
    let error = |row: &[String], column: usize| row[column].parse::<f64>().unwrap();
    assert!(error(&expected[0], 2) > error(&expected[1], 2) && error(&expected[2], 2) > 0.0, "{predicted}");
    let files = ["sweep.csv", "sweep.json", "sweep.png"];
    assert!(files.iter().all(|file| out.join(file).is_file()));
    assert!(refused(&asset("."), &sweep).contains("which exists already: choose another"));
    fs::remove_dir_all(&out).unwrap();

    let run = obsdiff(&asset("."), &sweep, &[]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let all = rows(&text(&run.stdout));
    // The dense model is the same for all points.
    assert_eq!(text(&run.stderr).matches("sample the source: ").count(), 1, "{}", text(&run.stderr));
    assert_eq!(all.len(), 6, "the prediction, then all figures");
    assert_eq!(all[..3], expected[..]);
    let csv = fs::read_to_string(out.join("sweep.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("pattern,ratio,prompts,expected_velocity_error,found_latent_error,zeros"));
    let fields: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    for (fields, row) in fields.iter().zip(&all[3..]) {
        let number = |i: usize| fields[i].parse::<f64>().unwrap();
        assert_eq!(
            [format!("{:.4}", number(3)), format!("{:.4}", number(4))],
            [row[2].clone(), row[3].clone()]
        );
        assert!((number(5) - number(1)).abs() < 1e-3 && number(2) == 3.0, "{csv}");
    }
    // Each is what solving says.
    let output = format!("output.path={}", dir.path().join("again").display());
    let solved = printed(
        &asset("."),
        &with_sets(&["solve", grams.to_str().unwrap()], &["sparsity.ratio=0.4", &output]),
    );
    let same = found(&solved).contains(&format!(" differ by {} ", all[4][3]));
    assert!(same, "{}: {}", found(&solved), all[4][3]);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(out.join("sweep.json")).unwrap()).unwrap();
    assert_eq!(json["points"].as_array().unwrap().len(), 3);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".obsdiff")), "{left:?}");
}

#[test]
fn heads_and_neurons_go_by_kept_grams_as_in_the_whole_job() {
    let dir = tempfile::tempdir().unwrap();
    let file = job(dir.path());
    let structured =
        ["sparsity.pattern=structured", "calibration.count=2", "calibration.steps=2", "evaluation.count=2"];
    let run = |ratio: &str, out: &str, grams: &[&str]| {
        let (ratio, out) =
            (format!("sparsity.ratio={ratio}"), format!("output.path={}", dir.path().join(out).display()));
        let arguments = with_sets(&["run", file.to_str().unwrap()], &structured);
        printed(&asset("."), &with_sets(&with_sets(&arguments, &[&ratio, &out]), grams))
    };
    let grams = dir.path().join("grams");
    run("0.25", "first", &[&format!("output.grams={}", grams.display())]);
    let whole = run("0.4", "whole", &[]);
    let output = format!("output.path={}", dir.path().join("solved").display());
    let sets = ["sparsity.ratio=0.4", &output];
    let solved = printed(&asset("."), &with_sets(&["solve", grams.to_str().unwrap()], &sets));
    assert_eq!(found(&solved), found(&whole));
    assert!(weights(&dir.path().join("solved")) == weights(&dir.path().join("whole")));
    // A job file says the same, and its plan counts no calibration.
    let by_file = format!("calibration.grams={}", grams.display());
    let sets = [
        "sparsity.pattern=structured",
        "sparsity.ratio=0.4",
        "calibration.prompts=",
        "calibration.max_sequence_length=",
        &by_file,
    ];
    let plan = printed(&asset("."), &with_sets(&["plan", file.to_str().unwrap()], &sets));
    assert!(plan.contains(&format!("calibration  none, by the Grams kept in {}", grams.display())), "{plan}");
    let (_, arithmetic) = plan.split_once("Gram work").unwrap();
    let row = arithmetic.lines().find(|line| line.starts_with("1 ")).unwrap();
    assert_eq!(row.matches("  0 FLOP  ").count(), 2, "{row}");
}

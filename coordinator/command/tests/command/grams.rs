//! Kept Grams: what `solve` makes of them is what a whole job makes, byte for byte.

use std::fs;
use std::path::Path;

use crate::{asset, job, obsdiff, text, told};

/// A small job whose Grams can be kept.
const SMALL: [&str; 8] = [
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
fn with_sets<'a>(command: &[&'a str], sets: &[&'a str]) -> Vec<&'a str> {
    command.iter().copied().chain(sets.iter().flat_map(|set| ["--set", *set])).collect()
}

/// The weights of a pruned pipeline.
fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
}

/// The line that says how far the pruned model is from the dense one.
fn found(summary: &str) -> &str {
    summary.lines().find(|line| line.starts_with("final latents on 2 held-out prompts")).unwrap()
}

/// Runs a small job that keeps its Grams in `folder/grams`.
fn keep(folder: &Path, sets: &[&str]) {
    let file = job(folder);
    let grams = format!("output.grams={}", folder.join("grams").display());
    let arguments = with_sets(&with_sets(&["run", file.to_str().unwrap()], &SMALL), sets);
    told(&asset("."), &with_sets(&arguments, &[&grams]));
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
    let of_whole = told(&asset("."), &with_sets(&with_sets(&arguments, unset), &[&output]));
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
fn refused(folder: &Path, arguments: &[&str]) -> String {
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
    keep(
        dir.path(),
        &[
            "sparsity.rules=[{ match = \"*.blocks.0.*\", skip = true }, { match = \"*.0.attn.to_out.0\", skip = true }]",
        ],
    );
    let grams = dir.path().join("grams");
    let output = format!("output.path={}", dir.path().join("again").display());
    let kept = grams.to_str().unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["calibration.steps=3"], "--set calibration.steps: is 3, but the Grams of"),
        (&["hessian.accumulate=f32"], "--set hessian.accumulate: is \"f32\", but the Grams of"),
        (&["evaluation.prompts=other.txt"], "--set evaluation.prompts: is \"other.txt\", but the Grams of"),
        (
            &["sparsity.pattern=structured", "sparsity.ratio=0.2"],
            "--set sparsity.pattern: is \"structured\", but the Grams of",
        ),
        (&["sparsity.rules="], "holds no Gram of"),
        (&["output.grams=elsewhere"], "output.grams: has no use beside calibration.grams"),
        (&["model.path=shapes-flux"], "is not the file that the Grams of"),
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

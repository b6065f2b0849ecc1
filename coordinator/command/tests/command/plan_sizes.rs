//! `plan` on published sizes, of which only the transformer's configuration is there.

use std::fs;
use std::path::Path;

use crate::{asset, obsdiff, printed, text};

fn config(name: &str) -> String {
    asset("published").join(name).join("config.json").display().to_string()
}

fn plan(name: &str, sets: &[&str]) -> String {
    let config = config(name);
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    printed(Path::new("."), &["plan", &config].into_iter().chain(sets).collect::<Vec<_>>())
}

fn line<'a>(plan: &'a str, start: &str) -> &'a str {
    plan.lines().find(|line| line.starts_with(start)).unwrap_or_default()
}

/// Grams, what they take as kept and as squares, and the fewest packages for 24, 48 and 80 GB.
#[test]
fn published_sizes_are_planned_from_the_configuration_alone() {
    let published = [
        ("sd3-medium", "2.03 B", "189, 7.9 GiB as they are kept, 7.9 GiB (8.44 GB)", [1, 1, 1]),
        ("sd3.5-medium", "2.24 B", "215, 8.1 GiB as they are kept, 8.1 GiB (8.68 GB)", [1, 1, 1]),
        ("sd3.5-large", "8.06 B", "301, 31.4 GiB as they are kept, 31.4 GiB (33.74 GB)", [2, 1, 1]),
        ("flux.1-dev", "11.90 B", "228, 60.1 GiB as they are kept, 60.1 GiB (64.55 GB)", [3, 2, 1]),
        ("flux.1-schnell", "11.89 B", "228, 60.1 GiB as they are kept, 60.1 GiB (64.55 GB)", [3, 2, 1]),
    ];
    for (name, parameters, grams, [small, middle, large]) in published {
        let plan = plan(name, &[]);
        assert!(line(&plan, "model ").contains(&format!("({parameters} parameters, ")), "{plan}");
        assert!(line(&plan, "sparsity ").contains("50% unstructured"), "{plan}");
        assert_eq!(line(&plan, "Grams of all"), format!("Grams of all sites: {grams} as squares of f32"));
        let fewest = format!("{small} for 24 GB, {middle} for 48 GB, {large} for 80 GB");
        assert!(line(&plan, "Fewest packages").ends_with(&fewest), "{plan}");
        assert!(line(&plan, "Traffic of each worker").contains("of Grams sent"), "{plan}");
    }
}

/// A second picture in each forward call under classifier-free guidance; an input of one picture where the model is distilled.
#[test]
fn tokens_and_guidance_are_those_of_diffusers() {
    let calls = [
        (
            "sd3-medium",
            "guidance 7, 4096 image and 333 text tokens",
            "17.79 TFLOP of forward calls, 9.50 TFLOP",
        ),
        (
            "flux.1-dev",
            "guidance 3.5, 4096 image and 512 text tokens",
            "74.38 TFLOP of forward calls, 58.67 TFLOP",
        ),
        (
            "flux.1-schnell",
            "guidance 0, 4096 image and 256 text tokens",
            "69.47 TFLOP of forward calls, 55.41 TFLOP",
        ),
    ];
    for (name, tokens, flops) in calls {
        let plan = plan(name, &[]);
        assert!(line(&plan, "calibration ").ends_with(tokens), "{plan}");
        assert!(line(&plan, "A step of a prompt: ").contains(flops), "{plan}");
    }
    let small = plan("flux.1-dev", &["calibration.height=512", "calibration.max_sequence_length=256"]);
    assert!(line(&small, "calibration ").ends_with("2048 image and 256 text tokens"), "{small}");
}

#[test]
fn keys_shape_the_plan_as_they_do_a_jobs() {
    let cut = plan("flux.1-dev", &["packages.memory=24GB", "sparsity.pattern=2:4"]);
    assert!(line(&cut, "sparsity ").contains("2:4 by "), "{cut}");
    let rows = cut.lines().skip_while(|line| !line.starts_with("---")).skip(1);
    assert_eq!(rows.take_while(|line| !line.starts_with("---")).count(), 3, "{cut}");
    let ratio = plan("sd3-medium", &["sparsity.ratio=0.25"]);
    assert!(line(&ratio, "sparsity ").contains("25% unstructured"), "{ratio}");
    let none = plan("sd3-medium", &["sparsity.method=magnitude", "sparsity.refine=0"]);
    assert!(line(&none, "Grams of all").is_empty(), "{none}");
}

#[test]
fn a_ratio_at_which_nothing_is_left_to_allocate_is_noted() {
    let config = config("sd3-medium");
    let said = |set: &str| text(&obsdiff(Path::new("."), &["plan", &config, "--set", set], &[]).stderr);
    let note = said("sparsity.ratio=0.05");
    assert!(note.starts_with("note: sparsity.ratio 0.05 is not above sparsity.min_ratio 0.2, so "), "{note}");
    assert_eq!(said("sparsity.ratio=0.25"), "");
}

#[test]
fn a_gpus_memory_decides_the_fewest_packages() {
    let config = config("flux.1-dev");
    let of = |memory: &str, sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<_> = ["plan", &config, "--device-memory", memory].into_iter().chain(sets).collect();
        let output = obsdiff(Path::new("."), &args, &[]);
        (text(&output.stdout), text(&output.stderr), output.status.code())
    };
    let bf16 = "model.dtype=bf16";
    // 22 GiB of weights and 60 GiB of Grams, of which half is left.
    let (_, said, code) = of("80GB", &[bf16]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("packages.count: is 1, with which Grams take 60.1 GiB, beside "), "{said}");
    let count = said.split("give packages.count = ").nth(1).unwrap().split(' ').next().unwrap();
    let (plan, said, code) = of("80GB", &[bf16, &format!("packages.count={count}")]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(line(&plan, "Peak memory of a GPU, predicted: ").ends_with(" GiB"), "{plan}");
    assert_eq!(
        line(&plan, "Fewest packages that fit"),
        format!("Fewest packages that fit a GPU of 74.5 GiB: {count}")
    );
    // The weights in f32 alone take more than a GPU of 48 GB has beside an activation.
    let (_, said, code) = of("24GB", &[bf16]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no number of packages is enough; set model.dtype"), "{said}");
}

#[test]
fn what_a_configuration_cannot_tell_is_refused() {
    let config = config("flux.1-dev");
    let refused = |args: &[&str]| {
        let output = obsdiff(Path::new("."), args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        text(&output.stderr)
    };
    let said = refused(&["plan", &config, "--workers", "4"]);
    assert!(said.contains("--workers: needs a job on a whole pipeline"), "{said}");
    let said = refused(&["plan", &config, "--set", "calibration.height=1000"]);
    assert!(said.contains("calibration.height") && said.contains("a multiple of 16"), "{said}");
    let said = refused(&["plan", &config, "--set", "calibration.hight=1024"]);
    assert!(said.contains("calibration.hight"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("config.json");
    fs::write(&other, r#"{"_class_name": "UNet2DModel"}"#).unwrap();
    let said = refused(&["plan", other.to_str().unwrap()]);
    assert!(said.contains("\"UNet2DModel\", which is not supported"), "{said}");
}

#[test]
fn what_a_configuration_does_not_tell_is_null_in_json() {
    let plan = printed(Path::new("."), &["plan", &config("flux.1-dev"), "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["whole_model"]["grams"], 228);
    assert_eq!(plan["whole_model"]["fewest_packages"][2]["packages"], 1);
    assert!(plan["memory"].is_null() && plan["times"].is_null() && plan["conditioning"].is_null());
    assert_eq!(plan["other_package_counts"], serde_json::json!([]));
}

#[test]
fn every_table_fits_80_columns() {
    let dir = tempfile::tempdir().unwrap();
    let job = crate::job(dir.path());
    let timed = ["plan", job.to_str().unwrap(), "--workers", "256", "--bandwidth", "1GB"];
    let many = ["packages.count=25", "calibration.count=30000", "calibration.steps=50"];
    for (plan, count) in [(printed(&asset(""), &timed), 7), (plan("flux.1-dev", &many), 4)] {
        // A table is as wide as its rules: one below its header, and one above its sums.
        let rules: Vec<&str> = plan.lines().filter(|line| line.starts_with("---")).collect();
        assert!(rules.len() == count && rules.iter().all(|rule| rule.len() <= 80), "{plan}");
    }
}

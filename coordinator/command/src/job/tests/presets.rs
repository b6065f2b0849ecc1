//! Presets, and what stands above them.

use obsdiff_proto::{Allocation, Balance, HeadScore, Method, Preset};

use super::*;

fn preset(sets: &[&str]) -> JobSpec {
    load(JOB, &[], sets).unwrap()
}

#[test]
fn the_papers_settings_are_four_packages_of_obs_alone() {
    let spec = preset(&["preset=obs-diff"]);
    assert_eq!(spec.preset, Some(Preset::ObsDiff));
    let s = &spec.sparsity;
    assert_eq!((s.method(), s.allocation(), s.refine), (Method::Obs, Allocation::Uniform, 0));
    assert_eq!((spec.packages.count, spec.packages.balance), (Some(4), Balance::Units));
    assert_eq!((spec.hessian.damping, spec.calibration.count, spec.calibration.steps), (0.01, 100, 25));
    let heads = preset(&["preset=obs-diff", "sparsity.pattern=structured", "sparsity.rules="]);
    assert_eq!((heads.sparsity.head_score, heads.sparsity.fold_bias), (HeadScore::ObsDiff, false));
}

#[test]
fn a_first_look_takes_few_prompts_and_steps() {
    let spec = load(JOB, &[("OBSDIFF_PRESET", "fast")], &[]).unwrap();
    assert_eq!((spec.calibration.count, spec.calibration.steps), (16, 10));
    let plain = preset(&[]);
    assert_eq!((spec.sparsity, spec.packages), (plain.sparsity, plain.packages));
}

#[test]
fn a_key_of_the_job_stands_above_the_preset() {
    let in_the_file =
        format!("preset = \"fast\"\n{}", JOB.replace("prompts.txt\"", "prompts.txt\"\ncount = 30"));
    let spec = load(&in_the_file, &[], &[]).unwrap();
    assert_eq!((spec.calibration.count, spec.calibration.steps), (30, 10));
    assert_eq!(load(&in_the_file, &[], &["preset="]).unwrap().calibration.steps, 25);
    let by_memory = preset(&["preset=obs-diff", "packages.memory=1GiB"]);
    assert_eq!((by_memory.packages.count, by_memory.packages.balance), (None, Balance::Units));
    assert_eq!(preset(&["preset=obs-diff", "sparsity.refine=3"]).sparsity.refine, 3);
}

#[test]
fn an_unknown_preset_is_refused_with_the_known_ones() {
    let error = refused(JOB, &[], &["preset=fats"]);
    assert!(error.contains("--set preset: is \"fats\"; did you mean `fast`?"), "{error}");
    let error = refused(JOB, &[("OBSDIFF_PRESET", "paper")], &[]);
    assert!(error.contains("OBSDIFF_PRESET: is \"paper\"") && error.contains("obs-diff, fast"), "{error}");
}

#[test]
fn what_a_preset_gives_is_blamed_on_it() {
    let error =
        refused(JOB, &[], &["preset=obs-diff", "sparsity.pattern=structured", "sparsity.method=wanda"]);
    assert!(error.contains("--set sparsity.method: "), "{error}");
    let error = refused(JOB, &[], &["preset=obs-diff", "sparsity.max_ratio=0.5"]);
    assert!(error.contains("--set sparsity.max_ratio: has no effect"), "{error}");
}

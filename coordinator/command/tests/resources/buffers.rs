//! Forward calls use the buffers of the call before, and take no new ones from the system.

use std::process::Command;

use crate::asset;
use crate::usage::{self, Usage};

/// Pages that a run may fault in for each denoising step of a batch, each site's observation and Gram in it. Where every buffer of a
/// step came from the system they would be thousands.
const FAULTS_A_STEP: u64 = 50;
/// Pages that a whole run may fault in, from its start to its end.
const MOST_FAULTS: u64 = 100_000;
/// How often all that is not a step may wait, most of all the survey, which prunes each linear to eight ratios: it is 9,000 times. Where
/// every pass over a small matrix is shared out to other threads it is 36,000 times.
const WAITS: u64 = 20_000;
/// How often another thread may take a step's processor, on a busy machine too: 114,000 times in the whole job. Where each operation is
/// handed to another thread it is twice as often.
const SWITCHES_A_STEP: u64 = 114_000 / 625;

fn taken(steps: u32) -> Usage {
    let folder = tempfile::tempdir().unwrap();
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    let sets = [
        set("output.path", &folder.path().join("out").display().to_string()),
        set("calibration.count", "4"),
        set("calibration.steps", &steps.to_string()),
        set("evaluation.count", "0"),
    ];
    let job = asset("../../deploy/jobs/shapes-sd3.toml");
    let (_, usage) = usage::run(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(["run", "--quiet", "--threads", "2"])
            .arg(job)
            .args(sets.as_flattened())
            .current_dir(asset("../..")),
    );
    println!("{steps} steps: {usage:?}");
    usage
}

#[test]
fn a_denoising_step_takes_hardly_any_new_pages() {
    let (few, many) = (taken(10), taken(110));
    let faults = many.minor_faults.saturating_sub(few.minor_faults);
    assert!(faults < 100 * FAULTS_A_STEP, "{faults} pages in 100 steps more");
    assert!(many.minor_faults <= MOST_FAULTS, "{} pages in the whole run", many.minor_faults);
    let switches = many.involuntary_switches.saturating_sub(few.involuntary_switches);
    assert!(switches < 100 * SWITCHES_A_STEP, "{switches} involuntary switches in 100 steps more");
    assert!(few.voluntary_switches < WAITS, "{} waits", few.voluntary_switches);
}

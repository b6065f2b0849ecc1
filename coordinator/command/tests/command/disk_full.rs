//! A disk without room for the output: known before any work where it can be, and nothing that is solved is lost where it cannot.

use std::fs::{self, File};
use std::process::{Command, Output};

use obsdiff_tests::not_tested;

use crate::setting::{RUN, Setting, listing};
use crate::text;

/// More than a file system has free, yet a size that a file may have.
const SPARSE: u64 = 15 << 40;

/// Runs a shell script in the setting's folder, where `$0` is the command and `$@` are its arguments.
fn shell(setting: &Setting, script: &str, wrapper: &[&str]) -> Output {
    let words = [wrapper, &["sh", "-c", script, env!("CARGO_BIN_EXE_obsdiff")], &setting.args()].concat();
    Command::new(words[0]).args(&words[1..]).current_dir(setting.dir.path()).output().unwrap()
}

#[test]
fn a_pipeline_larger_than_the_disk_is_refused_before_any_work() {
    let setting = Setting::new(RUN);
    File::create(setting.path("pipeline/vae/extra.safetensors")).unwrap().set_len(SPARSE).unwrap();
    let before = listing(setting.dir.path());
    let output = shell(&setting, r#""$0" "$@""#, &[]);
    assert_too_large(&output, "needs 15.0 TiB");
    assert_eq!(listing(setting.dir.path()), before);
}

fn assert_too_large(output: &Output, needs: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    for part in ["output.path: ", needs, "B free: make room"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

/// A file system of 1 MiB, where a system lets a test mount one: as root, or as the root of a namespace of its own.
#[test]
fn a_small_file_system_is_refused_before_any_work() {
    let script = "mount -t tmpfs -o size=1m tmpfs small || exit 125
        \"$0\" \"$@\" --set output.path=small/out; code=$?; ls -A small; exit $code";
    let setting = Setting::new(RUN);
    fs::create_dir(setting.path("small")).unwrap();
    let mut problems = Vec::new();
    for wrapper in [["unshare", "--mount"], ["unshare", "-rm"]] {
        let output = shell(&setting, script, &wrapper);
        match output.status.code() {
            Some(2) | Some(0) | Some(3) => {
                assert_too_large(&output, "has 1.0 MiB free");
                return assert_eq!(text(&output.stdout), "", "wrote something");
            }
            _ => problems.push(format!("{}: {}", wrapper.join(" "), text(&output.stderr).trim())),
        }
    }
    // The sparse pipeline of the other test is refused by the same check.
    not_tested(format!("no file system can be mounted: {}", problems.join("; ")));
}

/// What `init` is asked for where it fails: its prompts would go beside the job.
const INIT: &[&str] = &["init", "pipeline", "--out", "small/job.toml"];

/// No file may grow past two blocks of at most 1 KiB, of which the sample prompts take five.
#[test]
fn sample_prompts_that_cannot_be_written_are_not_left_cut_short() {
    let setting = Setting::new(INIT);
    fs::create_dir(setting.path("small")).unwrap();
    let output = shell(&setting, "trap '' XFSZ; ulimit -f 2; exec \"$0\" \"$@\"", &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("small/prompts.txt: File too large"), "{said}");
    let left = listing(&setting.path("small"));
    assert!(left.is_empty(), "{left:?}");
}

/// A file system of 8 KiB has room for the sample prompts, and not for the job besides.
#[test]
fn a_new_job_that_the_disk_has_no_room_for_leaves_nothing() {
    let script = "mount -t tmpfs -o size=8k tmpfs small || exit 125
        \"$0\" \"$@\"; code=$?; ls -A small; exit $code";
    let setting = Setting::new(INIT);
    fs::create_dir(setting.path("small")).unwrap();
    let mut problems = Vec::new();
    for wrapper in [["unshare", "--mount"], ["unshare", "-rm"]] {
        let output = shell(&setting, script, &wrapper);
        let said = text(&output.stderr);
        match output.status.code() {
            Some(0) | Some(2) | Some(3) => {
                assert!(said.contains("small/job.toml: No space left on device"), "{said}");
                return assert_eq!(text(&output.stdout), "", "something is left");
            }
            _ => problems.push(format!("{}: {}", wrapper.join(" "), said.trim())),
        }
    }
    not_tested(format!("no file system can be mounted: {}", problems.join("; ")));
}

/// No file may grow past 1000 blocks of 512 bytes, as where a user's limit is too low for the output, though not for the parts.
#[test]
fn an_export_that_cannot_be_written_keeps_what_is_solved_and_the_same_command_goes_on() {
    let setting = Setting::new(RUN);
    let before = listing(setting.dir.path());
    let output = shell(&setting, "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"", &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in [
        "transformer/diffusion_pytorch_model.safetensors: File too large",
        "raise the limit on the size of files (ulimit -f)",
        "what is finished is kept in out.state, and the same command goes on from there",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let new = listing(setting.dir.path()).into_iter().filter(|found| !before.contains(found));
    let new: Vec<_> = new.map(|(path, _)| path).collect();
    assert!(new.iter().all(|path| path.starts_with(setting.path("out.state"))), "{new:?}");
    assert!(setting.path("out.state/packages/00001.json").is_file(), "{new:?}");

    let again = shell(&setting, "exec \"$0\" $(echo \"$@\" | sed s/--quiet//)", &[]);
    let said = text(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert!(said.contains("2 of 2 packages finished"), "{said}");
    assert!(setting.path("out/pruning.json").is_file() && !setting.path("out.state").exists());
}

//! Paths that a user names: whatever is wrong with one, one line says what and what to do next.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::{obsdiff, pipeline, text};

/// Commands and the input that each reads first, in place of `PATH`.
const READERS: [&[&str]; 13] = [
    &["run", "PATH"],
    &["plan", "PATH"],
    &["coordinator", "PATH"],
    &["encode", "PATH", "--out", "new.safetensors"],
    &["solve", "PATH", "--set", "output.path=new"],
    &["sweep", "PATH", "--ratios", "0.5", "--out", "new"],
    &["init", "PATH", "--out", "new.toml"],
    &["inspect", "PATH"],
    &["sample", "PATH", "--prompt", "a"],
    &["compare", "PATH", "PATH", "--prompt", "a"],
    &["export", "PATH", "--single-file", "new.safetensors"],
    &["status", "http://127.0.0.1:1", "--token-file", "PATH"],
    &["worker", "--coordinator", "http://127.0.0.1:1", "--token-file", "PATH"],
];

/// What a command is refused with for this path.
fn refused(folder: &Path, args: &[&str], path: &str) -> String {
    let args: Vec<String> = args.iter().map(|arg| arg.replace("PATH", path)).collect();
    let output = obsdiff(folder, &args.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    said
}

/// Whether a line says what to do: it has an imperative after a colon, semicolon or comma.
fn advises(line: &str) -> bool {
    let steps = ["check the", "choose", "copy", "download", "give", "make", "move"];
    line.split([':', ';', ',']).any(|part| steps.iter().any(|step| part.trim_start().starts_with(step)))
}

#[test]
fn a_path_that_cannot_be_read_is_told_in_one_line_with_what_to_do_next() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::create_dir(folder.join("empty")).unwrap();
    fs::write(folder.join("file"), "no input of any command\n").unwrap();
    for args in READERS {
        for path in ["absent", "file/below", "empty", "absent/below"] {
            let said = refused(folder, args, path);
            assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{args:?}: {said}");
            assert!(advises(&said), "{args:?}, {path}: {said}");
        }
    }
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "something was written: {names:?}");
}

/// Runs a command as a user: root reads and writes whatever it likes, unless it gives up that right.
fn as_user(folder: &Path, args: &[&str]) -> Output {
    let mut process = Command::new("setpriv");
    process.args(["--bounding-set=-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_obsdiff")]);
    process.args(args).current_dir(folder).output().unwrap()
}

/// Commands that work for a while, and where each writes, in place of `PATH`.
const WRITERS: [&[&str]; 9] = [
    &["sample", "pipeline", "--prompt", "a", "--out", "PATH/a.png"],
    &["sample", "pipeline", "--prompt", "a", "--out", "PATH/pictures"],
    &["sample", "pipeline", "--prompt", "a", "--out", "PATH"],
    &["compare", "pipeline", "pipeline", "--prompt", "a", "--out", "PATH/a.png"],
    &["compare", "pipeline", "pipeline", "--prompt", "a", "--report", "PATH/a.html"],
    &["encode", "job.toml", "--out", "PATH/a.safetensors"],
    &["export", "pipeline", "--single-file", "PATH/a.safetensors"],
    &["sweep", "grams", "--ratios", "0.5", "--out", "PATH/sweep"],
    &["init", "pipeline", "--out", "PATH/job.toml"],
];

#[test]
fn what_a_user_may_not_write_is_told_before_any_work_by_the_name_that_was_given() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(pipeline(), dir.path().join("pipeline")).unwrap();
    let job = fs::read_to_string(crate::job(dir.path())).unwrap();
    let prompts = crate::asset("shapes-prompts.txt");
    let job = job.replace("shapes-sd3", "pipeline").replace("shapes-prompts.txt", prompts.to_str().unwrap());
    fs::write(dir.path().join("job.toml"), job).unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).unwrap();
    for args in WRITERS {
        let args: Vec<String> = args.iter().map(|arg| arg.replace("PATH", "closed")).collect();
        let output = as_user(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        // Progress would be more lines.
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{args:?}: {said}");
        let place = args.iter().find(|arg| arg.starts_with("closed")).unwrap();
        assert!(said.contains(place.as_str()) && said.contains("Permission denied"), "{args:?}: {said}");
        assert!(!said.contains(".obsdiff-") && !said.contains("at path"), "{args:?}: {said}");
        let next = "give this user the right to it, or choose another path\n";
        assert!(said.ends_with(next), "{args:?}: {said}");
    }
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something is left");
}

#[test]
fn what_a_user_may_not_read_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed.toml");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
    for command in ["run", "plan", "inspect"] {
        let output = as_user(dir.path(), &[command, "closed.toml"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}: {said}");
        assert!(said.contains("closed.toml: Permission denied"), "{command}: {said}");
        assert!(
            said.ends_with("give this user the right to it, or choose another path\n"),
            "{command}: {said}"
        );
    }
}

//! Processes that the system gives too little.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use obsdiff_tests::not_tested;

use crate::process::{ASSETS, Process, setting};

const OBSDIFF: &str = env!("CARGO_BIN_EXE_obsdiff");

/// Runs the job by two workers, under a limit.
fn limited(folder: &Path, wrapper: &[&str], limit: &str) -> (Option<i32>, String) {
    let job = ["run", "job.toml", "--quiet", "--workers", "2", "--threads", "2"];
    let words = [wrapper, &["prlimit", limit, OBSDIFF], &job].concat();
    Process::spawn(Command::new(words[0]).args(&words[1..]).current_dir(folder)).verdict()
}

fn assert_in_words(code: Option<i32>, said: &str, limit: &str) {
    assert!(matches!(code, Some(2 | 3)), "{limit}: {code:?}: {said}");
    // A thread that is wanted late is tried for a few times.
    let notes = said.lines().rev().skip(1).all(|line| line.starts_with("note: "));
    assert!(said.lines().last().is_some_and(|last| last.starts_with("error: ")) && notes, "{limit}: {said}");
    assert!(!said.contains("panicked") && !said.contains("fault of obsdiff"), "{limit}: {said}");
}

/// Whoever the process runs as: root may start as many threads as it likes.
#[test]
fn a_limit_of_threads_is_an_error_in_words_wherever_it_is_met() {
    // The limit counts all processes of a user, so this one belongs to no other test that runs at the same time.
    let user = 60_000 + std::process::id() % 5_000;
    let user = [format!("--reuid={user}"), format!("--regid={user}")];
    let as_user = ["setpriv", &user[0], &user[1], "--clear-groups"];
    let wrapper: &[&str] = if rustix::process::getuid().is_root() { &as_user } else { &[] };
    let model = format!("{ASSETS}/shapes-sd3/model_index.json");
    let reads = [wrapper, &["sh", "-c", "test -x \"$0\" && test -r \"$1\"", OBSDIFF, &model]].concat();
    let may = Command::new(reads[0]).args(&reads[1..]).status();
    if !may.as_ref().is_ok_and(|status| status.success()) {
        return not_tested(format!(
            "no other user can be, or it may not read {OBSDIFF} and {model}: {may:?}"
        ));
    }
    let mut codes = Vec::new();
    // With the first there is none beside the main thread's, with the last there are enough.
    for threads in (1..=16).chain([200]) {
        let folder = setting(2);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let limit = format!("--nproc={threads}");
        let (code, said) = limited(folder.path(), wrapper, &limit);
        if code != Some(0) {
            assert_in_words(code, &said, &limit);
            assert!(said.contains("no more threads: raise its limit (ulimit -u"), "{said}");
            assert_eq!(code, Some(3), "{said}");
        }
        codes.push(code);
    }
    println!("{codes:?}");
    // One that is not root shares the limit with all its other processes.
    assert!(codes[0] == Some(3) && (wrapper.is_empty() || *codes.last().unwrap() == Some(0)), "{codes:?}");
}

#[test]
fn a_limit_of_memory_is_an_error_in_words_wherever_it_is_met() {
    let mut codes = Vec::new();
    // With less than the first no process of this size can be, with the last there is enough.
    for mebibytes in [128_u64, 192, 256, 512, 1024, 65536] {
        let folder = setting(2);
        let limit = format!("--as={}", mebibytes << 20);
        let (code, said) = limited(folder.path(), &[], &limit);
        if code != Some(0) {
            assert_in_words(code, &said, &limit);
        }
        codes.push(code);
    }
    println!("{codes:?}");
    assert!(codes[0] != Some(0) && *codes.last().unwrap() == Some(0), "{codes:?}");
}

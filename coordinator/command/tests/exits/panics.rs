//! Faults of obsdiff itself.

use std::env;
use std::process::{Command, Output};
use std::thread;

/// Where the child panics.
const PLACE: &str = "OBSDIFF_TEST_PANIC";

/// The process that panics: this test, started by another one.
#[test]
fn child() {
    let Ok(place) = env::var(PLACE) else { return };
    obsdiff::panics::exit_at_first();
    match place.as_str() {
        "thread" => panic!("the test\nfails"),
        "scope" => thread::scope(|scope| {
            // It would wait for ever for its neighbour.
            let (_kept, never) = std::sync::mpsc::channel::<()>();
            scope.spawn(|| panic!("the test fails"));
            let _ = never.recv();
        }),
        "task" => obsdiff::runtime::runtime().unwrap().block_on(async {
            tokio::spawn(async { panic!("the test fails") });
            std::future::pending::<()>().await;
        }),
        "limit" => panic!("OS can't spawn worker thread: Resource temporarily unavailable (os error 11)"),
        _ => panic!("{place} is unknown"),
    }
}

fn panic_in(place: &str) -> (Option<i32>, String) {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "panics::child", "--nocapture"]).env(PLACE, place).env_remove("RUST_BACKTRACE");
    let Output { status, stderr, .. } = child.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_panic_on_any_thread_ends_the_process_with_4_and_says_where_to_report_it() {
    for place in ["thread", "scope", "task"] {
        let (code, said) = panic_in(place);
        assert_eq!(code, Some(4), "{place}: {said}");
        let parts = ["error: this is a fault of obsdiff ", ": the test fails (", "panics.rs:", "/issues. "];
        assert!(parts.iter().all(|part| said.contains(part)) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_library_that_gets_no_thread_fails_as_obsdiff_does_then() {
    let (code, said) = panic_in("limit");
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.starts_with("error: the system gives this process no more threads: raise its limit"),
        "{said}"
    );
}

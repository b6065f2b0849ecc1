//! Processes whose other side is not there.

use std::net::TcpListener;

use crate::process::{Process, setting};

/// A port at which nobody listens, as far as anybody can know.
fn dead() -> String {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{address}")
}

#[test]
fn a_worker_without_a_coordinator_says_what_it_waits_for_and_gives_up_with_3() {
    let folder = setting(2);
    let args = ["worker", "--coordinator", &dead(), "--patience", "3s", "--quiet"];
    let (code, said) = Process::start(folder.path(), &args).verdict();
    assert_eq!(code, Some(3), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    let waits = lines[0].starts_with("note: the coordinator is away (") && lines[0].contains("refused");
    assert!(waits && lines[0].ends_with("): it is tried again for 3 s more"), "{said}");
    assert!(lines[1].starts_with("error: the coordinator could not be reached for 3 s: "), "{said}");
    assert!(!said.contains("WARN") && !said.contains("status:"), "{said}");
}

#[test]
fn a_status_without_a_coordinator_fails_with_3() {
    let folder = setting(2);
    for watch in [&[][..], &["--watch"]] {
        let (code, said) = Process::start(folder.path(), &[&["status", &dead()], watch].concat()).verdict();
        assert_eq!(code, Some(3), "{said}");
        assert!(said.starts_with("error: ") && said.contains("cannot be reached"), "{said}");
    }
}

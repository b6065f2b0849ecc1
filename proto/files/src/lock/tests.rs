use super::*;

#[test]
fn the_second_learns_who_holds_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let first = Lock::take(&path).unwrap();
    assert!(first.is_exclusive());
    let refused = Lock::take(&path).unwrap_err().to_string();
    let words = format!("is in use by process {} on {}, since 2", std::process::id(), host());
    assert!(refused.starts_with(&words), "{refused}");
    drop(first);
    // The file of a process that has ended is overwritten.
    Lock::take(&path).unwrap();
}

#[test]
fn a_removed_lock_can_be_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    Lock::take(&path).unwrap().remove(&Disk::default()).unwrap();
    assert!(!path.exists());
    Lock::take(&path).unwrap();
}

#[test]
fn a_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let [theirs, path] = ["theirs", "lock"].map(|name| folder.path().join(name));
    std::fs::write(&theirs, "content").unwrap();
    std::os::unix::fs::symlink(&theirs, &path).unwrap();
    assert!(matches!(Lock::take(&path), Err(LockError::File(_))));
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "content");
}

#[test]
fn a_file_that_no_lock_has_written_keeps_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let [theirs, path] = ["theirs", "lock"].map(|name| folder.path().join(name));
    let refused = || match Lock::take(&path) {
        Err(LockError::File(error)) => error.to_string(),
        taken => panic!("{taken:?}"),
    };
    std::fs::write(&path, "content").unwrap();
    assert!(refused().contains("holds other words than a lock of obsdiff"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "content");
    std::fs::remove_file(&path).unwrap();
    // Even one that looks like a lock.
    std::fs::write(&theirs, "").unwrap();
    std::fs::hard_link(&theirs, &path).unwrap();
    assert!(refused().contains("has another name"));
    std::fs::remove_file(&path).unwrap();
    // What a process or machine leaves that dies while it writes.
    for left in ["", "{\"p", "{\"pid\":17,\"ho", "\0\0\0"] {
        std::fs::write(&path, left).unwrap();
        let lock = Lock::take(&path).unwrap();
        let words: LockHolder = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(words, LockHolder { pid: std::process::id(), host: host() });
        drop(lock);
    }
}

#[test]
fn a_waiting_process_has_the_lock_once_the_first_releases_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let first = Lock::take(&path).unwrap();
    let (begins, begun) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            begins.send(()).unwrap();
            Lock::wait(&path).map(|lock| (lock.is_exclusive(), lock))
        });
        begun.recv().unwrap();
        assert!(!waiting.is_finished());
        // A removed file is no lock: the next one is made where it was.
        first.remove(&Disk::default()).unwrap();
        let (exclusive, lock) = waiting.join().unwrap().unwrap();
        assert!(exclusive && matches!(Lock::take(&path), Err(LockError::Held(_))));
        drop(lock);
    });
}

//! An export that ends between any two of its file operations, by a killed process or a disk that fails: the next one writes the same
//! pipeline, and until then there is none.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use obsdiff_files::{Disk, Operation, OperationHook};

use super::tests::{export_by, listing, output_of, pipeline};
use crate::Error;

/// Variables that say to the process of a test where to export, whether by links, and at which operation to end.
const ROOT: &str = "EXPORT_ROOT";
const LINK: &str = "EXPORT_LINK";
const LAST: &str = "EXPORT_LAST";

/// Files by their paths in a folder, with their content.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Operations in their order, with their paths.
type Operations = Vec<(Operation, PathBuf)>;

/// Ends the process, or fails, at an operation: the first has the number 0.
struct Until {
    seen: AtomicUsize,
    last: usize,
    at_last: fn(usize, usize) -> io::Result<()>,
}

impl OperationHook for Until {
    fn before(&self, _: Operation, _: &Path) -> io::Result<()> {
        (self.at_last)(self.seen.fetch_add(1, Ordering::SeqCst), self.last)
    }
}

fn until(last: usize, at_last: fn(usize, usize) -> io::Result<()>) -> Disk {
    Disk::with_hook(Arc::new(Until { seen: AtomicUsize::new(0), last, at_last }))
}

/// Every operation, with its path.
#[derive(Default)]
struct Log(Mutex<Operations>);

impl OperationHook for Log {
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.0.lock().unwrap().push((operation, path.to_owned()));
        Ok(())
    }
}

/// Every file below a folder, with its content.
fn content(folder: &Path) -> Files {
    let mut files = BTreeMap::new();
    for name in listing(folder) {
        let path = folder.join(name);
        if path.is_dir() {
            files.extend(content(&path).into_iter().map(|(name, c)| (path.join(name), c)))
        } else {
            drop(files.insert(path.clone(), std::fs::read(path).unwrap()))
        }
    }
    files.into_iter().map(|(path, c)| (path.strip_prefix(folder).unwrap().to_owned(), c)).collect()
}

/// A folder with a pipeline, and what an export that nothing disturbs makes of it, with the number of its operations.
fn undisturbed(link: bool) -> (tempfile::TempDir, Files, Operations) {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), true);
    let log = Arc::new(Log::default());
    let out = root.path().join("made/out");
    export_by(&Disk::with_hook(log.clone()), &source, &out, link, 1.0).unwrap();
    let (expected, operations) = (content(&out), std::mem::take(&mut *log.0.lock().unwrap()));
    std::fs::remove_dir_all(root.path().join("made")).unwrap();
    (root, expected, operations)
}

/// The pipeline is there whole or not at all; the next export writes the same, and leaves nothing else.
fn assert_whole_in_the_end(root: &Path, link: bool, expected: &Files, at: &str) {
    let (source, made) = (root.join("dense"), root.join("made"));
    let out = made.join("out");
    if out.exists() {
        assert!(content(&out) == *expected, "{at}: half a pipeline counts as one");
    }
    export_by(&Disk::default(), &source, &out, link, 1.0).unwrap();
    assert!(content(&out) == *expected, "{at}: another pipeline");
    assert_eq!(listing(&made), ["out"], "{at}: something is left");
    std::fs::remove_dir_all(made).unwrap();
}

/// The process that the test below kills.
#[test]
#[ignore = "a process of the test below"]
fn an_export_that_ends_at_an_operation() {
    let variable = |name| std::env::var(name).unwrap();
    let (root, link) = (PathBuf::from(variable(ROOT)), variable(LINK) == "true");
    let disk =
        until(
            variable(LAST).parse().unwrap(),
            |seen, last| if seen == last { std::process::abort() } else { Ok(()) },
        );
    export_by(&disk, &root.join("dense"), &root.join("made/out"), link, 1.0).unwrap();
}

#[test]
fn an_export_that_is_killed_between_any_two_operations_is_done_by_the_next_one() {
    for link in [false, true] {
        let (root, expected, operations) = undisturbed(link);
        for last in 0..=operations.len() {
            let mut program = Command::new(std::env::current_exe().unwrap());
            program
                .args(["--ignored", "--exact", "export::crash_tests::an_export_that_ends_at_an_operation"])
                .env(ROOT, root.path())
                .env(LINK, link.to_string())
                .env(LAST, last.to_string());
            let status = output_of(&mut program).unwrap().status;
            assert_eq!(status.success(), last == operations.len(), "operation {last}");
            let at = format!("killed before {:?}, by links: {link}", operations.get(last));
            assert_whole_in_the_end(root.path(), link, &expected, &at);
        }
    }
}

#[test]
fn an_export_whose_disk_fails_at_any_operation_is_done_by_the_next_one() {
    let failures: [fn(usize, usize) -> io::Result<()>; 2] = [
        |seen, last| if seen == last { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) },
        |seen, last| if seen >= last { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) },
    ];
    let (root, expected, operations) = undisturbed(false);
    let renamed = operations.iter().position(|(operation, _)| *operation == Operation::Rename).unwrap();
    for failure in failures {
        for (last, operation) in operations.iter().enumerate() {
            let out = root.path().join("made/out");
            let done = export_by(&until(last, failure), &root.path().join("dense"), &out, false, 1.0);
            let at = format!("failed at {operation:?}");
            match done {
                Err(Error::Write { .. }) => {}
                // What is only tidied up may fail.
                Ok(()) => assert!(last > renamed + 1 && out.exists(), "{at}: said to be written"),
                Err(error) => panic!("{at}: {error}"),
            }
            assert_whole_in_the_end(root.path(), false, &expected, &at);
        }
    }
}

#[test]
fn everything_is_on_the_disk_before_the_pipeline_is_moved_into_place() {
    for link in [false, true] {
        let (_, _, operations) = undisturbed(link);
        let place = |wanted: Operation, path: &Path| {
            operations.iter().position(|(operation, found)| *operation == wanted && found == path)
        };
        let (renamed, _) = operations
            .iter()
            .enumerate()
            .find(|(_, (operation, path))| *operation == Operation::Rename && path.ends_with("made/out"))
            .unwrap();
        let mut files = 0;
        for (at, (operation, path)) in operations.iter().enumerate() {
            let synced = match operation {
                Operation::CreateFile | Operation::Link => place(Operation::SyncFile, path),
                Operation::CreateFolder if path.components().any(|part| part.as_os_str() == "pipeline") => {
                    place(Operation::SyncFolder, path)
                }
                _ => continue,
            };
            files += 1;
            assert!(synced.is_some_and(|synced| at < synced && synced < renamed), "{operation:?} {path:?}");
        }
        assert!(files > 10);
        let parent = operations[renamed].1.parent().unwrap().to_owned();
        assert_eq!(operations[renamed + 1], (Operation::SyncFolder, parent), "the rename itself");
    }
}

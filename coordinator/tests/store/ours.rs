//! Whose files are whose: a store that holds anything else is refused, and nothing else is ever removed.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use obsdiff_coordinator::{CoordinatorStore, Opened};
use obsdiff_files::{Disk, Operation, OperationHook};
use obsdiff_proto::PackageId;
use obsdiff_proto::message::Receipt;
use obsdiff_store::{JobStore, StoreError};

use crate::job::{manifest, prompts, record, weights};
use crate::s3::Server;

/// Every path below a folder.
fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(listing(&entry.path()));
        }
        found.push(entry.path());
    }
    found.sort();
    found
}

fn create(path: &Path) -> Result<CoordinatorStore, StoreError> {
    CoordinatorStore::create(path.to_str().unwrap(), &[])
}

/// A job with two packages committed.
async fn fill(store: &CoordinatorStore) {
    store.begin(&record(), &prompts()).await.unwrap();
    store.raise_life().await.unwrap();
    let receipt = Receipt::from(&store.put_part(weights(1)).await.unwrap());
    store.put_exponents(0, &[].into()).await.unwrap();
    for package in 0..2 {
        store.commit(&manifest(package, [receipt.clone()], 12)).await.unwrap();
    }
}

/// What a folder holds that is not obsdiff's, and how it comes there.
type Foreign = (&'static str, fn(&Path));

#[tokio::test]
async fn a_directory_with_anything_else_in_it_is_refused_and_left_as_it_is() {
    let cases: [Foreign; 8] = [
        ("thesis.tex", |folder| fs::write(folder.join("thesis.tex"), "mine").unwrap()),
        (".hidden", |folder| fs::write(folder.join(".hidden"), "").unwrap()),
        ("empty", |folder| fs::create_dir(folder.join("empty")).unwrap()),
        ("parts/mine.safetensors", |folder| {
            fs::create_dir(folder.join("parts")).unwrap();
            fs::write(folder.join("parts/mine.safetensors"), "").unwrap();
        }),
        ("job.json", |folder| fs::create_dir(folder.join("job.json")).unwrap()),
        ("job.json", |folder| fs::write(folder.join("job.json"), "another program's").unwrap()),
        ("parts", |folder| symlink("/", folder.join("parts")).unwrap()),
        ("obsdiff.lock", |folder| symlink("elsewhere", folder.join("obsdiff.lock")).unwrap()),
    ];
    for (name, arrange) in cases {
        let folder = tempfile::tempdir().unwrap();
        arrange(folder.path());
        let before = listing(folder.path());
        for refused in [create(folder.path()).map(drop), JobStore::check(folder.path().to_str().unwrap())] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, StoreError::Foreign { .. } | StoreError::Unmarked { .. }), "{refused}");
            assert!(refused.to_string().contains(&format!(" holds {name}")), "{refused}");
            assert!(refused.to_string().contains("set output.state to a folder of its own"), "{refused}");
        }
        assert_eq!(listing(folder.path()), before);
    }
}

#[tokio::test]
async fn a_job_that_is_done_takes_its_own_objects_with_it_and_the_folders_that_were_made() {
    let root = tempfile::tempdir().unwrap();
    for (path, left) in [("new/deep/state", None), ("empty", Some("empty"))] {
        if let Some(left) = left {
            fs::create_dir(root.path().join(left)).unwrap();
        }
        let store = create(&root.path().join(path)).unwrap();
        fill(&store).await;
        // Begun by one process, done by another.
        drop(store);
        let store = create(&root.path().join(path)).unwrap();
        assert_eq!(store.begin(&record(), &prompts()).await.unwrap(), Opened::Resumed);
        store.remove(&Disk::default()).await.unwrap();
        let left: Vec<_> = left.into_iter().map(|left| root.path().join(left)).collect();
        assert_eq!(listing(root.path()), left);
    }
}

#[tokio::test]
async fn a_job_that_is_done_leaves_what_others_have_put_beside_its_objects() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let store = create(&path).unwrap();
    fill(&store).await;
    let theirs = ["notes.txt", "parts/notes.txt", "job.json.bak", "photos"].map(|name| path.join(name));
    theirs[..3].iter().for_each(|file| fs::write(file, "mine").unwrap());
    symlink("/", &theirs[3]).unwrap();
    store.remove(&Disk::default()).await.unwrap();
    let mut expected = [&theirs[..], &[path.clone(), path.join("parts")]].concat();
    expected.sort();
    assert_eq!(listing(root.path()), expected);
}

#[tokio::test]
async fn half_written_objects_of_a_process_that_was_killed_are_known() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let store = create(&path).unwrap();
    fill(&store).await;
    drop(store);
    fs::write(path.join("exponents/00000000.json#1"), "hal").unwrap();
    fs::write(path.join("packages/00001.json#12"), "hal").unwrap();
    let store = create(&path).unwrap();
    assert_eq!(store.committed().await.unwrap().len(), 2);
    store.remove(&Disk::default()).await.unwrap();
    assert_eq!(listing(root.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_directory_in_which_a_job_runs_is_refused_to_another_process() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let first = create(&path).unwrap();
    let refused = create(&path).unwrap_err();
    assert!(matches!(refused, StoreError::InUse { .. }));
    let words = format!("is in use by process {} on ", std::process::id());
    assert!(refused.to_string().contains(&words) && refused.to_string().contains(", since 2"), "{refused}");
    // A worker is no second coordinator.
    JobStore::open(path.to_str().unwrap(), &[]).unwrap();
    drop(first);
    create(&path).unwrap();
}

/// Every operation from a certain one on fails: to the files it is as if the process were killed there.
struct StopAfter {
    seen: AtomicUsize,
    last: usize,
}

impl OperationHook for StopAfter {
    fn before(&self, _: Operation, _: &Path) -> io::Result<()> {
        if self.seen.fetch_add(1, Ordering::SeqCst) < self.last {
            Ok(())
        } else {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }
}

/// Whatever a removal leaves that is cut short before any of its operations is the state of the same job, or of none.
#[tokio::test]
async fn a_removal_that_is_cut_short_leaves_nobody_elses_results() {
    let mut other = record();
    other.spec.sparsity.ratio = Some(0.7);
    let mut begun = Vec::new();
    for last in 0.. {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        let store = create(&path).unwrap();
        fill(&store).await;
        let steps = StopAfter { seen: AtomicUsize::new(0), last };
        let removed = store.remove(&Disk::with_hook(Arc::new(steps))).await;
        drop(store);
        if removed.is_ok() {
            assert_eq!(listing(root.path()), Vec::<PathBuf>::new());
            break;
        }
        let store = create(&path).unwrap();
        match store.begin(&other, &prompts()).await {
            Ok(opened) => {
                assert_eq!((opened, store.committed().await.unwrap()), (Opened::New, vec![]), "at {last}");
                assert_eq!(store.exponents().await.unwrap(), None, "at {last}");
                begun.push(last);
            }
            Err(StoreError::Changed { .. }) => {
                assert_eq!(store.begin(&record(), &prompts()).await.unwrap(), Opened::Resumed, "at {last}");
                store.recover().await.unwrap();
            }
            Err(error) => panic!("at {last}: {error}"),
        }
        store.remove(&Disk::default()).await.unwrap();
        // Once its mark is gone, nothing shows that the folder was made for it: it may stay, empty.
        let left: Vec<_> = listing(root.path()).into_iter().filter(|left| *left != path).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "at {last}");
    }
    assert!(!begun.is_empty() && begun[0] > 4, "{begun:?}");
}

#[tokio::test]
async fn results_without_a_job_are_nobodys() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let store = create(&path).unwrap();
    fill(&store).await;
    fs::remove_file(path.join("job.json")).unwrap();
    let mut other = record();
    other.spec.sparsity.ratio = Some(0.7);
    assert_eq!(store.begin(&other, &prompts()).await.unwrap(), Opened::New);
    assert_eq!(store.committed().await.unwrap(), [], "another job's packages count");
    assert_eq!(store.exponents().await.unwrap(), None);
}

#[tokio::test]
async fn a_package_whose_object_is_removed_is_run_again_and_so_are_those_after_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let store = create(&path).unwrap();
    store.begin(&record(), &prompts()).await.unwrap();
    let parts = [1, 2, 3].map(weights);
    let mut receipts = Vec::new();
    for (package, part) in (0..).zip(parts) {
        receipts.push(store.put_part(part).await.unwrap());
        store.commit(&manifest(package, [Receipt::from(&receipts[package as usize])], 12)).await.unwrap();
    }
    assert_eq!(store.recover().await.unwrap().1, None);
    fs::remove_file(path.join(&receipts[1].object)).unwrap();
    let (kept, again) = store.recover().await.unwrap();
    assert_eq!((kept.len(), again), (1, Some(PackageId(1))));
    assert_eq!(store.committed().await.unwrap(), kept);
    // The next one may say something else of the same package.
    store.commit(&manifest(1, [Receipt::from(&receipts[0])], 12)).await.unwrap();
    // Prompts that were removed are put again.
    fs::remove_file(path.join("prompts.json")).unwrap();
    store.begin(&record(), &prompts()).await.unwrap();
    assert_eq!(store.prompts(&record()).await.unwrap(), prompts());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_with_anything_else_in_it_is_refused_and_a_jobs_own_objects_are_removed() {
    let root = tempfile::tempdir().unwrap();
    let bucket = root.path().join("bucket");
    fs::create_dir_all(bucket.join("data/images")).unwrap();
    fs::write(bucket.join("data/images/1.png"), "mine").unwrap();
    let server = Server::start_at("127.0.0.1:0", root.path()).await;
    let open = |url: &str| CoordinatorStore::create(url, &server.options()).unwrap();
    let refused = open("s3://bucket/data").begin(&record(), &prompts()).await.unwrap_err();
    assert!(
        refused.to_string().starts_with("s3://bucket/data holds images/1.png, which obsdiff did not write"),
        "{refused}"
    );
    let store = open("s3://bucket/data/job");
    fill(&store).await;
    // Around a job there is something else, too: that job.
    let around = open("s3://bucket/data").begin(&record(), &prompts()).await.unwrap_err();
    assert!(matches!(around, StoreError::Foreign { .. }), "{around}");
    fs::write(bucket.join("data/job/job.json.bak"), "mine").unwrap();
    assert!(matches!(store.remove(&Disk::default()).await, Err(StoreError::Foreign { .. })));
    fs::remove_file(bucket.join("data/job/job.json.bak")).unwrap();
    store.remove(&Disk::default()).await.unwrap();
    let files: Vec<_> = listing(&bucket).into_iter().filter(|path| path.is_file()).collect();
    assert_eq!(files, [bucket.join("data/images/1.png")]);
}

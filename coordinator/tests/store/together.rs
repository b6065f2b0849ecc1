//! Two coordinators that begin at once, and workers that put parts while a job ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use obsdiff_coordinator::{CoordinatorStore, Opened};
use obsdiff_files::Disk;
use obsdiff_proto::Digest;
use obsdiff_store::{JobRecord, JobStore, Prompts, StoreError};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::failing::Failing;
use crate::job::{prompts, record, weights};

/// The same job with other prompts.
fn other() -> (JobRecord, Prompts) {
    let prompts = Prompts { calibration: vec!["a green square".to_owned(); 2], ..prompts() };
    (JobRecord { prompts: prompts.digest().unwrap(), ..record() }, prompts)
}

proptest! {
    #[test]
    fn of_two_jobs_that_begin_at_once_one_has_the_store_with_its_own_prompts(turns in vec(0u8..4, 24)) {
        let store = Arc::new(Failing::taking_turns(turns));
        let store = CoordinatorStore::from(JobStore::over(store, "taking turns"));
        let jobs = [(record(), prompts()), other()];
        let begin = |(record, prompts): (JobRecord, Prompts)| {
            let store = store.clone();
            async move { store.begin(&record, &prompts).await }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let [first, second] = jobs.clone().map(begin);
            let (first, second) = tokio::join!(first, second);
            let winner = match (&first, &second) {
                (Ok(Opened::New), Err(StoreError::Changed { .. })) => &jobs[0],
                (Err(StoreError::Changed { .. }), Ok(Opened::New)) => &jobs[1],
                ends => panic!("{ends:?}"),
            };
            assert_eq!(store.job().await.unwrap(), winner.0);
            assert_eq!(store.prompts(&winner.0).await.unwrap(), winner.1);
        });
    }
}

#[test]
fn a_job_that_begins_while_another_one_ends_begins_anew_or_finds_the_directory_in_use() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("new/state");
    let run_jobs = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut done = 0;
        while done < 200 {
            let store = match CoordinatorStore::create(path.to_str().unwrap(), &[]) {
                Err(StoreError::InUse { .. }) => continue,
                created => created.unwrap(),
            };
            runtime.block_on(store.remove(&Disk::default())).unwrap();
            // A job leaves the directory that it has found, though the one that made it has just ended.
            for folder in [&path, path.parent().unwrap()] {
                let _ = std::fs::remove_dir(folder);
            }
            done += 1;
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(run_jobs))));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
}

/// Puts parts and conditionings of a worker before and after the job's end.
async fn put_before_and_after_the_end(store: &CoordinatorStore, worker: &JobStore) {
    store.begin(&record(), &prompts()).await.unwrap();
    let key = Digest::of(b"a prompt");
    worker.put_part(weights(1)).await.unwrap();
    worker.put_conditioning(key, weights(1)).await.unwrap();
    store.remove(&Disk::default()).await.unwrap();
    for late in [worker.put_part(weights(2)).await.map(drop), worker.put_conditioning(key, weights(2)).await]
    {
        let late = late.unwrap_err();
        assert!(matches!(late, StoreError::Gone { .. }), "{late}");
        assert!(late.to_string().contains(" is gone: its job is done, or it was removed"), "{late}");
    }
}

#[tokio::test]
async fn a_worker_leaves_nothing_behind_of_a_job_that_is_done() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("state");
    let store = CoordinatorStore::create(state.to_str().unwrap(), &[]).unwrap();
    put_before_and_after_the_end(&store, &JobStore::open(state.to_str().unwrap(), &[]).unwrap()).await;
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);

    let bucket = Arc::new(InMemory::new());
    let worker = JobStore::over(bucket.clone(), "bucket");
    put_before_and_after_the_end(&CoordinatorStore::from(worker.clone()), &worker).await;
    assert_eq!(bucket.list(None).try_collect::<Vec<_>>().await.unwrap(), []);
}

#[test]
fn parts_that_workers_put_while_a_job_ends_go_with_it() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("state");
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    for job in 0..40 {
        let store = CoordinatorStore::create(state.to_str().unwrap(), &[]).unwrap();
        runtime().block_on(store.begin(&record(), &prompts())).unwrap();
        let worker = JobStore::open(state.to_str().unwrap(), &[]).unwrap();
        let [put, ended, is_gone] = [(); 3].map(|()| AtomicBool::new(false));
        std::thread::scope(|scope| {
            for number in 0..2u8 {
                let (put, ended, is_gone, worker) = (&put, &ended, &is_gone, worker.clone());
                scope.spawn(move || {
                    for part in (0..128).cycle() {
                        let last = ended.load(Ordering::SeqCst);
                        match runtime().block_on(worker.put_part(weights(128 * number + part))) {
                            Err(StoreError::Gone { .. }) => return is_gone.store(true, Ordering::SeqCst),
                            written => drop(written.unwrap()),
                        }
                        put.store(true, Ordering::SeqCst);
                        if last {
                            return;
                        }
                    }
                });
            }
            while !put.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            runtime().block_on(store.remove(&Disk::default())).unwrap();
            ended.store(true, Ordering::SeqCst);
        });
        assert!(is_gone.into_inner(), "job {job}");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "job {job}");
    }
}

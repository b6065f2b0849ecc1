//! Two coordinators that begin at once.

use std::sync::Arc;

use obsdiff_coordinator::{CoordinatorStore, Opened};
use obsdiff_files::Disk;
use obsdiff_store::{JobRecord, JobStore, Prompts, StoreError};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::failing::Failing;
use crate::job::{prompts, record};

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

//! Two coordinators that begin at once.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use obsdiff_worker::store::{JobRecord, JobStore, Opened, Prompts, StoreError};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::job::{prompts, record};

/// Lets others go first before each object is read or written: so many times as the next of these numbers says.
#[derive(Debug)]
struct Taking {
    inner: InMemory,
    turns: Mutex<VecDeque<u8>>,
}

impl Taking {
    async fn turns(&self) {
        let turns = self.turns.lock().unwrap().pop_front().unwrap_or(0);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

impl fmt::Display for Taking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("taking turns")
    }
}

#[async_trait]
impl ObjectStore for Taking {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.turns().await;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.turns().await;
        self.inner.get_opts(location, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The same job with other prompts.
fn other() -> (JobRecord, Prompts) {
    let prompts = Prompts { calibration: vec!["a green square".to_owned(); 2], ..prompts() };
    (JobRecord { prompts: prompts.digest().unwrap(), ..record() }, prompts)
}

proptest! {
    #[test]
    fn of_two_jobs_that_begin_at_once_one_has_the_store_with_its_own_prompts(turns in vec(0u8..4, 24)) {
        let store = Arc::new(Taking { inner: InMemory::new(), turns: Mutex::new(turns.into()) });
        let store = JobStore::over(store, "taking turns");
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

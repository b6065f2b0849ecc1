//! A store that fails, for a while and for good, and one that lets others go first.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use obsdiff_coordinator::CoordinatorStore;
use obsdiff_store::{JobStore, Retries, StoreError};

use crate::job::{manifest, prompts, record, weights};

/// Fails before, or after, so many writes and reads.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    inner: InMemory,
    /// How often others go first: before each object is written or read, as the next of these numbers says.
    turns: Mutex<VecDeque<u8>>,
    before: AtomicU32,
    after: AtomicU32,
    asked: AtomicU32,
}

impl Failing {
    /// One that never fails, and in which others go first so often.
    pub(crate) fn taking_turns(turns: Vec<u8>) -> Self {
        Self { turns: Mutex::new(turns.into()), ..Self::default() }
    }

    async fn let_others_go_first(&self) {
        let turns = self.turns.lock().unwrap().pop_front().unwrap_or(0);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    fn once(&self, left: &AtomicU32) -> Result<()> {
        let counted = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match counted {
            Ok(_) => Err(Error::Generic { store: "failing", source: "no space left".into() }),
            Err(_) => Ok(()),
        }
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.let_others_go_first().await;
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.once(&self.before)?;
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.once(&self.after)?;
        Ok(put)
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.let_others_go_first().await;
        self.once(&self.before)?;
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

fn store(failing: &Arc<Failing>) -> CoordinatorStore {
    let retries = Retries { tries: 4, first: Duration::from_millis(100), most: Duration::from_millis(300) };
    CoordinatorStore::from(JobStore::over(failing.clone(), "failing")).with_retries(retries)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_a_while_is_waited_for() {
    let failing = Arc::new(Failing::default());
    let store = store(&failing);
    let start = tokio::time::Instant::now();
    failing.before.store(3, Ordering::SeqCst);
    store.begin(&record(), &prompts()).await.unwrap();
    // Waits double up to the longest; each may end in the next millisecond.
    let waited = start.elapsed().as_millis();
    assert!((600..=603).contains(&waited), "{waited}");
    failing.before.store(3, Ordering::SeqCst);
    assert_eq!(store.job().await.unwrap(), record());
}

/// As a job under way waits, not for a few seconds.
#[tokio::test(start_paused = true)]
async fn a_process_that_starts_waits_for_a_store_of_the_network() {
    let failing = Arc::new(Failing::default());
    let start = tokio::time::Instant::now();
    failing.before.store(20, Ordering::SeqCst);
    let store = CoordinatorStore::from(JobStore::over(failing.clone(), "s3://bucket/job")).at_start();
    store.begin(&record(), &prompts()).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(60));
    failing.before.store(20, Ordering::SeqCst);
    let here = CoordinatorStore::from(JobStore::over(failing, "out.state")).at_start();
    assert!(here.job().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_good_is_given_up() {
    let failing = Arc::new(Failing::default());
    let store = store(&failing);
    failing.before.store(u32::MAX, Ordering::SeqCst);
    let error = store.put_exponents(3, &[].into()).await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(failing.asked.load(Ordering::SeqCst), 4);
    assert_eq!(
        error.to_string(),
        "failing: exponents/00000003.json could not be written in 4 tries: Generic failing error: no space left"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_written_though_its_answer_was_lost_counts() {
    let failing = Arc::new(Failing::default());
    let store = store(&failing);
    failing.after.store(1, Ordering::SeqCst);
    store.begin(&record(), &prompts()).await.unwrap();
    let receipt = (&store.put_part(weights(1)).await.unwrap()).into();
    failing.after.store(1, Ordering::SeqCst);
    store.commit(&manifest(0, [receipt], 1)).await.unwrap();
    assert_eq!(store.committed().await.unwrap().len(), 1);
    // A life whose answer was lost is passed over: it is nobody's.
    failing.after.store(1, Ordering::SeqCst);
    assert_eq!(store.raise_life().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_not_asked_again() {
    let failing = Arc::new(Failing::default());
    let store = store(&failing);
    let start = tokio::time::Instant::now();
    assert!(matches!(store.job().await, Err(StoreError::Missing { .. })));
    assert!(start.elapsed().is_zero());
}

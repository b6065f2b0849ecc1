#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process;

use obsdiff_proto::JobSpec;

use super::*;

fn spec() -> JobSpec {
    let spec = serde_json::json!({
        "model": { "path": "pipeline" },
        "sparsity": { "pattern": "2:4" },
        "calibration": { "prompts": "prompts.txt" },
        "output": { "path": "out" },
    });
    serde_json::from_value(spec).unwrap()
}

/// A folder of this test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("obsdiff-{test}-{}", process::id())))
    }

    async fn store(&self) -> JobStore {
        let store = JobStore::create(self.0.to_str().unwrap(), &[]).unwrap();
        store.claim(&spec()).await.unwrap();
        store
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn in_memory() -> JobStore {
    let store = JobStore::memory();
    store.claim(&spec()).await.unwrap();
    store
}

/// Saves sums of one shard, of two Grams.
async fn save(store: &JobStore, shard: u32) -> (Receipt, SumsRecord) {
    let mut grams = Vec::new();
    for group in [None, Some(0)] {
        let content = format!("the Gram of shard {shard} over {group:?}").into_bytes();
        let receipt = store.put_gram_of_sums(content).await.unwrap();
        grams.push(SavedGram { site: SiteId(3), group, receipt });
    }
    let exponents = [(SiteId(3), -4)].into();
    let shards = [ShardId(shard)].into();
    let record = SumsRecord { package: PackageId(1), exponents, shards, grams };
    (store.put_sums(&record).await.unwrap(), record)
}

async fn names(store: &JobStore) -> Vec<String> {
    store.list(SUMS).await.unwrap()
}

async fn come_back_and_go(store: &JobStore) {
    let (first, of_first) = save(store, 0).await;
    let (second, of_second) = save(store, 1).await;
    assert_eq!(store.sums(&first).await.unwrap(), of_first);
    let gram = store.gram_of_sums(&of_second.grams[1].receipt).await.unwrap();
    assert_eq!(gram, "the Gram of shard 1 over Some(0)");
    let mut expected = vec![(first.clone(), of_first), (second.clone(), of_second.clone())];
    let mut found = store.saved_sums().await.unwrap();
    for sums in [&mut expected, &mut found] {
        sums.sort_by_key(|(_, record)| record.shards.clone());
    }
    assert_eq!(found, expected);
    assert_eq!(names(store).await.len(), 6);

    store.remove_sums(&first).await.unwrap();
    store.remove_sums(&first).await.unwrap();
    assert_eq!(store.saved_sums().await.unwrap(), [(second, of_second)]);
    assert_eq!(names(store).await.len(), 3);
    // A worker that ended between its Grams and the record.
    store.put_gram_of_sums(b"unnamed".to_vec()).await.unwrap();
    store.remove_all_sums().await.unwrap();
    store.remove_all_sums().await.unwrap();
    assert_eq!(names(store).await, Vec::<String>::new());
    assert_eq!(store.saved_sums().await.unwrap(), []);
}

#[tokio::test]
async fn saved_sums_come_back_and_go() {
    come_back_and_go(&in_memory().await).await;
    let folder = Folder::new("sums-come-back");
    come_back_and_go(&folder.store().await).await;
}

#[tokio::test]
async fn a_state_that_an_earlier_release_began_gets_the_folder_of_sums() {
    let folder = Folder::new("sums-of-earlier");
    drop(folder.store().await);
    std::fs::remove_dir(folder.0.join(SUMS)).unwrap();
    let (receipt, record) = save(&folder.store().await, 0).await;
    let store = JobStore::open(folder.0.to_str().unwrap(), &[]).unwrap();
    assert_eq!(store.sums(&receipt).await.unwrap(), record);
}

/// Changes an object of a directory, and returns which saved sums are found and what is said of those of shard 0.
async fn after(test: &str, change: impl Fn(&Path, &SumsReceipt, &SumsReceipt)) -> (usize, StoreError) {
    let folder = Folder::new(test);
    let store = folder.store().await;
    let (receipt, record) = save(&store, 0).await;
    let (other, of_other) = save(&store, 1).await;
    change(&folder.0, &SumsReceipt::try_from(&receipt).unwrap(), &record.grams[0].receipt);
    let found = store.saved_sums().await.unwrap();
    assert!(found.contains(&(other, of_other)), "those of the other worker stay: {found:?}");
    (found.len(), store.sums(&receipt).await.unwrap_err())
}

#[tokio::test]
async fn damaged_sums_are_passed_over() {
    let (found, error) = after("sums-cut", |folder, record, _| {
        let content = std::fs::read(folder.join(&record.object)).unwrap();
        std::fs::write(folder.join(&record.object), &content[1..]).unwrap();
    })
    .await;
    assert!(found == 1 && matches!(error, StoreError::Size { .. }), "{error}");
    let (found, error) = after("sums-changed", |folder, record, _| {
        let content = std::fs::read_to_string(folder.join(&record.object)).unwrap();
        std::fs::write(folder.join(&record.object), content.replace("-4", "-5")).unwrap();
    })
    .await;
    assert!(found == 1 && matches!(error, StoreError::Damaged { .. }), "{error}");
    let (found, error) = after("sums-without", |folder, _, gram| {
        std::fs::remove_file(folder.join(&gram.object)).unwrap();
    })
    .await;
    assert!(found == 1 && matches!(error, StoreError::Missing { .. }), "{error}");
    let (found, error) = after("sums-short", |folder, _, gram| {
        std::fs::write(folder.join(&gram.object), b"short").unwrap();
    })
    .await;
    assert!(found == 1 && matches!(error, StoreError::Size { .. }), "{error}");
    assert!(error.to_string().ends_with("the same command runs its shards again"), "{error}");
}

#[tokio::test]
async fn a_record_names_and_removes_nothing_but_grams_of_sums() {
    let store = in_memory().await;
    let part = store.put_part(b"weights".to_vec()).await.unwrap();
    let (_, mut record) = save(&store, 0).await;
    record.grams[0].receipt =
        SumsReceipt { object: part.object.clone(), sha256: part.sha256, bytes: part.bytes };
    let receipt = store.put_sums(&record).await.unwrap();
    assert!(matches!(store.remove_sums(&receipt).await, Err(StoreError::Damaged { .. })));
    assert!(matches!(store.sums(&receipt).await, Err(StoreError::Damaged { .. })));
    assert_eq!(store.part(&part).await.unwrap(), "weights");
    let of_part = Receipt::from(&part);
    assert!(matches!(store.sums(&of_part).await, Err(StoreError::Receipt { .. })));
}

#[tokio::test]
async fn sums_go_with_the_results_and_with_the_manifests_that_they_count_on() {
    let store = in_memory().await;
    save(&store, 0).await;
    store.discard_manifests_from(PackageId(1)).await.unwrap();
    assert_eq!(names(&store).await, Vec::<String>::new());
    save(&store, 0).await;
    store.discard_results().await.unwrap();
    assert_eq!(names(&store).await, Vec::<String>::new());
}

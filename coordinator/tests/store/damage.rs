//! Objects that are missing, truncated or damaged: each is found, and named.

use std::fs;
use std::path::PathBuf;

use obsdiff_coordinator::CoordinatorStore;
use obsdiff_proto::message::{Manifest, Receipt};
use obsdiff_proto::{Digest, PackageId};
use obsdiff_store::{JobStore, PartReceipt, StoreError};
use serde_json::Value;

use crate::job::{manifest, prompts, record, weights};

struct KeptJob {
    directory: tempfile::TempDir,
    store: CoordinatorStore,
    part: PartReceipt,
}

/// A job with one package committed.
async fn kept() -> KeptJob {
    let directory = tempfile::tempdir().unwrap();
    let store = CoordinatorStore::create(directory.path().to_str().unwrap(), &[]).unwrap();
    store.begin(&record(), &prompts()).await.unwrap();
    let part = store.put_part(weights(1)).await.unwrap();
    store.commit(&manifest(0, [Receipt::from(&part)], 12)).await.unwrap();
    KeptJob { directory, store, part }
}

impl KeptJob {
    fn path(&self, object: &str) -> PathBuf {
        self.directory.path().join(object)
    }

    fn change(&self, object: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = fs::read(self.path(object)).unwrap();
        change(&mut content);
        fs::write(self.path(object), content).unwrap();
    }

    fn remove(&self, object: &str) {
        fs::remove_file(self.path(object)).unwrap();
    }
}

#[tokio::test]
async fn weights_that_are_missing_or_damaged_are_named() {
    let kept = kept().await;
    let object = kept.part.object.clone();
    let middle = kept.part.bytes as usize - 7;

    kept.change(&object, |content| content[middle] ^= 1);
    let damaged = kept.store.part(&kept.part).await.unwrap_err().to_string();
    assert!(damaged.contains(&format!("{object} is damaged: its content has the digest ")), "{damaged}");

    kept.change(&object, |content| content.truncate(middle));
    for error in [kept.store.part(&kept.part).await.unwrap_err(), kept.store.committed().await.unwrap_err()] {
        let words = format!("{object} has {middle} bytes instead of {}", kept.part.bytes);
        assert!(error.to_string().contains(&words), "{error}");
    }

    kept.remove(&object);
    for error in [kept.store.part(&kept.part).await.unwrap_err(), kept.store.committed().await.unwrap_err()] {
        assert!(error.to_string().ends_with(&format!("{object} is missing")), "{error}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn a_package_is_not_committed_without_its_weights() {
    let kept = kept().await;
    let part = kept.store.put_part(weights(2)).await.unwrap();
    let receipt = Receipt::from(&part);
    kept.remove(&part.object);
    let error = kept.store.commit(&manifest(1, [receipt], 12)).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    assert_eq!(kept.store.committed().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_package_is_not_committed_by_what_was_solved_for_another() {
    let kept = kept().await;
    let survey = manifest(0, [Receipt::from(&kept.part)], 12);
    let error = kept.store.commit(&Manifest { package: PackageId(1), ..survey }).await.unwrap_err();
    assert_eq!(error.to_string(), "the manifest of package 2 names part 3.0 of package 1");
    assert_eq!(kept.store.committed().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_manifest_that_is_missing_or_damaged_is_named() {
    let kept = kept().await;
    let receipt = Receipt::from(&kept.part);
    kept.store.commit(&manifest(1, [receipt], 12)).await.unwrap();
    let first = fs::read(kept.path("packages/00000.json")).unwrap();
    let read = async || kept.store.committed().await.unwrap_err().to_string();

    // Whichever byte is changed: the digest, the content or what holds them together; but for spaces, and digits beyond those that
    // make the number.
    let said: Value = serde_json::from_slice(&first).unwrap();
    for at in 0..first.len() {
        let mut changed = first.clone();
        changed[at] ^= 1;
        if first[at].is_ascii_whitespace()
            || serde_json::from_slice::<Value>(&changed).is_ok_and(|v| v == said)
        {
            continue;
        }
        kept.change("packages/00000.json", |content| *content = changed);
        assert!(read().await.contains("packages/00000.json"), "byte {at}: {}", read().await);
        fs::write(kept.path("packages/00000.json"), &first).unwrap();
    }
    for length in [0, 1, first.len() / 2, first.len() - 1] {
        kept.change("packages/00000.json", |content| content.truncate(length));
        assert!(read().await.contains("packages/00000.json is damaged: it cannot be read: "));
        fs::write(kept.path("packages/00000.json"), &first).unwrap();
    }
    fs::copy(kept.path("packages/00001.json"), kept.path("packages/00000.json")).unwrap();
    assert!(
        read()
            .await
            .contains("packages/00000.json is damaged: it is the manifest of package 2; remove it, and")
    );
    kept.remove("packages/00000.json");
    assert!(read().await.ends_with("packages/00000.json is missing"));
}

#[tokio::test]
async fn another_format_is_told_from_damage() {
    let kept = kept().await;
    kept.change("job.json", |content| {
        let text = String::from_utf8(content.clone()).unwrap();
        *content = text.replace("\"format\": 1", "\"format\": 2").into_bytes();
    });
    let error = kept.store.job().await.unwrap_err().to_string();
    assert!(
        error.ends_with(
            "job.json has format 2, but this release reads format 1: use the release that wrote it"
        )
    );
    assert_eq!(kept.store.begin(&record(), &prompts()).await.unwrap_err().to_string(), error);
}

#[tokio::test]
async fn prompts_of_another_job_are_refused() {
    let kept = kept().await;
    let mut job = record();
    job.prompts = Digest::of(b"others");
    let error = kept.store.prompts(&job).await.unwrap_err().to_string();
    assert!(error.contains("prompts.json is damaged: its content has the digest "), "{error}");
}

#[test]
fn a_forged_receipt_is_refused() {
    let sha256 = Digest::of(b"weights");
    let receipt = PartReceipt { object: format!("parts/{sha256}.safetensors"), sha256, bytes: 1 };
    assert_eq!(PartReceipt::try_from(&Receipt::from(&receipt)).unwrap(), receipt);
    let refused = |receipt: &Receipt| PartReceipt::try_from(receipt).unwrap_err().to_string();
    let forged = PartReceipt { object: "../job.json".to_owned(), ..receipt };
    assert_eq!(
        refused(&Receipt::from(&forged)),
        format!("the receipt of a part cannot be read: it names ../job.json for the digest {sha256}")
    );
    assert!(refused(&Receipt("stored".into())).starts_with("the receipt of a part cannot be read: "));
}

#[tokio::test]
async fn a_life_after_which_there_can_be_no_other_is_named() {
    let store = CoordinatorStore::from(JobStore::memory());
    store.put_empty_new("lives/4294967294").await.unwrap();
    assert_eq!(store.raise_life().await.unwrap(), u32::MAX);
    let error = store.raise_life().await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }) && !error.is_transient(), "{error}");
    assert_eq!(
        error.to_string(),
        "memory: lives/4294967295 is damaged: no life can have a higher number; remove it, and the same command goes on without it"
    );
}

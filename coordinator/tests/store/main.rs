//! The store of a job: in memory, in a directory, and on a server of the S3 protocol.
#![allow(clippy::unwrap_used, clippy::panic)]

mod credentials;
mod damage;
mod failing;
mod folder;
mod job;
mod ours;
mod s3;
mod together;

use std::time::Duration;

use job::{manifest, prompts, record, weights};
use obsdiff_coordinator::{CoordinatorStore, Opened, Records, StoreRecords};
use obsdiff_files::Disk;
use obsdiff_proto::PackageId;
use obsdiff_proto::message::Receipt;
use obsdiff_store::{JobStore, PartReceipt, Retries, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The whole life of a job in one store.
async fn lives(store: &CoordinatorStore) {
    assert_eq!(store.begin(&record(), &prompts()).await.unwrap(), Opened::New);
    assert_eq!(store.begin(&record(), &prompts()).await.unwrap(), Opened::Resumed);
    assert_eq!(store.job().await.unwrap(), record());
    assert_eq!(store.prompts(&record()).await.unwrap(), prompts());

    assert_eq!(store.latest_life().await.unwrap(), None);
    for life in 0..3 {
        assert_eq!(store.raise_life().await.unwrap(), life);
    }
    assert_eq!(store.latest_life().await.unwrap(), Some(2));

    assert_eq!(store.exponents().await.unwrap(), None);
    for exponent in [12, -7] {
        let exponents = manifest(0, [], exponent).exponents;
        store.put_exponents(0, &exponents).await.unwrap();
        assert_eq!(store.exponents().await.unwrap(), Some(exponents));
    }

    assert_eq!(store.hardware().await.unwrap(), None);
    store.put_hardware(0, "a processor").await.unwrap();
    assert_eq!(store.hardware().await.unwrap().as_deref(), Some("a processor"));

    assert_eq!(store.metrics().await.unwrap(), None);
    store.put_metrics("obsdiff_retries_total 0\n").await.unwrap();
    assert_eq!(store.metrics().await.unwrap().as_deref(), Some("obsdiff_retries_total 0\n"));

    let receipt = store.put_part(weights(1)).await.unwrap();
    assert_eq!(store.put_part(weights(1)).await.unwrap(), receipt, "named by content");
    assert_ne!(store.put_part(weights(2)).await.unwrap(), receipt);
    let said = Receipt::from(&receipt);
    assert_eq!(PartReceipt::try_from(&said).unwrap(), receipt);
    assert_eq!(store.part(&receipt).await.unwrap(), weights(1));

    assert_eq!(store.committed().await.unwrap(), []);
    let manifests = [manifest(0, [said.clone()], 12), manifest(1, [said], 12)];
    for manifest in &manifests {
        store.commit(manifest).await.unwrap();
        store.commit(manifest).await.unwrap();
    }
    assert_eq!(store.committed().await.unwrap(), manifests);
    assert_eq!(store.manifest(PackageId(1)).await.unwrap(), manifests[1]);
    let other = manifest(1, [], 12);
    assert!(matches!(store.commit(&other).await, Err(StoreError::Conflict { .. })));
    assert_eq!(store.committed().await.unwrap(), manifests, "what is committed stays");
}

#[tokio::test]
async fn a_job_lives_in_memory() {
    lives(&CoordinatorStore::from(JobStore::memory())).await;
}

#[tokio::test]
async fn a_job_lives_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/job");
    lives(&CoordinatorStore::create(path.to_str().unwrap(), &[]).unwrap()).await;
    let names = |of: &str| {
        let mut names: Vec<_> = path
            .join(of)
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let first =
        ["conditioning", "exponents", "hardware", "job.json", "lives", "metrics.json", "obsdiff.json"];
    assert_eq!(
        names(""),
        [&first[..], &["obsdiff.lock", "packages", "parts", "prompts.json", "sums"]].concat()
    );
    assert_eq!(names("packages"), ["00000.json", "00001.json"]);
    assert_eq!(names("lives"), ["00000000", "00000001", "00000002"]);
    assert_eq!([names("exponents"), names("hardware")], [["00000000.json"], ["00000000.json"]]);
    // The same store under the other name of the directory.
    let url = format!("file://{}", path.display());
    assert_eq!(
        CoordinatorStore::from(JobStore::open(&url, &[]).unwrap()).committed().await.unwrap().len(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_lives_on_an_s3_server() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bucket")).unwrap();
    let server = s3::Server::start_at("127.0.0.1:0", root.path()).await;
    let url = "s3://bucket/some/job";
    lives(&CoordinatorStore::create(url, &server.options()).unwrap()).await;
    assert!(root.path().join("bucket/some/job/job.json").is_file());
    // Another process finds it; another prefix is another job.
    assert_eq!(
        CoordinatorStore::from(JobStore::open(url, &server.options()).unwrap())
            .committed()
            .await
            .unwrap()
            .len(),
        2
    );
    let other = CoordinatorStore::from(JobStore::open("s3://bucket/some", &server.options()).unwrap());
    let missing = other.job().await.unwrap_err().to_string();
    assert_eq!(missing, "s3://bucket/some: job.json is missing");
    // Too much asked of it for the moment.
    server.refuse(true);
    let retries = Retries { tries: 2, first: Duration::from_millis(1), most: Duration::from_millis(1) };
    let busy = other.clone().with_retries(retries).job().await.unwrap_err();
    assert!(busy.is_transient());
    let words = "s3://bucket/some: job.json could not be read in 2 tries: ";
    assert!(busy.to_string().starts_with(words), "{busy}");
    // A wrong request is not repeated, not even by a process that starts, which otherwise tries for two minutes.
    server.refuse(false);
    server.pass_reads("some/", 0, s3::Later::Rejected);
    let rejected = other.at_start().job().await.unwrap_err();
    assert!(matches!(rejected, StoreError::Rejected { .. }) && !rejected.is_transient(), "{rejected}");
    let words = "s3://bucket/some: job.json cannot be read: the store rejects the request, and trying again does not help: ";
    assert!(rejected.to_string().starts_with(words), "{rejected}");
}

#[tokio::test]
async fn two_that_start_at_once_get_lives_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    for store in [
        CoordinatorStore::from(JobStore::memory()),
        CoordinatorStore::create(directory.path().to_str().unwrap(), &[]).unwrap(),
    ] {
        let starts = (0..16).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.raise_life().await.unwrap() })
        });
        let mut taken = Vec::new();
        for start in starts.collect::<Vec<_>>() {
            taken.push(start.await.unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, (0..16).collect::<Vec<_>>());
    }
}

/// A write that was under way when a coordinator lost its job may arrive at any time later.
#[tokio::test]
async fn what_a_coordinator_that_was_left_over_writes_is_not_read_in_place_of_its_successors() {
    let store = CoordinatorStore::from(JobStore::memory());
    store.begin(&record(), &prompts()).await.unwrap();
    let left_over = StoreRecords { store: store.clone(), life: store.raise_life().await.unwrap() };
    let successor = StoreRecords { store: store.clone(), life: store.raise_life().await.unwrap() };
    let exponents = |exponent| manifest(0, [], exponent).exponents;
    // The first one's are read until the second one has its own.
    left_over.save(&exponents(12)).await.unwrap();
    left_over.save_hardware("a processor").await.unwrap();
    assert_eq!(store.exponents().await.unwrap(), Some(exponents(12)));
    assert_eq!(store.hardware().await.unwrap().as_deref(), Some("a processor"));
    successor.save(&exponents(11)).await.unwrap();
    successor.save_hardware("another processor").await.unwrap();
    left_over.save(&exponents(7)).await.unwrap();
    left_over.save_hardware("a third processor").await.unwrap();
    assert_eq!(store.exponents().await.unwrap(), Some(exponents(11)));
    assert_eq!(store.hardware().await.unwrap().as_deref(), Some("another processor"));
    store.remove(&Disk::default()).await.unwrap();
    assert_eq!((store.exponents().await.unwrap(), store.hardware().await.unwrap()), (None, None));
}

#[test]
fn a_url_that_is_no_store_is_refused_in_words() {
    let refused = |url: &str| CoordinatorStore::create(url, &[]).unwrap_err().to_string();
    for url in ["", "http://host/job", "ftp://host/job", "memory:///job"] {
        assert!(
            refused(url).contains("is no store: give a directory, or a URL such as s3://"),
            "{}",
            refused(url)
        );
    }
    assert!(refused("s3://").contains("is no"), "{}", refused("s3://"));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(refused(file.path().to_str().unwrap()).contains("is no directory"));
    let gone = JobStore::open("no/such/directory", &[]).unwrap_err().to_string();
    assert_eq!(
        gone,
        "no/such/directory: is no directory of this machine: all workers must reach the store at one place"
    );
}

#[tokio::test]
async fn another_job_is_refused_by_key_and_file() {
    let store = CoordinatorStore::from(JobStore::memory());
    store.begin(&record(), &prompts()).await.unwrap();
    let refused = async |change: fn(&mut obsdiff_store::JobRecord)| {
        let mut job = record();
        change(&mut job);
        match store.begin(&job, &prompts()).await {
            Err(StoreError::Changed { changes, .. }) => changes,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(|job| {
            job.spec.sparsity.ratio = Some(0.6);
            job.spec.calibration.height = Some(64);
            job.plan = obsdiff_proto::Digest::of(b"follows from those");
        })
        .await,
        ["calibration.height was absent and is 64", "sparsity.ratio was 0.5 and is 0.6"]
    );
    let split = refused(|job| job.spec.packages.split_above = 1).await;
    assert_eq!(split, ["packages.split_above was 4398046511104 and is 1"]);
    let rename = |job: &mut obsdiff_store::JobRecord| {
        job.model_files[0].sha256 = "0".repeat(64);
        job.prompt_files[0].path = "others.txt".to_owned();
    };
    assert_eq!(
        refused(rename).await,
        ["the content of model.safetensors changed", "prompts.txt is gone", "others.txt is new"]
    );
    let release = |job: &mut obsdiff_store::JobRecord| {
        job.release = "9".to_owned();
        job.plan = obsdiff_proto::Digest::of(b"another plan");
    };
    assert_eq!(
        refused(release).await,
        ["the job is planned differently (obsdiff 1 began the job, and this is 9)"]
    );
    let words = StoreError::Changed { store: "s".to_owned(), changes: vec!["a".to_owned(), "b".to_owned()] };
    assert_eq!(
        words.to_string(),
        "s holds another job: a; b. Undo that to resume, or set output.state to another place"
    );
    // A release by itself changes nothing.
    let mut job = record();
    job.release = "9".to_owned();
    assert_eq!(store.begin(&job, &prompts()).await.unwrap(), Opened::Resumed);
}

/// A server that says of everything what S3 says of a bucket that is not there.
async fn bucketless() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>NoSuchBucket</Code></Error>";
    let answer = format!(
        "HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n")
                && socket.read_buf(&mut asked).await.is_ok_and(|read| read > 0)
            {}
            // A client that hangs up asks again.
            socket.write_all(answer.as_bytes()).await.ok();
        }
    });
    address
}

#[tokio::test]
async fn a_missing_bucket_is_named_as_such() {
    let options = [
        ("AWS_ACCESS_KEY_ID", "a-key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "its-secret".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT", format!("http://{}", bucketless().await)),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value));
    let store = CoordinatorStore::from(JobStore::open("s3://no-such-bucket/job", &options).unwrap());
    let error = store.job().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "s3://no-such-bucket/job: there is no such bucket or container: make it, or name another in output.state"
    );
}

#[tokio::test]
async fn plain_http_is_refused_by_the_setting_that_allows_it() {
    let plain = |key: &str| [(key.to_owned(), "http://storage.local:9000".to_owned())];
    for (url, key, allows) in [
        ("s3://bucket/job", "AWS_ENDPOINT", "AWS_ALLOW_HTTP=true"),
        ("s3://bucket/job", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP=true"),
        ("az://container/job", "AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP=true"),
    ] {
        let said = CoordinatorStore::create(url, &plain(key)).unwrap_err().to_string();
        let expected = format!("{url}: {key} is http://storage.local:9000, which is not encrypted: ");
        assert!(said.starts_with(&expected) && said.ends_with(allows), "{said}");
    }
}

#[tokio::test]
async fn settings_that_are_missing_or_wrong_are_named() {
    let wrong = |key: &str| vec![(key.to_owned(), "nothing".to_owned())];
    for (url, options, problem) in [
        ("az://container/job", vec![], "Account must be specified; check AZURE_STORAGE_ACCOUNT_NAME and "),
        (
            "gs://bucket/job",
            wrong("GOOGLE_SERVICE_ACCOUNT_KEY"),
            "GCP credential error: Unable to decode service account file: ",
        ),
        ("gs://bucket/job", wrong("GOOGLE_SERVICE_ACCOUNT_KEY"), "; check GOOGLE_APPLICATION_CREDENTIALS"),
    ] {
        let said = CoordinatorStore::create(url, &options).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{url}: cannot be opened: ")) && said.contains(problem), "{said}");
        assert!(!said.contains("Generic"), "{said}");
    }
}

/// Nothing of what the environment says of object stores is used: neither an address nor a credential.
#[tokio::test]
async fn a_directory_is_used_whatever_the_environment_says_of_object_stores() {
    let folder = tempfile::tempdir().unwrap();
    let options = [
        ("AWS_ENDPOINT", "http://192.0.2.1:9"),
        ("AWS_METADATA_ENDPOINT", "http://192.0.2.1:9"),
        ("AWS_REGION", ""),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let path = folder.path().join("state");
    lives(&CoordinatorStore::create(path.to_str().unwrap(), &options).unwrap()).await;
}

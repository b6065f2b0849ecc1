//! Processes whose variables give no credentials: the metadata service of their machine is asked, and not for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, put};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use obsdiff_coordinator::CoordinatorStore;
use obsdiff_store::{JobStore, StoreError};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::job::{prompts, record};
use crate::s3::Server;

/// The variables of a store without credentials, and a metadata service at this address.
fn options(store: &str, metadata: &str) -> Vec<(String, String)> {
    let options = [
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT", store),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_METADATA_ENDPOINT", metadata),
    ];
    options.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn address(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().unwrap())
}

/// Asks for a job as a process does that starts. The store itself is never asked.
async fn asks_for_long(metadata: &str) -> (StoreError, Duration) {
    let store = JobStore::open("s3://bucket/job", &options("http://127.0.0.1:1", metadata)).unwrap();
    let begun = Instant::now();
    let error = CoordinatorStore::from(store.at_start()).job().await.unwrap_err();
    (error, begun.elapsed())
}

/// Time is the runtime's, so that waits take none.
#[tokio::test(start_paused = true)]
async fn without_credentials_a_process_ends_soon_and_names_the_variables() {
    // Nobody is there; somebody takes connections and never answers, as where a container's packets may not go so far.
    let gone = address(&TcpListener::bind("127.0.0.1:0").await.unwrap());
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for metadata in [&gone, &address(&silent)] {
        let (error, waited) = asks_for_long(metadata).await;
        assert!(matches!(error, StoreError::NoCredentials { .. }), "{error}");
        let words = error.to_string();
        let says = "s3://bucket/job: this process has no credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY";
        assert!(words.starts_with(says) && words.contains(metadata.as_str()), "{words}");
        assert!((15..30).contains(&waited.as_secs()), "{waited:?}: {words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_service_that_answers_late_is_waited_for() {
    const FAILS: usize = 4;
    let asked = Arc::new(AtomicUsize::new(0));
    let token = {
        let asked = asked.clone();
        move || async move {
            let early = asked.fetch_add(1, Ordering::SeqCst) < FAILS;
            if early { Err(StatusCode::SERVICE_UNAVAILABLE) } else { Ok("a-token") }
        }
    };
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let key = r#"{"AccessKeyId": "a-key", "SecretAccessKey": "its-secret", "Token": "", "Expiration": "2100-01-01T00:00:00Z"}"#;
    let service = Router::new()
        .route("/latest/api/token", put(token))
        .route(ROLES, get(|| async { "role" }))
        .route(&format!("{ROLES}role"), get(move || async move { key }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metadata = address(&listener);
    tokio::spawn(async move {
        let service = TowerToHyperService::new(service);
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            let builder = Builder::new(TokioExecutor::new());
            // A client that hangs up is no failure of the service's.
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(socket), service).await.ok() });
        }
    });

    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bucket")).unwrap();
    let server = Server::start_at("127.0.0.1:0", root.path()).await;
    let endpoint = server.options().into_iter().find(|(key, _)| key == "AWS_ENDPOINT").unwrap().1;
    let store = JobStore::open("s3://bucket/job", &options(&endpoint, &metadata)).unwrap();
    CoordinatorStore::from(store.at_start()).begin(&record(), &prompts()).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), FAILS + 1);
}

//! A server of the S3 protocol on loopback.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A server whose buckets are the folders of a directory.
pub(crate) struct Server {
    endpoint: String,
    busy: Busy,
    serving: JoinHandle<()>,
}

/// Whether every request is refused as one too many.
#[derive(Clone, Default)]
struct Busy(Arc<AtomicBool>);

#[async_trait]
impl S3Access for Busy {
    async fn check(&self, _: &mut S3AccessContext<'_>) -> S3Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(s3_error!(ServiceUnavailable)) } else { Ok(()) }
    }
}

impl Server {
    pub(crate) async fn start_at(address: &str, root: &Path) -> Self {
        let busy = Busy::default();
        let mut service = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
        service.set_auth(SimpleAuth::from_single("a-key", "its-secret"));
        service.set_access(busy.clone());
        let service = service.build();
        let listener = TcpListener::bind(address).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    // A client that hangs up is no failure of the server's.
                    builder.serve_connection(TokioIo::new(socket), service).await.ok();
                });
            }
        });
        Self { endpoint, busy, serving }
    }

    /// From now on, or no longer, all that is asked is answered by 503.
    pub(crate) fn refuse(&self, all: bool) {
        self.busy.0.store(all, Ordering::SeqCst);
    }

    /// What a process finds in its environment to reach it.
    pub(crate) fn options(&self) -> Vec<(String, String)> {
        let options = [
            ("AWS_ACCESS_KEY_ID", "a-key"),
            ("AWS_SECRET_ACCESS_KEY", "its-secret"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT", &self.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("HOME", "/nowhere"),
        ];
        options.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

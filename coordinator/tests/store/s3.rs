//! A server of the S3 protocol on loopback.
#![allow(dead_code)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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
    gate: RequestLimit,
    reading: RequestLimit,
    held: Arc<AtomicUsize>,
    read: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

/// Whether every request is refused as one too many.
#[derive(Clone, Default)]
struct Busy(Arc<AtomicBool>);

/// What becomes of requests for objects below a prefix, once so many have passed.
#[derive(Clone, Copy)]
pub(crate) enum Later {
    /// Each is answered by 503.
    Refused,
    /// None is answered.
    Held,
    /// Each is answered by 400.
    Rejected,
    /// Each is answered by 403, also those by which processes try what they may.
    Denied,
}

/// Lets some requests for objects pass.
#[derive(Clone, Default)]
struct RequestLimit(Arc<Mutex<Option<Passing>>>);

/// A prefix, how many requests may still pass, and what becomes of later ones.
type Passing = (&'static str, usize, Later);

impl RequestLimit {
    /// Whether every change is denied.
    fn denies(&self) -> bool {
        matches!(*self.0.lock().unwrap(), Some((_, 0, Later::Denied)))
    }

    /// What becomes of a request for a key; none where it passes.
    fn of(&self, key: &str) -> Option<Later> {
        let mut gate = self.0.lock().unwrap();
        let (prefix, passing, later) = gate.as_mut()?;
        let tries = key.ends_with("obsdiff-probe.json") && !matches!(later, Later::Denied);
        if !key.starts_with(*prefix) || tries {
            return None;
        }
        match passing.checked_sub(1) {
            Some(left) => {
                *passing = left;
                None
            }
            None => Some(*later),
        }
    }
}

/// What every request has to pass.
struct RequestRules {
    busy: Busy,
    changing: RequestLimit,
    reading: RequestLimit,
    held: Arc<AtomicUsize>,
    /// The keys of all objects that were read.
    read: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl S3Access for RequestRules {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if self.busy.0.load(Ordering::SeqCst) {
            return Err(s3_error!(ServiceUnavailable));
        }
        // These do not name their objects before their content.
        if context.s3_op().name() == "DeleteObjects" && self.changing.denies() {
            return Err(s3_error!(AccessDenied));
        }
        let key = context.s3_path().as_object().map(|(_, key)| key.to_owned());
        let Some(key) = key.filter(|_| context.method() != "HEAD") else { return Ok(()) };
        let later = if context.method() == "GET" { self.reading.of(&key) } else { self.changing.of(&key) };
        match later {
            None if context.method() == "GET" => self.read.lock().unwrap().push(key),
            None => {}
            Some(Later::Refused) => return Err(s3_error!(ServiceUnavailable)),
            Some(Later::Rejected) => return Err(s3_error!(InvalidRequest)),
            Some(Later::Denied) => return Err(s3_error!(AccessDenied)),
            Some(Later::Held) => {
                self.held.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
        }
        Ok(())
    }
}

impl Server {
    pub(crate) async fn start_at(address: &str, root: &Path) -> Self {
        let (busy, gate, held) = (Busy::default(), RequestLimit::default(), Arc::default());
        let (reading, read) = (RequestLimit::default(), Arc::default());
        let mut service = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
        service.set_auth(SimpleAuth::from_single("a-key", "its-secret"));
        service.set_access(RequestRules {
            busy: busy.clone(),
            changing: gate.clone(),
            reading: reading.clone(),
            held: Arc::clone(&held),
            read: Arc::clone(&read),
        });
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
        Self { endpoint, busy, gate, reading, held, read, serving }
    }

    /// From now on, or no longer, all that is asked is answered by 503.
    pub(crate) fn refuse(&self, all: bool) {
        self.busy.0.store(all, Ordering::SeqCst);
    }

    /// From now on at most so many changes of objects whose keys start with `prefix` pass.
    pub(crate) fn pass(&self, prefix: &'static str, changes: usize, later: Later) {
        *self.gate.0.lock().unwrap() = Some((prefix, changes, later));
    }

    /// The same for reading objects.
    pub(crate) fn pass_reads(&self, prefix: &'static str, reads: usize, later: Later) {
        *self.reading.0.lock().unwrap() = Some((prefix, reads, later));
    }

    /// Everything passes again.
    pub(crate) fn pass_all(&self) {
        *self.gate.0.lock().unwrap() = None;
        *self.reading.0.lock().unwrap() = None;
    }

    /// The keys of the objects below a prefix that were read since this was asked last, in order.
    pub(crate) fn read(&self, prefix: &str) -> Vec<String> {
        let mut read = std::mem::take(&mut *self.read.lock().unwrap());
        read.retain(|key| key.starts_with(prefix));
        read.sort();
        read
    }

    /// How many requests are held.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
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

//! Opening the store that a URL names.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use obsdiff_files::Disk;
use obsdiff_proto::causes;
use url::Url;

use super::directory::Directory;
use super::{Result, StoreError, credentials, plaintext};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenFor {
    /// To run the job, as its coordinator: a directory is made where there is none.
    Run,
    /// To take part in the job, as a worker: a directory must be there.
    Use,
    /// To keep Grams: a directory is made where there is none, and is not locked.
    Keep,
    /// To write large objects into a store other than a directory: failed requests are repeated.
    Upload,
}

/// How often a request of an upload is tried.
pub(super) const UPLOAD_TRIES: u32 = 6;

/// Where a job's objects are.
pub(super) struct Located {
    /// The store.
    pub(super) objects: Arc<dyn ObjectStore>,
    /// The prefix below which the job's objects lie.
    pub(super) prefix: Path,
    /// The directory, where the store is one and this process runs the job in it.
    pub(super) directory: Option<Directory>,
    /// Where the directory is, if the store is one.
    pub(super) path: Option<PathBuf>,
}

/// The directory that a URL names, if it names one.
pub(super) fn directory_of(url: &str) -> Result<Option<PathBuf>> {
    let refused = |problem: &str| StoreError::Url { url: url.to_owned(), problem: problem.to_owned() };
    match url.split_once("://") {
        None if url.is_empty() => Err(refused(UNKNOWN)),
        None => Ok(Some(PathBuf::from(url))),
        Some(("file", _)) => {
            let parsed = Url::parse(url).map_err(|e| refused(&format!("is no URL: {e}")))?;
            parsed.to_file_path().map(Some).map_err(|()| refused("names no directory"))
        }
        Some(_) => Ok(None),
    }
}

/// Opens what a URL names.
pub(super) fn locate(url: &str, options: &[(String, String)], opened_for: OpenFor) -> Result<Located> {
    let refused = |problem: String| StoreError::Url { url: url.to_owned(), problem };
    if let Some(path) = directory_of(url)? {
        return open_directory(&path, url, opened_for);
    }
    let parsed = Url::parse(url).map_err(|e| refused(format!("is no URL: {e}")))?;
    let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|_| refused(UNKNOWN.to_owned()))?;
    // TLS of these stores takes its cryptography from the process. If one was installed already, that one is used.
    rustls::crypto::ring::default_provider().install_default().ok();
    // Other requests are repeated by their callers, who log that.
    let tries = if opened_for == OpenFor::Upload { UPLOAD_TRIES } else { 1 };
    let retry = RetryConfig { max_retries: tries as usize - 1, ..RetryConfig::default() };
    let client = ClientOptions::new()
        .with_connect_timeout(credentials::CONNECT)
        .with_timeout(Duration::from_secs(10 * 60));
    let parsed = parsed.to_string();
    macro_rules! build {
        ($builder:ty) => {{
            let builder = <$builder>::new()
                .with_url(parsed)
                .with_retry(retry)
                .with_client_options(client)
                .with_http_connector(credentials::Connector);
            // Variables that this store does not know are passed over.
            let known = options
                .iter()
                .filter_map(|(key, value)| Some((key.to_ascii_lowercase().parse().ok()?, value)));
            let builder = known.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            Arc::new(builder.build().map_err(|e| refused(unopened(url, &e)))?)
        }};
    }
    if let Some(problem) = plaintext::refusal(&scheme, options) {
        return Err(refused(problem));
    }
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
        _ => return Err(refused(UNKNOWN.to_owned())),
    };
    Ok(Located { objects: store, prefix, directory: None, path: None })
}

/// What is wrong where a store's settings do not fit together: without the words that `object_store` puts before each error.
fn unopened(url: &str, error: &object_store::Error) -> String {
    let problem = match error {
        object_store::Error::Generic { source, .. } => causes(&**source),
        other => causes(other),
    };
    match credentials::variables(url) {
        Some(variables) => format!("cannot be opened: {problem}; check {variables}"),
        None => format!("cannot be opened: {problem}"),
    }
}

const UNKNOWN: &str =
    "is no store: give a directory, or a URL such as s3://bucket/job, gs://bucket/job or az://container/job";

/// Opens a directory. A write returns once its file is on the disk.
fn open_directory(path: &FilePath, url: &str, opened_for: OpenFor) -> Result<Located> {
    let refused = |problem: String| StoreError::Url { url: url.to_owned(), problem };
    let directory = match opened_for {
        OpenFor::Run => Some(Directory::claim(path, url)?),
        OpenFor::Use | OpenFor::Upload if path.is_dir() => None,
        OpenFor::Keep => {
            Disk::default().create_folders(path).map_err(|e| refused(format!("cannot be made: {e}")))?;
            None
        }
        OpenFor::Use | OpenFor::Upload => {
            return Err(refused(
                "is no directory of this machine: all workers must reach the store at one place".to_owned(),
            ));
        }
    };
    let store =
        LocalFileSystem::new_with_prefix(path).map_err(|e| refused(format!("cannot be opened: {e}")))?;
    let objects = Arc::new(store.with_fsync(true));
    Ok(Located { objects, prefix: Path::default(), directory, path: Some(path.to_owned()) })
}

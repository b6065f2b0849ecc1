//! From a URL to a store.

use std::path::Path as Directory;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::{Result, StoreError};

/// Whether a directory may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Make what is not there.
    Create,
    /// It must be there.
    Open,
}

/// Opens what a URL names; also says the prefix below which the job's objects lie.
pub(super) fn locate(
    url: &str,
    options: &[(String, String)],
    access: Access,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let refused = |problem: String| StoreError::Url { url: url.to_owned(), problem };
    let parsed = match url.split_once("://") {
        None => return directory(Directory::new(url), access).map_err(refused),
        Some(_) => Url::parse(url).map_err(|e| refused(format!("is no URL: {e}")))?,
    };
    if parsed.scheme() == "file" {
        let path = parsed.to_file_path().map_err(|()| refused("names no directory".to_owned()))?;
        return directory(&path, access).map_err(refused);
    }
    let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|_| refused(unknown()))?;
    // TLS of these stores takes its cryptography from the process; where somebody has chosen one already, that is as good.
    rustls::crypto::ring::default_provider().install_default().ok();
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        .with_timeout(Duration::from_secs(10 * 60));
    let parsed = parsed.to_string();
    macro_rules! build {
        ($builder:ty) => {{
            let builder = <$builder>::new().with_url(parsed).with_retry(retry).with_client_options(client);
            // Variables that say nothing to this store are other programs'.
            let known = options
                .iter()
                .filter_map(|(key, value)| Some((key.to_ascii_lowercase().parse().ok()?, value)));
            let builder = known.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            Arc::new(builder.build().map_err(|e| refused(e.to_string()))?)
        }};
    }
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
        _ => return Err(refused(unknown())),
    };
    Ok((store, prefix))
}

fn unknown() -> String {
    "is no store: give a directory, or a URL such as s3://bucket/job, gs://bucket/job or az://container/job"
        .to_owned()
}

/// A directory, whose files are on the disk when a write has returned.
fn directory(path: &Directory, access: Access) -> Result<(Arc<dyn ObjectStore>, Path), String> {
    if path.as_os_str().is_empty() {
        return Err(unknown());
    }
    match access {
        Access::Create => std::fs::create_dir_all(path).map_err(|e| format!("cannot be made: {e}"))?,
        Access::Open if path.is_dir() => {}
        Access::Open => {
            return Err(
                "is no directory of this machine: all workers must reach the store at one place".to_owned()
            );
        }
    }
    let store = LocalFileSystem::new_with_prefix(path).map_err(|e| format!("cannot be opened: {e}"))?;
    Ok((Arc::new(store.with_fsync(true)), Path::default()))
}

//! Where a process has the credentials of a store from: variables, or in the end the metadata service of its machine.

use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::{ClientConfigKey, ClientOptions};

use obsdiff_proto::causes;

/// How long a connection to a store may take to begin. `object_store` gives those to metadata services a shorter time.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long a metadata service may take to answer: that of a pod which starts answers after a few seconds. One that is out of reach of a
/// container may take the connection and never answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long credentials are asked for where there may be none.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Paths of the metadata services of AWS, Google Cloud and Azure.
const METADATA: [&str; 4] =
    ["/latest/api/token", "/latest/meta-data/iam/", "/computeMetadata/", "/metadata/identity/"];

/// The variables by which a process has credentials of a store, by the store's scheme; none where it is a directory.
pub(super) fn variables(store: &str) -> Option<&'static str> {
    Some(match store.split_once("://")?.0 {
        "s3" | "s3a" => {
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the role of this machine or pod"
        }
        "gs" => "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine or pod",
        "az" | "adl" | "azure" | "abfs" | "abfss" => {
            "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the identity of this machine or pod"
        }
        _ => return None,
    })
}

/// Whether a store was never asked, because the machine's metadata service gave no credentials.
pub(super) fn are_missing(error: &object_store::Error) -> bool {
    let object_store::Error::Generic { .. } = error else { return false };
    let words = causes(error);
    METADATA.iter().any(|path| words.contains(path))
}

/// Connects as `object_store` does, but waits less for the answers of metadata services.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let connect = |options: &ClientOptions| options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let stores = connect(&ClientOptions::new().with_connect_timeout(CONNECT));
        let options = options.clone();
        let options = if connect(&options) == stores { options } else { options.with_timeout(ANSWER) };
        ReqwestConnector::default().connect(&options)
    }
}

//! What can go wrong with a store.

use obsdiff_files::Owner;
use obsdiff_proto::message::PartId;
use obsdiff_proto::{PackageId, causes};
use thiserror::Error;

use super::credentials;
use super::layout::remedy;

/// What can go wrong with a store, with the object that it happened to.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The URL names no store.
    #[error("{url}: {problem}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An object is not there.
    #[error("{store}: {object} is missing")]
    Missing {
        /// The store.
        store: String,
        /// The object.
        object: String,
    },
    /// The store holds something that is not obsdiff's.
    #[error(
        "{store} holds {object}, which obsdiff did not write: set output.state to a folder of its own, or move that away"
    )]
    Foreign {
        /// The store.
        store: String,
        /// What it holds.
        object: String,
    },
    /// The store holds what could be a job's state, but nothing marks it as that.
    #[error(
        "{store} holds {object}, but no obsdiff.json that marks it as the state of an obsdiff job: set output.state to a folder of its own, or move that away"
    )]
    Unmarked {
        /// The store.
        store: String,
        /// What it holds.
        object: String,
    },
    /// Another process runs a job in this store.
    #[error("{store} is in use by {owner}: wait until that ends, and the same command goes on from there")]
    InUse {
        /// The store.
        store: String,
        /// That process.
        owner: Owner,
    },
    /// An object is shorter or longer than it was written.
    #[error(
        "{store}: {object} has {found} bytes instead of {wanted}: it was truncated or replaced; {}",
        remedy(object)
    )]
    Size {
        /// The store.
        store: String,
        /// The object.
        object: String,
        /// Its bytes.
        found: u64,
        /// Those that were written.
        wanted: u64,
    },
    /// An object is not what was written.
    #[error("{store}: {object} is damaged: {problem}; {}", remedy(object))]
    Damaged {
        /// The store.
        store: String,
        /// The object.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An object of another release.
    #[error(
        "{store}: {object} has format {found}, but this release reads format {wanted}: use the release that wrote it"
    )]
    Format {
        /// The store.
        store: String,
        /// The object.
        object: String,
        /// Its format.
        found: u32,
        /// The one of this release.
        wanted: u32,
    },
    /// The store holds another job.
    #[error("{store} holds another job: {}. Undo that to resume, or set output.state to another place", changes.join("; "))]
    Changed {
        /// The store.
        store: String,
        /// What differs, each with its key or file.
        changes: Vec<String>,
    },
    /// Another coordinator put different content in the same place.
    #[error(
        "{store}: {object} was put by another coordinator, with different content: let only one run the job"
    )]
    Conflict {
        /// The store.
        store: String,
        /// The object.
        object: String,
    },
    /// A receipt that no worker of this release writes.
    #[error("the receipt of {of} cannot be read: {problem}")]
    Receipt {
        /// What it is the receipt of.
        of: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A manifest names a part that was solved for another package.
    #[error("the manifest of package {package} names part {part}")]
    OtherPackage {
        /// The part.
        part: PartId,
        /// The manifest's package.
        package: PackageId,
    },
    /// The store failed repeatedly.
    #[error("{store}: {} could not be {what} in {tries} tries: {}", named(object), causes(source))]
    Failed {
        /// The store.
        store: String,
        /// The object.
        object: String,
        /// `read`, `written`, `listed` or `removed`.
        what: &'static str,
        /// How often it was tried.
        tries: u32,
        /// The last error.
        source: Box<object_store::Error>,
    },
    /// The store knows who asks as nobody, or as somebody without the right.
    #[error(
        "{store}: {} may not be {what} with these credentials: {}; {}",
        named(object),
        causes(source),
        rights(store, what)
    )]
    Denied {
        /// The store.
        store: String,
        /// The object; nothing where many are asked for.
        object: String,
        /// `read`, `written`, `listed` or `removed`.
        what: &'static str,
        /// What it answered.
        source: Box<object_store::Error>,
    },
    /// The store rejects the request itself, and would each time.
    #[error(
        "{store}: {} cannot be {what}: the store rejects the request, and trying again does not help: {}; {}",
        named(object),
        causes(source),
        settings(store)
    )]
    Rejected {
        /// The store.
        store: String,
        /// The object; nothing where many are asked for.
        object: String,
        /// `read`, `written`, `listed` or `removed`.
        what: &'static str,
        /// What it answered.
        source: Box<object_store::Error>,
    },
    /// This process has no credentials: no variable gives any, and the machine's metadata service gave none within some seconds.
    #[error(
        "{store}: this process has no credentials: check {}; its metadata service, which was asked last, gave none: {}",
        credentials::variables(store).unwrap_or("those of the store"),
        causes(source)
    )]
    NoCredentials {
        /// The store.
        store: String,
        /// How asking the metadata service ended.
        source: Box<object_store::Error>,
    },
    /// An object of a model is not the one that was found first.
    #[error(
        "{store}: {object} was replaced while it was read: the same command reads it again; do not change a model while jobs read it"
    )]
    Replaced {
        /// The store.
        store: String,
        /// The object.
        object: String,
    },
    /// The state of a job is no longer there, in its directory or its bucket.
    #[error("{store} is gone: its job is done, or it was removed or is no longer mounted here")]
    Gone {
        /// The store.
        store: String,
    },
    /// The store's bucket or container is not there.
    #[error("{store}: there is no such bucket or container: make it, or name another in output.state")]
    Bucket {
        /// The store.
        store: String,
    },
}

/// A result of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// The error of an object that could not be `what` in so many tries.
    pub(super) fn of(
        (store, object): (&str, &str),
        what: &'static str,
        tries: u32,
        source: object_store::Error,
    ) -> Self {
        let (store, object) = (store.to_owned(), object.to_owned());
        match source {
            source if lacks_bucket(&source) => Self::Bucket { store },
            object_store::Error::NotFound { .. } => Self::Missing { store, object },
            source if credentials::are_missing(&source) => {
                Self::NoCredentials { store, source: Box::new(source) }
            }
            source if is_denied(&source) => Self::Denied { store, object, what, source: Box::new(source) },
            source if is_rejected(&source) => {
                Self::Rejected { store, object, what, source: Box::new(source) }
            }
            source => Self::Failed { store, object, what, tries, source: Box::new(source) },
        }
    }

    /// What has to be changed where the store lets nobody do this.
    pub fn rights(&self) -> Option<String> {
        match self {
            Self::Denied { store, what, .. } => Some(rights(store, what)),
            _ => None,
        }
    }

    /// Whether the same call may succeed another time although nothing else changes.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Failed { source, .. } | Self::NoCredentials { source, .. } if is_transient(source))
    }
}

/// Whether a store's error is temporary, so that the same request may succeed later.
pub(super) fn is_transient(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(error, E::Generic { .. } | E::JoinError { .. })
        && !is_denied(error)
        && !lacks_bucket(error)
        && !is_rejected(error)
}

/// Whether a store's error says that the request itself is wrong, as it is with another region's endpoint or a bucket's name that
/// cannot be. What is only busy, or got a request that was damaged on its way, may take the same one later.
fn is_rejected(error: &object_store::Error) -> bool {
    // 408 Request Timeout, 409 Conflict, 425 Too Early and 429 Too Many Requests.
    const PASSING: [u16; 4] = [408, 409, 425, 429];
    // Codes of S3 and Azure that come with status 400.
    const DAMAGED: [&str; 6] = [
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "Md5Mismatch",
        "ContentChecksumMismatch",
        "ContentSHA256Mismatch",
    ];
    const OTHER_REGION: &str = "redirect without LOCATION";
    // A metadata service answers so while its pod starts.
    if !matches!(error, object_store::Error::Generic { .. }) || credentials::are_missing(error) {
        return false;
    }
    let words = causes(error);
    let status = words.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    let wrong = status.is_some_and(|status| (400..500).contains(&status) && !PASSING.contains(&status));
    (wrong && !DAMAGED.iter().any(|code| words.contains(code))) || words.contains(OTHER_REGION)
}

/// Whether a store's error says that the credentials are wrong or lack a right, which no time changes.
fn is_denied(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    // `object_store` gives the status of listings, and of requests for tokens, only as text. The last two come with status 400.
    const PHRASES: [&str; 4] = ["status code: 401", "status code: 403", "ExpiredToken", "invalid_grant"];
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => true,
        E::Generic { .. } => {
            let words = causes(error);
            PHRASES.iter().any(|phrase| words.contains(phrase))
        }
        _ => false,
    }
}

/// An object in a message: where there is no name, many are asked for.
pub(super) fn named(object: &str) -> &str {
    if object.is_empty() { "its objects" } else { object }
}

/// What to check where a store does not let an object be `what`, by the store's scheme.
fn rights(store: &str, what: &str) -> String {
    let Some(variables) = credentials::variables(store) else {
        return "check the credentials of this process and what they permit".to_owned();
    };
    let [listed, read, written, removed] = match store.split_once("://").map(|(scheme, _)| scheme) {
        Some("s3" | "s3a") => ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        Some("gs") => [
            "storage.objects.list",
            "storage.objects.get",
            "storage.objects.create",
            "storage.objects.delete",
        ],
        _ => {
            let (reader, contributor) = ("Storage Blob Data Reader", "Storage Blob Data Contributor");
            [reader, reader, contributor, contributor]
        }
    };
    let right = match what {
        "listed" => listed,
        "read" => read,
        "removed" => removed,
        _ => written,
    };
    format!("check {variables}, and that it has the right {right} there")
}

/// What to check where a store rejects a request, by the store's scheme.
fn settings(store: &str) -> &'static str {
    match store.split_once("://").map(|(scheme, _)| scheme) {
        Some("s3" | "s3a") => "check the URL, AWS_REGION and AWS_ENDPOINT",
        Some("az" | "adl" | "azure" | "abfs" | "abfss") => {
            "check the URL, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT"
        }
        _ => "check the URL",
    }
}

/// Whether a store's error says that its bucket or container is missing, and not one object.
pub(super) fn lacks_bucket(error: &object_store::Error) -> bool {
    // From the answers of S3, Azure and Google Cloud Storage.
    const PHRASES: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "specified bucket does not exist"];
    let words = causes(error);
    PHRASES.iter().any(|phrase| words.contains(phrase))
}

#[cfg(test)]
mod tests;

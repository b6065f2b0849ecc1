use object_store::Error as E;

use super::*;

/// An answer in the words that `object_store` has for listings.
fn answer(status: &str) -> E {
    let words =
        format!("Error performing list request: Server returned non-2xx status code: {status}: <Error>");
    E::Generic { store: "S3", source: words.into() }
}

fn store_error(store: &str, what: &'static str, error: E) -> StoreError {
    StoreError::of((store, ""), what, 1, error)
}

#[test]
fn wrong_credentials_and_missing_rights_are_not_tried_again() {
    let path = || "model/vae".to_owned();
    for error in [
        answer("403 Forbidden"),
        answer("401 Unauthorized"),
        answer("400 Bad Request: <Code>ExpiredToken</Code>"),
        answer("400 Bad Request: {\"error\":\"invalid_grant\"}"),
        E::PermissionDenied { path: path(), source: "403".into() },
        E::Unauthenticated { path: path(), source: "401".into() },
    ] {
        assert!(!is_transient(&error), "{error}");
        let error = store_error("s3://bucket/model", "listed", error);
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        let words = error.to_string();
        assert!(
            words.starts_with("s3://bucket/model: its objects may not be listed with these credentials: ")
        );
        assert!(words.ends_with("that it has the right s3:ListBucket there"), "{words}");
    }
}

#[test]
fn a_store_that_is_busy_or_away_is_tried_again() {
    for status in [
        "408 Request Timeout",
        "409 Conflict: <Code>OperationAborted</Code>",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Slow Down",
        "400 Bad Request: <Code>RequestTimeout</Code>",
        "400 Bad Request: <Code>IncompleteBody</Code>",
        "400 Bad Request: <Code>XAmzContentSHA256Mismatch</Code>",
    ] {
        assert!(is_transient(&answer(status)), "{status}");
        assert!(store_error("s3://bucket/model", "read", answer(status)).is_transient(), "{status}");
    }
    let reset = E::Generic { store: "S3", source: "connection reset by peer".into() };
    assert!(is_transient(&reset));
    let words = store_error("s3://bucket/model", "listed", reset).to_string();
    assert!(words.starts_with("s3://bucket/model: its objects could not be listed in "), "{words}");
    let bucket = answer("404 Not Found: <Code>NoSuchBucket</Code>");
    assert!(!is_transient(&bucket));
    assert!(matches!(store_error("s3://bucket/model", "listed", bucket), StoreError::Bucket { .. }));
}

#[test]
fn a_request_that_is_wrong_itself_is_not_tried_again() {
    let redirect =
        "Received redirect without LOCATION, this normally indicates an incorrectly configured region";
    for error in [
        answer("400 Bad Request: <Code>AuthorizationHeaderMalformed</Code>"),
        answer("400 Bad Request: <Code>InvalidBucketName</Code>"),
        answer("404 Not Found: <html>"),
        answer("405 Method Not Allowed"),
        answer("411 Length Required"),
        E::Generic { store: "S3", source: redirect.into() },
    ] {
        assert!(!is_transient(&error), "{error}");
        let error = store_error("s3://bucket/job", "listed", error);
        assert!(matches!(error, StoreError::Rejected { .. }) && !error.is_transient(), "{error}");
        let words = error.to_string();
        let begin =
            "s3://bucket/job: its objects cannot be listed: the store rejects the request, and trying again";
        assert!(words.starts_with(begin), "{words}");
        assert!(words.ends_with("; check the URL, AWS_REGION and AWS_ENDPOINT"), "{words}");
    }
    let azure = store_error("az://container/job", "read", answer("400 Bad Request: <Code>InvalidUri</Code>"));
    assert!(azure.to_string().ends_with("AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT"), "{azure}");
}

#[test]
fn each_kind_of_store_has_rights_and_variables_of_its_own() {
    for (store, what, variable, right) in [
        ("s3://b/p", "written", "AWS_ACCESS_KEY_ID", "s3:PutObject"),
        ("gs://b/p", "read", "GOOGLE_APPLICATION_CREDENTIALS", "storage.objects.get"),
        ("az://b/p", "removed", "AZURE_STORAGE_ACCOUNT_KEY", "Storage Blob Data Contributor"),
        ("memory", "read", "", "check the credentials of this process"),
    ] {
        let rights = store_error(store, what, answer("403 Forbidden")).rights().unwrap();
        assert!(rights.contains(variable) && rights.contains(right), "{rights}");
    }
    assert_eq!(store_error("s3://b/p", "read", answer("503 Slow Down")).rights(), None);
}

#[test]
fn credentials_that_no_metadata_service_gives_are_reported_as_missing() {
    for (store, path, variable) in [
        ("s3://b/p", "/latest/api/token", "AWS_ACCESS_KEY_ID"),
        (
            "gs://b/p",
            "/computeMetadata/v1/instance/service-accounts/default/token",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("az://b/p", "/metadata/identity/oauth2/token?resource=https", "AZURE_STORAGE_ACCOUNT_NAME"),
    ] {
        let answered = |status: &str| E::Generic {
            store: "any",
            source: format!(
                "Error performing token request: Error performing GET http://169.254.169.254{path}: {status}"
            )
            .into(),
        };
        let error = store_error(store, "read", answered("operation timed out"));
        assert!(matches!(error, StoreError::NoCredentials { .. }) && error.is_transient(), "{error}");
        assert!(error.to_string().contains(&format!("no credentials: check {variable}")), "{error}");
        // One that is not ready yet may say so by any status.
        assert!(is_transient(&answered("status code: 404 Not Found")));
        // It says that there are none, which no time changes.
        assert!(!is_transient(&answered("status code: 403 Forbidden")));
        assert!(!store_error(store, "read", answered("status code: 403 Forbidden")).is_transient());
    }
}

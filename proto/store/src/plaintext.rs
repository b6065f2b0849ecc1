//! Object stores that are reached without encryption, which only an explicit setting allows.

use object_store::ObjectStoreScheme;

/// Variables with the address of a store.
const ADDRESSES: [&str; 6] = [
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
];

/// Why a store must not be used: its address is plain HTTP, and no setting allows that. The HTTP client's own error would only say that it
/// cannot build a request.
pub(super) fn refusal(scheme: &ObjectStoreScheme, options: &[(String, String)]) -> Option<String> {
    let (start, allows) = match scheme {
        ObjectStoreScheme::AmazonS3 => ("AWS_", "AWS_ALLOW_HTTP"),
        ObjectStoreScheme::GoogleCloudStorage => ("GOOGLE_", "GOOGLE_ALLOW_HTTP"),
        ObjectStoreScheme::MicrosoftAzure => ("AZURE_", "AZURE_ALLOW_HTTP"),
        _ => return None,
    };
    let is_true =
        |value: &str| ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str());
    if options.iter().any(|(key, value)| key == allows && is_true(value)) {
        return None;
    }
    let plain = |(key, value): &&(String, String)| {
        key.starts_with(start)
            && ADDRESSES.contains(&key.as_str())
            && value.to_ascii_lowercase().starts_with("http://")
    };
    let (key, value) = options.iter().find(plain)?;
    Some(format!("{key} is {value}, which is not encrypted: give an https address, or set {allows}=true"))
}

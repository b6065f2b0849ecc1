//! The page's document: one file, without anything from elsewhere.

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use obsdiff_proto::Digest;

/// The colours and type that the page shares with the report of an output.
pub const LOOK: &str = include_str!("look.css");

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const HTML: &str = include_str!("page.html");

/// The page, and what browsers may do with it.
pub(super) struct PageDocument {
    pub(super) html: Bytes,
    /// Its content security policy: its own script and style by their digests, connections to where it came from, and nothing else.
    pub(super) policy: String,
}

impl PageDocument {
    pub(super) fn new() -> Self {
        let style = format!("{LOOK}{STYLE}");
        let digest = |content: &str| STANDARD.encode(Digest::of(content.as_bytes()).0);
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            digest(SCRIPT),
            digest(&style)
        );
        let html = HTML.replacen("/*style*/", &style, 1).replacen("/*script*/", SCRIPT, 1);
        Self { html: html.into(), policy }
    }
}

//! Real servers and clients: who has the right certificate and token is served, and nobody else.
#![allow(clippy::unwrap_used)]

mod certificates;
mod service;

use std::path::Path;
use std::time::Duration;

use certificates::Authority;
use obsdiff_security::{Tls, TlsFiles, Token, TokenSender};
use service::{ServedPort, ask};
use tonic::Code;

/// Sends a request that cannot succeed, and gives the error. Which end of a failed handshake reports it first depends on the network, so
/// only a client's own refusal has known words.
async fn refused(port: &ServedPort, tls: Option<&Tls>) -> String {
    let asked = tokio::time::timeout(Duration::from_secs(10), ask(port, tls, TokenSender(None)));
    let status = asked.await.unwrap().unwrap_err();
    assert_eq!(port.served(), 0);
    assert!(matches!(status.code(), Code::Unavailable | Code::Unknown), "{status:?}");
    format!("{status:?}")
}

#[tokio::test]
async fn the_right_certificate_is_served() {
    let authority = Authority::new();
    let port = ServedPort::open(Some(&authority.issue("localhost")), None).await;
    let report = ask(&port, Some(&authority.issue("worker")), TokenSender(None)).await.unwrap();
    assert_eq!(report.model, "shapes");
    assert_eq!(port.served(), 1);
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let authority = Authority::new();
    let port = ServedPort::open(Some(&authority.issue("localhost")), None).await;
    refused(&port, None).await;
    assert!(service::ask_with(&port, authority.anonymous()).await.is_err());
    assert_eq!(port.served(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let authority = Authority::new();
    let port = ServedPort::open(Some(&authority.issue("localhost")), None).await;
    // One that trusts our server, but is known to somebody else.
    let foreign = Authority::new().issue_trusting("worker", &authority);
    refused(&port, Some(&foreign)).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let port = ServedPort::open(Some(&authority.issue("localhost")), None).await;
    refused(&port, Some(&authority.issue_expired("worker"))).await;
}

#[tokio::test]
async fn a_worker_obeys_no_foreign_coordinator() {
    let authority = Authority::new();
    let worker = authority.issue("worker");
    for server in [
        Authority::new().issue_trusting("localhost", &authority),
        authority.issue_expired("localhost"),
        authority.issue("elsewhere"),
    ] {
        let port = ServedPort::open(Some(&server), None).await;
        let error = refused(&port, Some(&worker)).await;
        assert!(error.contains("InvalidCertificate"), "{error}");
    }
    let plain = ServedPort::open(None, None).await;
    refused(&plain, Some(&worker)).await;
}

#[tokio::test]
async fn a_worker_without_the_jobs_token_gets_nothing() {
    let authority = Authority::new();
    let token = |text: &str| Token::new(text, "a test").unwrap();
    let port =
        ServedPort::open(Some(&authority.issue("localhost")), Some(token("the-token-of-this-job"))).await;
    let worker = authority.issue("worker");
    let ask = async |token: Option<Token>| ask(&port, Some(&worker), TokenSender(token)).await;
    assert_eq!(ask(Some(token("the-token-of-this-job"))).await.unwrap().model, "shapes");
    for wrong in [None, Some(token("the-token-of-another"))] {
        assert_eq!(ask(wrong).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert_eq!(port.served(), 1);
}

#[test]
fn files_that_are_none_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let files = |certificate: &str, key: &str, authority: &str| TlsFiles {
        certificate: directory.path().join(certificate),
        key: directory.path().join(key),
        authority: directory.path().join(authority),
    };
    let authority = Authority::new();
    authority.write(directory.path(), "a");
    authority.write(directory.path(), "b");
    std::fs::write(directory.path().join("empty.pem"), "nothing here\n").unwrap();
    let refused = |files: TlsFiles| Tls::read(&files).err().unwrap().to_string();
    let named = |name: &str, words: &str| format!("{}: {words}", directory.path().join(name).display());

    assert!(Tls::read(&files("a.pem", "a.key", "ca.pem")).is_ok());
    assert!(refused(files("gone.pem", "a.key", "ca.pem")).starts_with(&named("gone.pem", "No such file")));
    assert_eq!(
        refused(files("empty.pem", "a.key", "ca.pem")),
        named("empty.pem", "holds no certificate: give a PEM file with one")
    );
    assert_eq!(
        refused(files("a.pem", "a.pem", "ca.pem")),
        named("a.pem", "holds no private key: give a PEM file with an unencrypted one")
    );
    let unfit = refused(files("a.pem", "b.key", "ca.pem"));
    assert!(unfit.starts_with(&named("b.key", "does not fit ")), "{unfit}");
    assert!(refused(files("a.pem", "a.key", "a.key")).starts_with(&named("a.key", "holds no certificate")));
}

#[test]
fn a_token_is_read_from_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    assert!(Token::read(&path).unwrap_err().to_string().starts_with(&path.display().to_string()));
    std::fs::write(&path, "short\n").unwrap();
    let short = Token::read(&path).unwrap_err().to_string();
    assert!(short.starts_with(&format!("{}: the token must have 16", Path::new(&path).display())), "{short}");
    std::fs::write(&path, "long enough, but with spaces").unwrap();
    assert!(Token::read(&path).is_err());
    std::fs::write(&path, "\n  long-enough-for-a-token \n").unwrap();
    assert!(Token::read(&path).is_ok());
}

//! The page and the metrics where certificates and a token guard them.

use std::fs;
use std::path::Path;
use std::process::Command;

use obsdiff_tests::not_tested;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::chromium::{Browser, chromium};
use super::process::{Process, setting};

const TOKEN: &str = "0123456789-this-jobs-token";

/// Writes an authority, and a certificate of it for the coordinator and for a client.
fn write_certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // With the name of what it signs, curl would take a certificate for its own authority.
    params.distinguished_name.push(DnType::CommonName, "jobs of a cluster");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    for name in ["coordinator", "client"] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A coordinator with the job's token, and these arguments besides; its port.
fn coordinator(folder: &Path, args: &[&str]) -> (Process, String) {
    fs::write(folder.join("token"), TOKEN).unwrap();
    let args = [
        &["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0", "--token-file", "token"][..],
        args,
    ];
    let mut process = Process::start(folder, &args.concat());
    let line = process.line(|line| line.starts_with("listening on ")).expect("it does not listen");
    let (_, port) = line.rsplit_once(':').unwrap();
    (process, port.to_owned())
}

#[test]
fn page_and_metrics_are_for_those_with_a_certificate_and_the_token() {
    if Command::new("curl").arg("--version").output().is_err() {
        not_tested("who may see the page and the metrics is asked by curl, which is not installed");
        return;
    }
    let folder = setting(2);
    let folder = folder.path();
    write_certificates(folder);
    let files = ["--tls-cert", "coordinator.pem", "--tls-key", "coordinator.key", "--tls-ca", "ca.pem"];
    let (_coordinator, port) = coordinator(folder, &files);
    // The status and the body; none where TLS refuses.
    let ask = |path: &str, certificate: bool, token: Option<&str>| -> Option<(String, String)> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--cacert", "ca.pem", "--write-out", "\n%{http_code}"])
            .current_dir(folder);
        if certificate {
            curl.args(["--cert", "client.pem", "--key", "client.key"]);
        }
        if let Some(token) = token {
            curl.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        let output = curl.arg(format!("https://localhost:{port}{path}")).output().unwrap();
        println!("{path}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        output.status.success().then(|| (status.to_owned(), body.to_owned()))
    };
    for (path, says) in
        [("/", "A pruning job"), ("/job", "\"phase\":\"pilot\""), ("/metrics", "obsdiff_job_phase{")]
    {
        assert_eq!(ask(path, false, Some(TOKEN)), None, "{path} without a certificate");
        for wrong in [None, Some("another-token-of-16")] {
            let (status, body) = ask(path, true, wrong).unwrap();
            assert_eq!(status, "401", "{path}: {body}");
            assert!(!body.contains(says), "{path}: {body}");
        }
        let (status, body) = ask(path, true, Some(TOKEN)).unwrap();
        assert_eq!(status, "200", "{path}: {body}");
        assert!(body.contains(says), "{path}: {body}");
    }
}

#[test]
fn a_browser_sees_the_page_once_it_has_shown_the_token() {
    let Some(name) = chromium() else {
        not_tested("how a browser shows a token needs Chromium (Debian's chromium)");
        return;
    };
    let (folder, own) = (setting(2), tempfile::tempdir().unwrap());
    let (_coordinator, port) = coordinator(folder.path(), &[]);
    let url = format!("http://localhost:{port}/");
    let mut browser = Browser::start(name, own.path());
    browser.open(&url);
    browser.until("document.body !== null && document.body.innerText.startsWith('this job has a token')");
    assert_eq!(browser.value("document.getElementById('tiles')"), serde_json::Value::Null);
    browser.open(&format!("{url}?token={TOKEN}"));
    browser.until("document.title.includes('0 of 2, pilot')");
    // The token does not stay in the address, and the page is there when it is opened again.
    assert_eq!(browser.value("location.search"), "");
    browser.open(&url);
    browser.until("document.title.includes('0 of 2, pilot')");
}

//! An authority, and what it signs.

use std::fs;
use std::path::Path;

use obsdiff_security::{Tls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tonic::transport::{Certificate, ClientTlsConfig};

/// Signs certificates for coordinators and workers.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "jobs of a cluster");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for this name, its key, and trust in this authority.
    pub(crate) fn issue(&self, name: &str) -> Tls {
        self.issue_trusting(name, self)
    }

    /// The same, with trust in another authority.
    pub(crate) fn issue_trusting(&self, name: &str, trusted: &Self) -> Tls {
        let directory = tempfile::tempdir().unwrap();
        self.write_as(directory.path(), name, |_| {});
        trusted.write_authority(directory.path());
        read(directory.path(), name)
    }

    /// A certificate that was good until some years ago.
    pub(crate) fn issue_expired(&self, name: &str) -> Tls {
        let directory = tempfile::tempdir().unwrap();
        self.write_as(directory.path(), name, |params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        });
        self.write_authority(directory.path());
        read(directory.path(), name)
    }

    /// Trust in this authority, and no certificate.
    pub(crate) fn anonymous(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.0.pem()))
    }

    /// Writes NAME.pem, NAME.key and ca.pem.
    pub(crate) fn write(&self, directory: &Path, name: &str) {
        self.write_as(directory, name, |_| {});
        self.write_authority(directory);
    }

    fn write_as(&self, directory: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn write_authority(&self, directory: &Path) {
        fs::write(directory.join("ca.pem"), self.0.pem()).unwrap();
    }
}

fn read(directory: &Path, name: &str) -> Tls {
    let files = TlsFiles {
        certificate: directory.join(format!("{name}.pem")),
        key: directory.join(format!("{name}.key")),
        authority: directory.join("ca.pem"),
    };
    Tls::read(&files).unwrap()
}

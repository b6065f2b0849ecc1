//! Certificates from PEM files, for both sides of a connection.

use std::path::{Path, PathBuf};

use obsdiff_files::read_regular;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use super::{Result, SecurityError};

/// The certificates of all public authorities together take 0.2 MB.
const MAX_PEM_BYTES: u64 = 16 << 20;

/// The files of a process's certificates, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its own certificate, followed by those between it and the authority (`--tls-cert`).
    pub certificate: PathBuf,
    /// The certificate's private key (`--tls-key`).
    pub key: PathBuf,
    /// Certificates of the authorities that the other side's must come from (`--tls-ca`).
    pub authority: PathBuf,
}

/// A process's certificates, read and checked.
#[derive(Clone)]
pub struct Tls {
    identity: Identity,
    authority: Certificate,
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When one cannot be read, holds no certificate or no key, or the key is another certificate's.
    pub fn read(files: &TlsFiles) -> Result<Self> {
        let certificate = file(&files.certificate)?;
        let key = file(&files.key)?;
        let authority = file(&files.authority)?;
        check_identity(files, &certificate, &key)?;
        check_authority(&files.authority, &authority)?;
        Ok(Self {
            identity: Identity::from_pem(certificate, key),
            authority: Certificate::from_pem(authority),
        })
    }

    /// For a port: clients must present a certificate of the authority.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.authority.clone())
    }

    /// For a connection: the server has to show a certificate of the authority for its name, that of the URL or `name`.
    pub fn client(&self, name: Option<&str>) -> ClientTlsConfig {
        let config =
            ClientTlsConfig::new().identity(self.identity.clone()).ca_certificate(self.authority.clone());
        match name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

/// For requests to a server that asks for no certificate: it has to show one of these authorities, whose certificates are in a PEM file. Without a
/// file no server is trusted.
///
/// # Errors
/// When the file cannot be read, or holds no authority's certificate.
pub fn https_client(authority: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authority {
        roots = authorities(path, &file(path)?)?;
    }
    // Its protocols are those of the provider, so that nothing about them can be refused.
    let config = ClientConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|e| SecurityError::content(authority.unwrap_or(Path::new("")), e.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn file(path: &Path) -> Result<Vec<u8>> {
    read_regular(path, MAX_PEM_BYTES).map_err(|source| SecurityError::File { path: path.to_owned(), source })
}

/// The certificates of a PEM file, one at least.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(SecurityError::content(path, "holds no certificate: give a PEM file with one"))
        }
        Ok(certificates) => Ok(certificates),
        Err(e) => Err(SecurityError::content(path, format!("is no PEM file: {e}"))),
    }
}

fn check_identity(files: &TlsFiles, certificate: &[u8], key: &[u8]) -> Result<()> {
    let chain = certificates(&files.certificate, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        SecurityError::content(&files.key, "holds no private key: give a PEM file with an unencrypted one")
    })?;
    let unfit = |e| {
        let certificate = files.certificate.display();
        SecurityError::content(&files.key, format!("does not fit {certificate}: {e}"))
    };
    CertifiedKey::from_der(chain, key, &default_provider()).map(|_| ()).map_err(unfit)
}

fn check_authority(path: &Path, pem: &[u8]) -> Result<()> {
    authorities(path, pem).map(|_| ())
}

fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        let refused = |e| SecurityError::content(path, format!("holds no authority's certificate: {e}"));
        roots.add(certificate).map_err(refused)?;
    }
    Ok(roots)
}

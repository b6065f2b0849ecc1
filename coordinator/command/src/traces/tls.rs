//! How a connection to a collector by TLS checks it, and what it shows of this process.

use std::path::PathBuf;

use obsdiff_files::read_regular;
use obsdiff_proto::causes;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::{Error, Result};

/// A file with the certificates of authorities has some hundred kB at most.
const MOST_PEM_BYTES: u64 = 4 << 20;

/// A PEM file that a variable names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PemFile {
    pub(super) variable: &'static str,
    pub(super) path: PathBuf,
}

/// A connection by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CollectorTls {
    /// The authorities whose certificates a collector may show; none for those that this machine trusts.
    pub(super) authorities: Option<PemFile>,
    /// The certificate that this process shows, and its key.
    pub(super) identity: Option<[PemFile; 2]>,
}

impl PemFile {
    fn read(&self) -> Result<Vec<u8>> {
        read_regular(&self.path, MOST_PEM_BYTES)
            .map_err(|e| Error::key(self.variable, format!("names {}: {e}", self.path.display())))
    }

    fn refused(&self, error: &tonic::transport::Error) -> Error {
        let problem = format!("names {}, which cannot be used: {}", self.path.display(), causes(error));
        Error::key(self.variable, problem)
    }
}

impl CollectorTls {
    /// What the variables say, of those for traces and for all signals the first that is there.
    ///
    /// # Errors
    /// When one file of a certificate and its key is missing.
    pub(super) fn of(first: impl Fn([&'static str; 2]) -> Option<(&'static str, String)>) -> Result<Self> {
        let file = |names| first(names).map(|(variable, path)| PemFile { variable, path: path.into() });
        let authorities = file(["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]);
        let certificate =
            file(["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"]);
        let key = file(["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"]);
        let alone = |file: PemFile, other: &str| {
            Error::key(
                file.variable,
                format!("is set without {other}: a certificate and its key go together"),
            )
        };
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some([certificate, key]),
            (Some(certificate), None) => {
                return Err(alone(certificate, "OTEL_EXPORTER_OTLP_CLIENT_KEY"));
            }
            (None, Some(key)) => return Err(alone(key, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")),
            (None, None) => None,
        };
        Ok(Self { authorities, identity })
    }

    /// What a connection takes.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn config(&self) -> Result<ClientTlsConfig> {
        let config = self.checking()?;
        Ok(match &self.identity {
            Some([certificate, key]) => config.identity(Identity::from_pem(certificate.read()?, key.read()?)),
            None => config,
        })
    }

    /// The part of it that checks the collector.
    fn checking(&self) -> Result<ClientTlsConfig> {
        let config = ClientTlsConfig::new();
        Ok(match &self.authorities {
            None => config.with_enabled_roots(),
            Some(file) => config.ca_certificate(Certificate::from_pem(file.read()?)),
        })
    }

    /// Tries what the exporter would find out only when the job has begun; `variable` names the collector.
    ///
    /// # Errors
    /// When a file cannot be used, by its variable.
    pub(super) fn check(&self, variable: &'static str, endpoint: &Endpoint) -> Result<()> {
        if let Err(error) = endpoint.clone().tls_config(self.checking()?) {
            return Err(match &self.authorities {
                Some(file) => file.refused(&error),
                None => Error::key(
                    variable,
                    format!(
                        "is https://, but this machine has no certificates of authorities to check it by ({}): install \
                         ca-certificates, or name a PEM file in OTEL_EXPORTER_OTLP_CERTIFICATE",
                        causes(&error)
                    ),
                ),
            });
        }
        let Some([certificate, key]) = &self.identity else { return Ok(()) };
        let tried = endpoint.clone().tls_config(self.config()?);
        tried.map(drop).map_err(|error| {
            let problem = format!(
                "names {}, which cannot be used with the key {} that {} names: {}",
                certificate.path.display(),
                key.path.display(),
                key.variable,
                causes(&error)
            );
            Error::key(certificate.variable, problem)
        })
    }
}

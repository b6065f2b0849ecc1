//! The flags that say who may connect, and how the connection is secured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use obsdiff_coordinator::Port;
use obsdiff_security::{Exposure, Tls, TlsFiles, Token, check_dial};
use tonic::transport::Endpoint;

use super::path;
use crate::{Error, Result};

/// How often the other side is pinged, and how long it may take to answer.
const PING: Duration = Duration::from_secs(2);

/// How connections are protected.
#[derive(Debug, Args)]
pub struct SecurityArgs {
    /// This process's certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"], value_parser = path())]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_parser = path())]
    pub tls_key: Option<PathBuf>,
    /// The authority that the other side's certificate must come from, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_parser = path())]
    pub tls_ca: Option<PathBuf>,
    /// A file with the job's token, the same for the coordinator and all workers.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub token_file: Option<PathBuf>,
    /// Allow connections to other machines without certificates. With certificates: allow workers of several machines to sum their
    /// Grams by Gloo or NCCL, whose connections are not encrypted.
    #[arg(long)]
    pub insecure: bool,
}

impl SecurityArgs {
    /// The certificates, where they are given.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn tls(&self) -> Result<Option<Tls>> {
        let (Some(certificate), Some(key), Some(authority)) = (&self.tls_cert, &self.tls_key, &self.tls_ca)
        else {
            return Ok(None);
        };
        let files =
            TlsFiles { certificate: certificate.clone(), key: key.clone(), authority: authority.clone() };
        Ok(Some(Tls::read(&files)?))
    }

    /// The token, where one is given.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn token(&self) -> Result<Option<Token>> {
        Ok(self.token_file.as_deref().map(Token::read).transpose()?)
    }

    /// The port of a coordinator at this address.
    ///
    /// # Errors
    /// When certificates or token cannot be used, or the address is reached from other machines and nothing protects it.
    pub fn port(&self, address: SocketAddr) -> Result<Port> {
        Ok(Port::new(address, self.tls()?, self.token()?, self.insecure)?)
    }

    /// How a coordinator is dialled.
    ///
    /// # Errors
    /// When the URL cannot be used, or leads to another machine over an unprotected connection.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint> {
        let tls = self.tls()?;
        check_dial(url, Exposure::new(tls.is_some(), self.insecure))?;
        let refused = |e: tonic::transport::Error| Error::key(url, e.to_string());
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(refused)?;
        let endpoint = endpoint
            .connect_timeout(PING)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        match tls {
            Some(tls) => endpoint.tls_config(tls.client(None)).map_err(refused),
            None => Ok(endpoint),
        }
    }
}

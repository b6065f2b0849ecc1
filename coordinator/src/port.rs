//! The port to which workers and watchers of a job connect, by gRPC and by HTTP.

mod connections;

use std::net::{self, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::session::Briefing;
use obsdiff_proto::wire::v1::jobs_server::JobsServer;
use obsdiff_proto::wire::v1::rendezvous_server::RendezvousServer;
use obsdiff_proto::wire::v1::session_server::SessionServer;
use obsdiff_proto::wire::{FILE_DESCRIPTOR_SET, MESSAGE_LIMIT};
use obsdiff_security::{Exposure, Tls, Token, TokenCheck, check_bind};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;

use self::connections::{OPENING, accepted, most_connections};
use crate::grpc::Sessions;
use crate::http::{self, Access};
use crate::jobs::ServedJob;
use crate::{Error, Handle, RendezvousService, Result};

/// A connection that does not answer a ping for so long is lost.
const PING: Duration = Duration::from_secs(2);

/// A port with its protection, not yet bound.
pub struct Port {
    address: SocketAddr,
    tls: Option<Tls>,
    token: TokenCheck,
}

/// Where browsers find the page of a job.
#[derive(Clone, Copy, Debug)]
pub struct PageAddress {
    tls: bool,
    token: bool,
}

impl PageAddress {
    /// The page's address on a port that is bound to `address`, as a browser on this machine reaches it.
    pub fn at(self, address: SocketAddr) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let token = if self.token { " (the first time with ?token=TOKEN at its end)" } else { "" };
        let host = if address.ip().is_unspecified() {
            format!("localhost:{}", address.port())
        } else {
            address.to_string()
        };
        format!("{scheme}://{host}/{token}")
    }
}

impl Port {
    /// A port at this address, protected by certificates and a token where they are given. `insecure` allows it to go without certificates.
    ///
    /// # Errors
    /// When the address is reached from other machines and nothing protects it.
    pub fn new(address: SocketAddr, tls: Option<Tls>, token: Option<Token>, insecure: bool) -> Result<Self> {
        check_bind(address, Exposure::new(tls.is_some(), insecure))?;
        Ok(Self { address, tls, token: TokenCheck(token) })
    }

    /// Where browsers find the job's page.
    pub fn page(&self) -> PageAddress {
        PageAddress { tls: self.tls.is_some(), token: self.token.0.is_some() }
    }

    /// Binds the port. This comes before any work, because another process may use the port.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn bind(&self) -> Result<net::TcpListener> {
        let listener = net::TcpListener::bind(self.address).map_err(|e| self.failed(&e))?;
        listener.set_nonblocking(true).map_err(|e| self.failed(&e))?;
        Ok(listener)
    }

    /// Serves the bound port until the runtime ends; gives its address. Clients beyond the most connections wait, and those that do not
    /// begin are cut off.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub async fn serve(
        self,
        listener: net::TcpListener,
        handle: Handle,
        rendezvous: Arc<RendezvousService>,
        briefing: Arc<Briefing>,
        job: ServedJob,
    ) -> Result<SocketAddr> {
        let listener = TcpListener::from_std(listener).map_err(|e| self.failed(&e))?;
        let bound = listener.local_addr().map_err(|e| self.failed(&e))?;
        let router = self.router(handle, rendezvous, briefing, job).await?;
        let connections = accepted(listener, most_connections());
        tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming(connections).await {
                tracing::error!(%error, "the port is closed");
            }
        });
        Ok(bound)
    }

    /// All services of the port, for any kind of connection.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub async fn router(
        self,
        handle: Handle,
        rendezvous: Arc<RendezvousService>,
        briefing: Arc<Briefing>,
        job: ServedJob,
    ) -> Result<Router> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<SessionServer<Sessions>>().await;
        health.set_serving::<RendezvousServer<RendezvousService>>().await;
        health.set_serving::<JobsServer<ServedJob>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| self.failed(&e))?;
        let sessions = SessionServer::new(Sessions::new(handle, briefing, job.announcements()))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let rendezvous = RendezvousServer::from_arc(rendezvous).max_decoding_message_size(MESSAGE_LIMIT);
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(PING))
            .http2_keepalive_timeout(Some(PING))
            .tcp_nodelay(true);
        if let Some(tls) = &self.tls {
            server = server.tls_config(tls.server().timeout(OPENING)).map_err(|e| self.failed(&e))?;
        }
        let access = Access::new(self.token.0.clone(), self.address.ip(), self.tls.is_some());
        let pages = http::routes(&job, access);
        // The health check needs no token.
        let services = Routes::new(health_service)
            .add_service(InterceptedService::new(reflection, self.token.clone()))
            .add_service(InterceptedService::new(JobsServer::new(job), self.token.clone()))
            .add_service(InterceptedService::new(rendezvous, self.token.clone()))
            .add_service(InterceptedService::new(sessions, self.token.clone()));
        let both = http::beside(services.into_axum_router(), pages);
        Ok(server.accept_http1(true).add_routes(Routes::from(both)))
    }

    fn failed(&self, e: &dyn std::fmt::Display) -> Error {
        Error::Port { address: self.address, problem: e.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_where_a_browser_of_this_machine_finds_it() {
        let at = |tls, token, address: &str| PageAddress { tls, token }.at(address.parse().unwrap());
        assert_eq!(at(false, false, "127.0.0.1:7070"), "http://127.0.0.1:7070/");
        assert_eq!(at(true, false, "0.0.0.0:80"), "https://localhost:80/");
        let with_token = "http://[::1]:7070/ (the first time with ?token=TOKEN at its end)";
        assert_eq!(at(false, true, "[::1]:7070"), with_token);
    }
}

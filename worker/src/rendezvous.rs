//! How a worker finds its peers: by the coordinator's rendezvous, over the connection of its session.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use obsdiff_proto::wire::v1::rendezvous_client::RendezvousClient;
use obsdiff_proto::wire::{Put, Wait, v1};
use obsdiff_proto::{Epoch, WorkerId, lock};
use obsdiff_security::TokenSender;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::collective::{Abort, CollectiveError, Rendezvous, Result};

/// How much longer than the wait that is asked for the answer may take.
const SLACK: Duration = Duration::from_secs(5);

/// A session's connection.
pub(crate) type AuthorizedChannel = InterceptedService<Channel, TokenSender>;

/// The coordinator's rendezvous, for as long as a session is open.
pub struct PeerRendezvous {
    runtime: Handle,
    coordinator: Endpoint,
    way: Mutex<Option<(WorkerId, AuthorizedChannel)>>,
}

impl PeerRendezvous {
    /// The rendezvous of this coordinator; calls run on this runtime.
    pub fn new(runtime: Handle, coordinator: Endpoint) -> Self {
        Self { runtime, coordinator, way: Mutex::default() }
    }

    /// A session is open, in which this worker is called so.
    pub(crate) fn open(&self, worker: WorkerId, line: AuthorizedChannel) {
        *lock(&self.way) = Some((worker, line));
    }

    /// The session is over.
    pub(crate) fn close(&self) {
        *lock(&self.way) = None;
    }

    /// [`Rendezvous::put`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn tell(&self, epoch: Epoch, key: &str, value: Vec<u8>) -> Result<()> {
        let (worker, mut client) = self.way()?;
        let put = Put { worker, epoch, key: key.to_owned(), value: value.into() };
        match tokio::time::timeout(SLACK, client.put(v1::PutRequest::from(&put))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(CollectiveError::Transport(status.message().to_owned())),
            Err(_) => Err(CollectiveError::Transport("the coordinator does not answer".to_owned())),
        }
    }

    /// [`Rendezvous::wait`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn hear(
        &self,
        epoch: Epoch,
        key: &str,
        most: Duration,
        abort: &Abort,
    ) -> Result<Option<Vec<u8>>> {
        let (worker, mut client) = self.way()?;
        let wait = Wait { worker, epoch, key: key.to_owned(), timeout: most };
        let raised = Arc::new(Notify::new());
        let raise = raised.clone();
        // Kept for a wait that has not begun.
        abort.when_raised(move || raise.notify_one());
        tokio::select! {
            biased;
            () = raised.notified() => Err(CollectiveError::Aborted),
            answer = tokio::time::timeout(most + SLACK, client.wait(v1::WaitRequest::from(&wait))) => match answer {
                Ok(Ok(response)) => {
                    let value = response.into_inner().into_value();
                    value.map(|value| Some(value.to_vec())).map_err(|e| CollectiveError::Transport(e.to_string()))
                }
                Ok(Err(status)) if status.code() == Code::DeadlineExceeded => Ok(None),
                Ok(Err(status)) => Err(CollectiveError::Transport(status.message().to_owned())),
                Err(_) => Ok(None),
            },
        }
    }

    fn way(&self) -> Result<(WorkerId, RendezvousClient<AuthorizedChannel>)> {
        let way = lock(&self.way).clone();
        let (worker, line) =
            way.ok_or_else(|| CollectiveError::Transport("the coordinator is away".to_owned()))?;
        Ok((worker, RendezvousClient::new(line)))
    }
}

impl fmt::Debug for PeerRendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerRendezvous").finish_non_exhaustive()
    }
}

impl Rendezvous for PeerRendezvous {
    fn address(&self) -> Result<IpAddr> {
        own_address(&self.coordinator)
            .map_err(|e| CollectiveError::Transport(format!("no way leads to the coordinator: {e}")))
    }

    fn put(&self, epoch: Epoch, key: &str, value: Vec<u8>) -> Result<()> {
        self.runtime.block_on(self.tell(epoch, key, value))
    }

    fn wait(&self, epoch: Epoch, key: &str, most: Duration, abort: &Abort) -> Result<Option<Vec<u8>>> {
        self.runtime.block_on(self.hear(epoch, key, most, abort))
    }
}

/// The address of this machine from which a coordinator is reached: loopback where it is, else one at which peers reach this machine
/// too. Nothing is sent.
fn own_address(coordinator: &Endpoint) -> std::io::Result<IpAddr> {
    let uri = coordinator.uri();
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let mut last = std::io::Error::other("it has no address");
    for to in (host, port).to_socket_addrs()? {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let from = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(to)?;
            socket.local_addr()
        });
        match from {
            Ok(from) => return Ok(from.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_a_loopback_coordinator_stays_on_loopback() {
        let own = |url: &str| own_address(&Endpoint::from_shared(url.to_owned()).unwrap());
        assert_eq!(own("http://127.0.0.1:7070").unwrap(), IpAddr::from(Ipv4Addr::LOCALHOST));
        assert!(own("http://localhost:7070").unwrap().is_loopback());
        assert!(own("http://no-such-host.invalid:7070").is_err());
    }
}

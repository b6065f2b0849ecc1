//! How a worker finds its peers: by the coordinator's rendezvous, over the connection of its session.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use obsdiff_proto::wire::v1::rendezvous_client::RendezvousClient;
use obsdiff_proto::wire::{Put, Reach, Wait, v1};
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

type Client = RendezvousClient<AuthorizedChannel>;

/// The coordinator's rendezvous, for as long as a session is open.
pub struct PeerRendezvous {
    runtime: Handle,
    coordinator: Endpoint,
    reach: Reach,
    own: OwnAddress,
    way: Mutex<Option<(WorkerId, AuthorizedChannel)>>,
}

impl PeerRendezvous {
    /// The rendezvous of this coordinator, for groups that are reached so; calls run on this runtime.
    pub fn new(runtime: Handle, coordinator: Endpoint, reach: Reach) -> Self {
        Self { runtime, coordinator, reach, own: OwnAddress::default(), way: Mutex::default() }
    }

    /// How the groups are reached that form by it.
    pub(crate) fn reach(&self) -> Reach {
        self.reach
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
    pub async fn publish(&self, epoch: Epoch, key: &str, value: Vec<u8>) -> Result<()> {
        let (worker, client) = self.way()?;
        Self::say(client, Put { worker, epoch, key: key.to_owned(), value: value.into() }).await
    }

    async fn say(mut client: Client, put: Put) -> Result<()> {
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
        let (worker, client) = self.way()?;
        Self::listen(client, Wait { worker, epoch, key: key.to_owned(), timeout: most }, abort.clone()).await
    }

    async fn listen(mut client: Client, wait: Wait, abort: Abort) -> Result<Option<Vec<u8>>> {
        let raised = Arc::new(Notify::new());
        let raise = raised.clone();
        // Kept for a wait that has not begun.
        abort.when_raised(move || raise.notify_one());
        tokio::select! {
            biased;
            () = raised.notified() => Err(CollectiveError::Aborted),
            answer = tokio::time::timeout(wait.timeout + SLACK, client.wait(v1::WaitRequest::from(&wait))) => match answer {
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

    /// Runs a call on the runtime for a thread that is not of it. The runtime may end before: then the call fails.
    fn run<T: Send + 'static>(&self, call: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let (done, result) = std::sync::mpsc::channel();
        // Nobody listens where the caller's thread has ended.
        self.runtime.spawn(async move { drop(done.send(call.await)) });
        result.recv().unwrap_or_else(|_| Err(CollectiveError::Transport("the worker ends".to_owned())))
    }

    fn way(&self) -> Result<(WorkerId, Client)> {
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
        self.own
            .get(|| own_address(&self.coordinator))
            .map_err(|e| CollectiveError::Transport(format!("no way leads to the coordinator: {e}")))
    }

    fn put(&self, epoch: Epoch, key: &str, value: Vec<u8>) -> Result<()> {
        let (worker, client) = self.way()?;
        self.run(Self::say(client, Put { worker, epoch, key: key.to_owned(), value: value.into() }))
    }

    fn wait(&self, epoch: Epoch, key: &str, most: Duration, abort: &Abort) -> Result<Option<Vec<u8>>> {
        let (worker, client) = self.way()?;
        let wait = Wait { worker, epoch, key: key.to_owned(), timeout: most };
        self.run(Self::listen(client, wait, abort.clone()))
    }
}

/// The address of this machine at which peers reach it. It is kept while the machine has it: each group that forms asks for it, and where
/// the name server is away for a while, looking it up takes as long as the group has to form.
#[derive(Default)]
struct OwnAddress {
    kept: Mutex<Option<IpAddr>>,
}

impl OwnAddress {
    fn get(&self, look_up: impl FnOnce() -> std::io::Result<IpAddr>) -> std::io::Result<IpAddr> {
        let kept = *lock(&self.kept);
        if let Some(own) = kept
            && UdpSocket::bind((own, 0)).is_ok()
        {
            return Ok(own);
        }
        let own = look_up()?;
        *lock(&self.kept) = Some(own);
        Ok(own)
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

    #[test]
    fn the_own_address_is_looked_up_again_only_where_the_machine_has_it_no_more() {
        let own = OwnAddress::default();
        let away = || Err(std::io::Error::other("the name server is away"));
        // For documentation alone (RFC 5737), so no machine's.
        let (here, elsewhere) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from([192, 0, 2, 1]));
        assert!(own.get(away).is_err());
        assert_eq!(own.get(|| Ok(here)).unwrap(), here);
        assert_eq!(own.get(away).unwrap(), here);
        let own = OwnAddress::default();
        assert_eq!(own.get(|| Ok(elsewhere)).unwrap(), elsewhere);
        assert!(own.get(away).is_err());
        assert_eq!(own.get(|| Ok(here)).unwrap(), here);
    }
}

//! Groups of workers over simulated TCP: they find each other by the coordinator's rendezvous, and rank 0 adds up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_worker::collective::{
    Abort, Buffer, Collective, CollectiveError, Member, Result, Transport, Values,
};
use obsdiff_worker::rendezvous::PeerRendezvous;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use turmoil::net::{TcpListener, TcpStream};

use crate::puppet;

/// Joins groups from a host.
pub(crate) struct Mesh {
    pub(crate) host: String,
    pub(crate) rendezvous: Arc<PeerRendezvous>,
}

/// A rank's end: its connections are its host's, and do what it calls.
struct Rank {
    member: Member,
    calls: mpsc::UnboundedSender<(Call, oneshot::Sender<Result<Vec<i64>>>)>,
}

/// A call and what the rank sends by it.
#[derive(Debug)]
struct Call {
    /// Who receives the sum; all ranks where it is none.
    root: Option<usize>,
    send: Vec<i64>,
}

/// A rank's connections: rank 0 has one to each other rank, in order, and each of those the one to rank 0.
struct Peers {
    member: Member,
    streams: Vec<TcpStream>,
}

impl Transport for Mesh {
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>> {
        let (host, rendezvous, abort) = (self.host.clone(), self.rendezvous.clone(), abort.clone());
        let calls = puppet::wait(async move {
            let raised = raised(&abort);
            let peers = tokio::select! {
                biased;
                () = raised.notified() => return Err(CollectiveError::Aborted),
                peers = timeout(member.form, Peers::meet(&host, &rendezvous, member, &abort)) => {
                    peers.unwrap_or(Err(late(&member, member.form)))?
                }
            };
            let (calls, to_do) = mpsc::unbounded_channel();
            tokio::spawn(peers.serve(to_do, raised));
            Ok(calls)
        })?;
        Ok(Box::new(Rank { member, calls }))
    }

    fn start(&self, joining: Box<dyn FnOnce() + Send>) -> Result<()> {
        puppet::start(joining);
        Ok(())
    }
}

/// Notified once the abort is raised.
fn raised(abort: &Abort) -> Arc<Notify> {
    let raised = Arc::new(Notify::new());
    let raise = raised.clone();
    abort.when_raised(move || raise.notify_one());
    raised
}

fn late(member: &Member, waited: Duration) -> CollectiveError {
    let ranks = (0..member.world).filter(|rank| *rank != member.rank).collect();
    CollectiveError::Timeout { ranks, waited }
}

fn lost(rank: usize) -> impl Fn(io::Error) -> CollectiveError {
    move |error| CollectiveError::PeerLost { rank, why: error.to_string() }
}

impl Peers {
    async fn meet(host: &str, rendezvous: &PeerRendezvous, member: Member, abort: &Abort) -> Result<Self> {
        let mut peers = Self { member, streams: Vec::new() };
        match member.rank {
            0 => peers.accept(host, rendezvous).await?,
            _ => peers.dial(rendezvous, abort).await?,
        }
        Ok(peers)
    }

    async fn accept(&mut self, host: &str, rendezvous: &PeerRendezvous) -> Result<()> {
        let listener = TcpListener::bind("0.0.0.0:0").await.map_err(lost(0))?;
        let port = listener.local_addr().map_err(lost(0))?.port();
        rendezvous.publish(self.member.epoch, "root", format!("{host}:{port}").into_bytes()).await?;
        let mut came: Vec<Option<TcpStream>> = (1..self.member.world).map(|_| None).collect();
        while came.iter().any(Option::is_none) {
            let (mut stream, _) = listener.accept().await.map_err(lost(0))?;
            // A peer that goes before it says who it is comes no more: the group is late.
            if let Ok(rank) = stream.read_u64().await {
                came[rank as usize - 1] = Some(stream);
            }
        }
        self.streams = came.into_iter().flatten().collect();
        for (rank, stream) in (1..).zip(&mut self.streams) {
            stream.write_u8(1).await.map_err(lost(rank))?;
        }
        Ok(())
    }

    async fn dial(&mut self, rendezvous: &PeerRendezvous, abort: &Abort) -> Result<()> {
        let Member { epoch, rank, form, .. } = self.member;
        let root =
            rendezvous.hear(epoch, "root", form, abort).await?.ok_or_else(|| late(&self.member, form))?;
        let mut stream =
            TcpStream::connect(String::from_utf8_lossy(&root).as_ref()).await.map_err(lost(0))?;
        stream.write_u64(rank as u64).await.map_err(lost(0))?;
        stream.read_u8().await.map_err(lost(0))?;
        self.streams = vec![stream];
        Ok(())
    }

    /// Does what the rank calls, until it leaves or something fails.
    async fn serve(
        mut self,
        mut calls: mpsc::UnboundedReceiver<(Call, oneshot::Sender<Result<Vec<i64>>>)>,
        raised: Arc<Notify>,
    ) {
        while let Some((call, reply)) = calls.recv().await {
            let silence = self.member.silence;
            let answer = tokio::select! {
                biased;
                () = raised.notified() => Err(CollectiveError::Aborted),
                answer = timeout(silence, self.call(call)) => answer.unwrap_or(Err(late(&self.member, silence))),
            };
            let failed = answer.is_err();
            if reply.send(answer).is_err() || failed {
                return;
            }
        }
    }

    async fn call(&mut self, mut call: Call) -> Result<Vec<i64>> {
        if self.member.rank > 0 {
            let stream = &mut self.streams[0];
            call.write(stream).await.map_err(lost(0))?;
            return match call.root {
                Some(root) if root != self.member.rank => Ok(Vec::new()),
                _ => Ok(Call::read(stream).await.map_err(lost(0))?.send),
            };
        }
        for (rank, stream) in (1..).zip(&mut self.streams) {
            let other = Call::read(stream).await.map_err(lost(rank))?;
            if (other.root, other.send.len()) != (call.root, call.send.len()) {
                let (called, expected) = (format!("{other:?}"), format!("{call:?}"));
                return Err(CollectiveError::Mismatch { rank, called, expected });
            }
            call.send.iter_mut().zip(other.send).for_each(|(sum, next)| *sum += next);
        }
        for (rank, stream) in (1..).zip(&mut self.streams) {
            if call.root.is_none_or(|root| root == rank) {
                call.write(stream).await.map_err(lost(rank))?;
            }
        }
        Ok(call.send)
    }
}

impl Call {
    async fn write(&self, to: &mut TcpStream) -> io::Result<()> {
        let root = self.root.map_or(-1, |root| root as i64);
        let numbers = [root, self.send.len() as i64].into_iter().chain(self.send.iter().copied());
        to.write_all(&numbers.flat_map(i64::to_be_bytes).collect::<Vec<_>>()).await
    }

    async fn read(from: &mut TcpStream) -> io::Result<Self> {
        let root = usize::try_from(from.read_i64().await?).ok();
        let mut send = Vec::new();
        for _ in 0..from.read_i64().await? {
            send.push(from.read_i64().await?);
        }
        Ok(Self { root, send })
    }
}

impl Rank {
    fn call(&mut self, root: Option<usize>, send: Values<'_>, receive: Option<Buffer<'_>>) -> Result<()> {
        let Values::I64(send) = send else { return Err(CollectiveError::Buffers("only integers are sent")) };
        let (reply, answer) = oneshot::channel();
        let over = || CollectiveError::Transport("the group is over".to_owned());
        self.calls.send((Call { root, send: send.to_vec() }, reply)).map_err(|_| over())?;
        let sum = puppet::wait(answer).map_err(|_| over())??;
        if let Some(Buffer::I64(receive)) = receive {
            receive.copy_from_slice(&sum);
        }
        Ok(())
    }
}

impl Collective for Rank {
    fn member(&self) -> &Member {
        &self.member
    }

    fn all_reduce(&mut self, send: Values<'_>, receive: Buffer<'_>) -> Result<()> {
        self.call(None, send, Some(receive))
    }

    fn reduce(&mut self, root: usize, send: Values<'_>, receive: Option<Buffer<'_>>) -> Result<()> {
        self.call(Some(root), send, receive)
    }

    fn broadcast(&mut self, _: usize, _: Buffer<'_>) -> Result<()> {
        Err(CollectiveError::Buffers("weights go by the store"))
    }
}

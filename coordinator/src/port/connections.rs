//! The connections of a port: how many may be open, and how long a client may take to begin. Whoever can reach the port can open
//! connections, without the job's token and without a certificate, so those that say nothing must not take what the job needs.

use std::convert::Infallible;
use std::io::{self, ErrorKind, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use obsdiff_proto::wire::MOST_WORKERS;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// How long a client may take to say which protocol it speaks; with TLS, to end its handshake. Clients do so at once, so this is the
/// time in which packets that were lost on the way are sent again.
pub(super) const OPENING: Duration = Duration::from_secs(10);
/// The wait after the system could not give a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// What a client of HTTP/2 says first (RFC 9113, section 3.4). Every other protocol differs from it in its first bytes.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that may be open however few files the process may open.
const LEAST: usize = 32;
/// Connections that may be open however many files the process may open: two for each worker that a job may have.
const MOST: usize = 2 * MOST_WORKERS;

/// The number of connections that may be open at a time. The process's limit on files is raised first, as far as it may be.
pub(super) fn most_connections() -> usize {
    bound(raised_file_limit())
}

/// Half of the files that this process may open, because the job's store and its records need files too.
fn bound(files: Option<u64>) -> usize {
    files.map_or(MOST, |files| usize::try_from(files / 2).unwrap_or(MOST)).clamp(LEAST, MOST)
}

/// Lets this process open the files that [`MOST`] connections need, or as many as it may. Returns its limit, if it has one.
fn raised_file_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let needed = 2 * MOST as u64;
    let wanted = limit.maximum.map_or(needed, |most| most.min(needed));
    if limit.current.is_none_or(|current| current >= wanted) {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }) {
        Ok(()) => Some(wanted),
        Err(error) => {
            tracing::debug!(%error, "the limit on open files stays as it is");
            limit.current
        }
    }
}

/// The connections of a listener, of which at most so many are open at a time. Further clients wait in the system's queue until one of
/// these connections ends.
pub(super) fn accepted(
    listener: TcpListener,
    most: usize,
) -> impl Stream<Item = Result<Connection<TcpStream>, Infallible>> + Send {
    let acceptor = Acceptor { listener, places: Arc::new(Semaphore::new(most)), was_full: false };
    stream::unfold(acceptor, |mut acceptor| async move {
        let connection = acceptor.next().await?;
        Some((Ok::<_, Infallible>(connection), acceptor))
    })
}

/// Takes connections from a listener while there are places for them.
struct Acceptor {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// Whether all places were taken once. This is logged once: it may happen at every connection.
    was_full: bool,
}

impl Acceptor {
    /// The next connection. There is always one, because nobody closes the places.
    async fn next(&mut self) -> Option<Connection<TcpStream>> {
        if self.places.available_permits() == 0 && !mem::replace(&mut self.was_full, true) {
            tracing::warn!(
                "the port has all the connections that it may have, half of `ulimit -n`: \
                 further clients wait until one ends"
            );
        }
        let place = self.places.clone().acquire_owned().await.ok()?;
        let listener = &self.listener;
        let (stream, _) = until_accepted(|| listener.accept()).await;
        Some(Connection::new(stream, place))
    }
}

/// Calls `accept` until it gives a connection. No error is the last word: the system may lack files or memory for a while. The
/// connection that could not be given stays in its queue, so trying again at once would keep a processor busy.
async fn until_accepted<T, F: Future<Output = io::Result<T>>>(mut accept: impl FnMut() -> F) -> T {
    let mut failed = false;
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                if !mem::replace(&mut failed, true) {
                    tracing::warn!(%error, "no connection can be accepted for now");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a client gave up its connection before it was accepted. The next one may be well.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
    )
}

/// A connection that has a place while it is open, and ends if its client does not begin in time.
///
/// Only the beginning has a time limit here. What follows has others: TLS one for the handshake, HTTP/1 one for the headers of each
/// request, HTTP/2 pings. None of them ends a stream that is quiet for hours.
pub(super) struct Connection<S> {
    stream: S,
    /// Until it is known which protocol the client speaks.
    opening: Option<Opening>,
    _place: OwnedSemaphorePermit,
}

/// What a client has said so far: the first bytes of [`PREFACE`], but not all of them. That is too little to know its protocol, so
/// nothing else ends the connection of a client that stops here.
struct Opening {
    said: usize,
    end: Pin<Box<Sleep>>,
}

impl<S> Connection<S> {
    /// To be called in a runtime: the client's time starts now.
    fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        let opening = Opening { said: 0, end: Box::pin(sleep(OPENING)) };
        Self { stream, opening: Some(opening), _place: place }
    }
}

impl Opening {
    /// Takes in what the client says next. Returns whether its protocol is known now.
    fn is_over(&mut self, bytes: &[u8]) -> bool {
        let rest = PREFACE.get(self.said..).unwrap_or_default();
        self.said += bytes.len();
        bytes.len() >= rest.len() || !rest.starts_with(bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, opening, .. } = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(stream).poll_read(cx, into);
        let Some(open) = opening else { return read };
        if read.is_pending() {
            ready!(open.end.as_mut().poll(cx));
            let why = "the client did not begin in time";
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, why)));
        }
        if open.is_over(into.filled().get(before..).unwrap_or_default()) {
            *opening = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, from)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests;

//! Connections between hosts, for tonic: simulated TCP that is traced, and that a fault can break.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use hyper_util::rt::TokioIo;
use obsdiff_worker::session::Connect;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Uri;
use tonic::transport::server::Connected;
use turmoil::net::TcpStream;

use crate::trace::Trace;

/// A connection.
pub(crate) struct Wire {
    stream: TcpStream,
    end: Arc<Mutex<End>>,
    host: String,
    trace: Trace,
}

/// How a connection is broken.
#[derive(Default)]
struct End {
    broken: bool,
    reader: Option<Waker>,
}

/// The connections that a host has opened.
#[derive(Clone, Default)]
pub(crate) struct Wires(Arc<Mutex<Vec<Weak<Mutex<End>>>>>);

impl Wires {
    /// Breaks all of them: both ends hear of it.
    pub(crate) fn cut(&self) {
        for end in self.0.lock().unwrap().drain(..).filter_map(|end| end.upgrade()) {
            let mut end = end.lock().unwrap();
            end.broken = true;
            if let Some(reader) = end.reader.take() {
                reader.wake();
            }
        }
    }

    /// Opens connections from a host.
    pub(crate) fn connect(&self, host: &str, trace: &Trace) -> Arc<Connect> {
        let (wires, host, trace) = (self.clone(), host.to_owned(), trace.clone());
        Arc::new(move |endpoint| {
            let (wires, host, trace) = (wires.clone(), host.clone(), trace.clone());
            let dial = tower::service_fn(move |uri: Uri| {
                let (wires, host, trace) = (wires.clone(), host.clone(), trace.clone());
                async move {
                    let to = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(80));
                    let wire = Wire::new(TcpStream::connect(to).await?, &host, &trace);
                    wires.0.lock().unwrap().push(Arc::downgrade(&wire.end));
                    io::Result::Ok(TokioIo::new(wire))
                }
            });
            Box::pin(async move { endpoint.connect_with_connector(dial).await })
        })
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, host: &str, trace: &Trace) -> Self {
        Self { stream, end: Arc::default(), host: host.to_owned(), trace: trace.clone() }
    }

    fn check(&self, reader: Option<&Context<'_>>) -> io::Result<()> {
        let mut end = self.end.lock().unwrap();
        if let Some(reader) = reader {
            end.reader = Some(reader.waker().clone());
        }
        if end.broken { Err(ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(Some(cx))?;
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if read.is_ready() {
            // How much it is depends on the date: answers name it.
            let what = if into.filled().len() > before { "reads" } else { "reads the end" };
            self.trace.here(&self.host, what);
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.check(None)?;
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

//! TLS connection that ends when its peer is no longer trusted.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::open::Entry;
use crate::places::{Authenticated, ProofWatch};

/// Limit of the bytes read ahead. The first frames of an HTTP/2 server are much smaller.
const FIRST_BYTES_MAX: usize = 1024;

pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    /// Bytes read ahead, before the connection was handed on.
    first: Bytes,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Ends an inbound connection unless a call on it is authenticated in time.
    watch: Option<ProofWatch>,
    peer_names: Option<Arc<[String]>>,
    remote: SocketAddr,
    entry: Entry,
}

impl std::fmt::Debug for TlsConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConnection")
            .field("remote", &self.remote)
            .field("peer_names", &self.peer_names)
            .finish_non_exhaustive()
    }
}

impl TlsConnection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        peer_names: Option<Arc<[String]>>,
        entry: Entry,
        watch: Option<ProofWatch>,
    ) -> Self {
        let cut = Box::pin(entry.cut.clone().cancelled_owned());
        Self { stream, first: Bytes::new(), cut, watch, peer_names, remote, entry }
    }

    pub fn proven(&self) -> Authenticated {
        self.watch.as_ref().map(|watch| watch.proven().clone()).unwrap_or_default()
    }

    /// Waits for the server's first bytes. In TLS 1.3, a client's handshake ends before the server has checked the
    /// client's certificate. A rejection arrives here, where it can still be reported as such. A server that waits for
    /// the client to send first delays this by at most `limit`.
    pub(super) async fn confirm(mut self, limit: Duration) -> io::Result<Self> {
        let mut buffer = [0; FIRST_BYTES_MAX];
        match tokio::time::timeout(limit, self.stream.read(&mut buffer)).await {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(length)) => {
                self.first = Bytes::copy_from_slice(&buffer[..length]);
                Ok(self)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(self),
        }
    }

    /// Returns the DNS names of the peer's certificate; `None` if the peer showed no certificate.
    pub fn peer_names(&self) -> Option<&Arc<[String]>> {
        self.peer_names.as_ref()
    }

    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().0.local_addr()
    }

    fn ended(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        let aborted = |why: &str| Some(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        if self.cut.as_mut().poll(cx).is_ready() {
            return aborted("the peer's certificate is trusted no longer");
        }
        if self.watch.as_mut().is_some_and(|watch| watch.poll_end(cx).is_ready()) {
            return aborted("nothing was proven on the connection in time");
        }
        None
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always reads, so a cut wakes the task here.
        if let Some(error) = self.ended(cx) {
            return Poll::Ready(Err(error));
        }
        if self.first.has_remaining() {
            let length = self.first.remaining().min(buf.remaining());
            buf.put_slice(&self.first.split_to(length));
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.entry.cut.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

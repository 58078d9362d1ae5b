//! Connections in plaintext. Each has a place, and a time in which it must be proven: see [`super::places`].

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::places::{Authenticated, ProofWatch};

/// A connection that ends unless a call on it is proven in time.
pub struct PlainConnection {
    stream: TcpStream,
    from: SocketAddr,
    watch: ProofWatch,
}

impl std::fmt::Debug for PlainConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlainConnection({})", self.from)
    }
}

impl PlainConnection {
    pub(super) fn new(stream: TcpStream, from: SocketAddr, watch: ProofWatch) -> Self {
        Self { stream, from, watch }
    }

    pub fn from(&self) -> SocketAddr {
        self.from
    }

    pub fn proven(&self) -> Authenticated {
        self.watch.proven().clone()
    }
}

impl AsyncRead for PlainConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always reads, so that this is where the end wakes it.
        if self.watch.poll_end(cx).is_ready() {
            tracing::debug!(from = %self.from, "closed a connection on which nothing was proven");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PlainConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    /// Our end of a connection to a peer that says nothing, with what keeps the peer's end open.
    async fn silent(limit: Duration) -> (PlainConnection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        (PlainConnection::new(stream, from, Authenticated::default().watch_for(limit)), peer)
    }

    #[tokio::test]
    async fn connection_ends_unless_it_is_proven_in_time() {
        let limit = Duration::from_millis(50);
        let (mut stranger, _peer) = silent(limit).await;
        assert_eq!(stranger.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut member, _peer) = silent(limit).await;
        member.proven().set(None);
        let read = tokio::time::timeout(4 * limit, member.read_u8()).await;
        assert!(read.is_err(), "it goes on waiting: {read:?}");
    }
}

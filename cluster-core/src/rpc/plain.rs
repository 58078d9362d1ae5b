//! Connections in plaintext: so many at once, and each has a time in which somebody must prove who it is.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

/// A node needs one or two.
const CONNECTIONS_MAX: usize = 2048;
/// A node attests and makes its first sealed call within a second or two.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);

/// Set once a call on the connection was proven.
#[derive(Debug, Clone, Default)]
pub struct Proven(Arc<AtomicBool>);

impl Proven {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Places for connections of one listener.
#[derive(Debug)]
pub(super) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

impl Places {
    /// None when all are taken: the connection is closed.
    pub fn admit(&self, stream: TcpStream, from: SocketAddr) -> Option<PlainConnection> {
        PlainConnection::new(stream, from, self.0.clone().try_acquire_owned().ok()?, PROOF_TIMEOUT).into()
    }
}

/// A connection that ends by itself if nobody proves who it is.
pub struct PlainConnection {
    stream: TcpStream,
    from: SocketAddr,
    proven: Proven,
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for PlainConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlainConnection({})", self.from)
    }
}

impl PlainConnection {
    fn new(stream: TcpStream, from: SocketAddr, place: OwnedSemaphorePermit, limit: Duration) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(limit)));
        Self { stream, from, proven: Proven::default(), deadline, _place: place }
    }

    pub fn from(&self) -> SocketAddr {
        self.from
    }

    pub fn proven(&self) -> Proven {
        self.proven.clone()
    }

    /// Whether the time is over, and nobody has proven anything.
    fn is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = &mut self.deadline else { return false };
        if deadline.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.deadline = None;
        !self.proven.is_set()
    }
}

impl AsyncRead for PlainConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_overdue(cx) {
            tracing::info!(from = %self.from, "a connection on which nobody proved who it is was ended");
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
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    /// Our end of a connection to a peer that says nothing, with what keeps the peer's end open.
    async fn silent(limit: Duration) -> (PlainConnection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (PlainConnection::new(stream, from, place, limit), peer)
    }

    #[tokio::test]
    async fn who_proves_nothing_is_cut_off_and_who_has_is_not() {
        let limit = Duration::from_millis(50);
        let (mut stranger, _peer) = silent(limit).await;
        assert_eq!(stranger.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut member, _peer) = silent(limit).await;
        member.proven().set();
        let read = tokio::time::timeout(4 * limit, member.read_u8()).await;
        assert!(read.is_err(), "it goes on waiting: {read:?}");
    }
}

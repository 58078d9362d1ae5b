//! Connection for a worker's calls to its controller: a unix socket, TCP, or TLS.

use std::{
    io,
    net::IpAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use aegis_config::endpoint::Endpoint;
use aegis_types::error::{Error, ErrorCode, Result};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tonic::transport::{Channel, Endpoint as Target};
use tower::service_fn;

use super::{
    tls::{self, Credentials, Expect, HostPort, KeptCertificate, TlsConnection, refusal},
    wire::{ByteStream, Connector, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Security of a worker's link to its controller.
#[derive(Debug, Clone)]
pub enum LinkTls {
    /// A unix socket, or plaintext.
    Off,
    Operator(Credentials),
    BuiltIn(KeptCertificate),
}

impl LinkTls {
    pub fn credentials(&self) -> Option<&Credentials> {
        match self {
            LinkTls::Off => None,
            LinkTls::Operator(credentials) => Some(credentials),
            LinkTls::BuiltIn(kept) => Some(kept.credentials()),
        }
    }
}

/// Facts about the connection under a client.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    pub local: Option<IpAddr>,
    /// Uses TLS without a client certificate.
    pub bare: bool,
    /// The node's certificate was rejected.
    pub refused: bool,
    /// Uses TCP without TLS, where any process on the port may answer.
    pub plaintext: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Line {
    channel: Channel,
    lost: watch::Receiver<bool>,
    facts: Arc<Mutex<Facts>>,
}

impl Line {
    pub async fn open(endpoint: &Endpoint, tls: &LinkTls) -> Result<Self> {
        let facts = Arc::new(Mutex::new(Facts::default()));
        let (dropped, lost) = watch::channel(false);
        let dropped = Arc::new(dropped);
        let target = target();
        let shown = match endpoint {
            Endpoint::Unix(path) => path.display().to_string(),
            Endpoint::Http(url) | Endpoint::Https(url) => url.to_string(),
        };
        let unreachable = |e: tonic::transport::Error| {
            if let Some(refused) = refusal::of(&shown, &e) {
                return refused;
            }
            Error::new(ErrorCode::Unavailable, format!("the controller does not answer at {shown}")).source(e)
        };
        let channel = match endpoint {
            Endpoint::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_| watched_unix(path.clone(), dropped.clone()));
                target.connect_with_connector(connector).await.map_err(unreachable)?
            }
            Endpoint::Http(url) => {
                let (to, noted) = (HostPort::of(url)?, facts.clone());
                let connector = service_fn(move |_| watched_tcp(to.clone(), dropped.clone(), noted.clone()));
                target.connect_with_connector(connector).await.map_err(unreachable)?
            }
            Endpoint::Https(url) => {
                let (to, noted, tls) = (HostPort::of(url)?, facts.clone(), tls.clone());
                let connector =
                    service_fn(move |_| watched_tls(to.clone(), tls.clone(), dropped.clone(), noted.clone()));
                target.connect_with_connector(connector).await.map_err(unreachable)?
            }
        };
        Ok(Self { channel, lost, facts })
    }

    pub async fn over(dial: Connector) -> Result<Self> {
        let (dropped, lost) = watch::channel(false);
        let dropped = Arc::new(dropped);
        let connector = service_fn(move |_| watched_other(dial.clone(), dropped.clone()));
        let channel = target()
            .connect_with_connector(connector)
            .await
            .map_err(|e| Error::new(ErrorCode::Unavailable, "the controller does not answer").source(e))?;
        Ok(Self { channel, lost, facts: Arc::default() })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn facts(&self) -> Facts {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the connection is lost.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // Fails only if the sender is gone, which is dropped with the connection.
        let _ = lost.wait_for(|lost| *lost).await;
    }
}

fn target() -> Target {
    // The URI only fills the `:authority` of the calls.
    Target::from_static("http://controller")
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

async fn watched_other(
    dial: Connector,
    lost: Arc<watch::Sender<bool>>,
) -> io::Result<TokioIo<Watched<Box<dyn ByteStream>>>> {
    let stream = dial().await?;
    Ok(TokioIo::new(Watched { stream, lost }))
}

async fn watched_unix(
    path: impl AsRef<Path>,
    lost: Arc<watch::Sender<bool>>,
) -> io::Result<TokioIo<Watched<UnixStream>>> {
    let stream = UnixStream::connect(path).await?;
    Ok(TokioIo::new(Watched { stream, lost }))
}

async fn watched_tcp(
    to: HostPort,
    lost: Arc<watch::Sender<bool>>,
    facts: Arc<Mutex<Facts>>,
) -> io::Result<TokioIo<Watched<TcpStream>>> {
    let stream = to.connect().await?;
    let local = stream.local_addr().ok().map(|at| at.ip());
    note(&facts, Facts { local, plaintext: true, ..Facts::default() });
    Ok(TokioIo::new(Watched { stream, lost }))
}

async fn watched_tls(
    to: HostPort,
    tls: LinkTls,
    lost: Arc<watch::Sender<bool>>,
    facts: Arc<Mutex<Facts>>,
) -> io::Result<TokioIo<Watched<TlsConnection>>> {
    let credentials = tls.credentials().ok_or_else(|| io::Error::other("no TLS is configured"))?;
    let dial = |bare| tls::client::connect(credentials, &to, Expect::Host, bare);
    let first = dial(false).await;
    let (stream, shown, refused) = match first {
        Ok((stream, shown)) => (stream, shown, false),
        // The server has a new CA or our certificate has expired by its clock. The node's key still proves its
        // identity.
        Err(error) if matches!(tls, LinkTls::BuiltIn(_)) && refusal::is_of_our_certificate(&error) => {
            tracing::warn!(%error, "the controller does not take this node's certificate; attesting by key");
            (dial(true).await?.0, false, true)
        }
        Err(error) => return Err(error),
    };
    let local = stream.local().ok().map(|at| at.ip());
    note(&facts, Facts { local, bare: !shown, refused, plaintext: false });
    Ok(TokioIo::new(Watched { stream, lost }))
}

fn note(noted: &Mutex<Facts>, facts: Facts) {
    *noted.lock().unwrap_or_else(PoisonError::into_inner) = facts;
}

/// Reports when the connection is dropped. A worker that noticed only at its next heartbeat would be away for half a
/// minute after every restart of its controller.
struct Watched<S> {
    stream: S,
    lost: Arc<watch::Sender<bool>>,
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.lost.send_replace(true);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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

//! Accepts TLS connections. Every handshake has a time limit, and the numbers of handshakes and connections are
//! bounded.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aegis_identity::CertificateFacts;
use aegis_metrics::Metrics;
use aegis_types::error::{Error, ErrorCode};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use super::{Credentials, TlsConnection, open::PeerSide, refusal};
use crate::places::Authenticated;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of handshakes. Silent callers occupy one until their time limit.
const HANDSHAKES_MAX: usize = 256;
/// Time for a rejected peer to read the reason.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES_MAX: u64 = 64 * 1024;
/// Interval of log lines about one address.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const LOGGED_MAX: usize = 1024;
/// Name under which handshakes are counted among the calls.
const HANDSHAKE: &str = "TlsHandshake";

/// Performs handshakes for one listener.
#[derive(Debug)]
pub(crate) struct Handshakes {
    credentials: Credentials,
    handshakes: Arc<Semaphore>,
    logged: Mutex<HashMap<IpAddr, Instant>>,
    metrics: Metrics,
}

impl Handshakes {
    pub fn new(credentials: Credentials, metrics: Metrics) -> Self {
        Self {
            credentials,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            logged: Mutex::default(),
            metrics,
        }
    }

    /// Logs once a minute that an address was turned away.
    pub fn note_turned_away(&self, from: SocketAddr) {
        if self.may_log(from.ip()) {
            tracing::warn!(%from, "a connection was turned away: too many are open");
        }
    }

    /// Performs a handshake. Returns `None` on failure, which is logged here.
    pub async fn perform(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        proven: Authenticated,
    ) -> Option<TlsConnection> {
        let at = Instant::now();
        let cut = proven.cut();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, from, proven));
        // An unfinished connection can be evicted.
        let performed = cut.run_until_cancelled(handshake).await?;
        let error = match performed {
            Ok(Ok(connection)) => {
                self.metrics.call(HANDSHAKE, None, at.elapsed());
                return Some(connection);
            }
            Ok(Err(Some(error))) => refusal::of_caller(&error),
            Ok(Err(None)) => return None,
            Err(_) => Error::new(ErrorCode::Timeout, "the handshake was not finished in time"),
        };
        self.metrics.call(HANDSHAKE, Some(error.code()), at.elapsed());
        if self.may_log(from.ip()) {
            tracing::warn!(%from, reason = %error.code(), error = %error.chain(), "a handshake failed");
        }
        None
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        proven: Authenticated,
    ) -> Result<TlsConnection, Option<io::Error>> {
        // The semaphore is never closed while there is a server.
        let _turn = self.handshakes.acquire().await.map_err(|_| None)?;
        // Without a certificate of our own, a handshake is not possible yet.
        let config = self.credentials.server().ok_or(None)?;
        let accepted = TlsAcceptor::from(config).accept(stream).into_fallible().await;
        let stream = match accepted {
            Ok(stream) => stream,
            Err((error, stream)) => {
                tokio::spawn(farewell(stream));
                return Err(Some(error));
            }
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Vec<CertificateDer<'static>> =
            chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let names = match chain.first() {
            Some(leaf) => {
                let facts = CertificateFacts::of(leaf).map_err(|e| Some(io::Error::other(e)))?;
                Some(Arc::from(facts.dns_names))
            }
            None => None,
        };
        let entry = self.credentials.enter(PeerSide::Client, chain);
        Ok(TlsConnection::new(stream.into(), from, names, entry, Some(proven.watch())))
    }

    fn may_log(&self, from: IpAddr) -> bool {
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.get(&from).is_some_and(|at| now.duration_since(*at) < LOG_INTERVAL) {
            return false;
        }
        if logged.len() >= LOGGED_MAX {
            logged.retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        }
        // If the map is still full, a flood from many addresses is represented by those already in it.
        let room = logged.len() < LOGGED_MAX;
        if room {
            logged.insert(from, now);
        }
        room
    }
}

/// Closes the connection after reading pending bytes. Closing with unread bytes would reset the connection and lose the
/// alert that tells the other end the reason.
async fn farewell(mut stream: TcpStream) {
    let drained = async {
        let _ = stream.shutdown().await;
        let mut unread = stream.take(FAREWELL_BYTES_MAX);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    // A peer that does not close in time is dropped.
    let _ = tokio::time::timeout(FAREWELL, drained).await;
}

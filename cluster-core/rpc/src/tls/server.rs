//! Accepting under TLS: every handshake has a time limit, and there are only so many of them, and of
//! connections, at once.

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
use crate::places::Proven;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Callers that say nothing hold a place until their time is up.
const HANDSHAKES_MAX: usize = 256;
/// How long a refused peer may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES_MAX: u64 = 64 * 1024;
/// One line per address in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const LOGGED_MAX: usize = 1024;
/// Under this name handshakes are counted, beside the calls.
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

    /// Says once a minute that an address was turned away.
    pub fn note_turned_away(&self, from: SocketAddr) {
        if self.may_log(from.ip()) {
            tracing::warn!(%from, "a connection was turned away: too many are open");
        }
    }

    /// None when it failed, which is logged here.
    pub async fn perform(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        proven: Proven,
    ) -> Option<TlsConnection> {
        let at = Instant::now();
        let cut = proven.cut();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, from, proven));
        // It makes way before it is finished.
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
        proven: Proven,
    ) -> Result<TlsConnection, Option<io::Error>> {
        // Closed never; and then there is nobody to serve.
        let _turn = self.handshakes.acquire().await.map_err(|_| None)?;
        // Without a certificate of ours yet there is nothing to say.
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
        // Still full: a flood from many addresses is told by those that are in already.
        let room = logged.len() < LOGGED_MAX;
        if room {
            logged.insert(from, now);
        }
        room
    }
}

/// Closing with bytes unread would reset the connection and take the alert with it, by which the other
/// end learns why it was refused.
async fn farewell(mut stream: TcpStream) {
    let drained = async {
        let _ = stream.shutdown().await;
        let mut unread = stream.take(FAREWELL_BYTES_MAX);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    // Who does not go is left.
    let _ = tokio::time::timeout(FAREWELL, drained).await;
}

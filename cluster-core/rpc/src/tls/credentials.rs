//! Current identity and trust of this node, in one handle shared by all clients and servers. When identity or trust
//! changes, open connections are checked again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aegis_identity::CertificateFacts;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::sync::watch;

use super::{
    ALPN_HTTP2, CHAIN_MAX, Expect, Trust,
    open::{Entry, OpenConnections, PeerSide},
    provider,
    verify::ServerVerifier,
};

/// Interval of checks whether the certificates of open connections are still valid, since they expire.
pub(super) const REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// Key with its certificate chain, checked to belong together.
#[derive(Debug, Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    pub facts: CertificateFacts,
}

impl Identity {
    /// Parses an identity. Rejects PEM that cannot be read, a key that does not match, and an expired certificate.
    pub fn of_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        let refused = |why: &str| Error::new(ErrorCode::ConfigInvalid, format!("the certificate {why}"));
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| refused("cannot be read").source(e))?;
        let leaf = chain.first().ok_or_else(|| refused("file holds none"))?;
        if chain.len() > CHAIN_MAX {
            return Err(refused("chain is too long"));
        }
        let facts = CertificateFacts::of(leaf)?;
        if facts.is_expired(now_ms() / 1000) {
            return Err(refused("has expired"));
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            // Without the cause, which may quote the file.
            .map_err(|_| refused("has a key that cannot be read"))?;
        let key = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|e| refused("and its key do not belong together, or cannot be used").source(e))?;
        Ok(Self { key: Arc::new(key), facts })
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    #[cfg(test)]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }
}

/// Client certificate that a server requires during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRule {
    /// A certificate from a trusted CA is required.
    Required,
    /// A certificate is optional. Without it a caller can only attest; all other calls are rejected.
    Optional,
}

#[derive(Debug)]
struct Shared {
    rule: PeerRule,
    identity: ArcSwapOption<Identity>,
    trust: ArcSwap<Trust>,
    server: ArcSwapOption<ServerConfig>,
    problem: ArcSwapOption<String>,
    open: OpenConnections,
    /// Version that grows with every change of the identity. Its lock serialises the changes.
    version: Mutex<watch::Sender<u64>>,
    changes: watch::Receiver<u64>,
}

#[derive(Debug, Clone)]
pub struct Credentials(Arc<Shared>);

impl Credentials {
    /// Makes credentials. Without an identity, no client is accepted, and dialling shows no certificate.
    pub fn new(rule: PeerRule, identity: Option<Identity>, trust: Trust) -> Result<Self> {
        let (version, changes) = watch::channel(0);
        let credentials = Self(Arc::new(Shared {
            rule,
            identity: ArcSwapOption::empty(),
            trust: ArcSwap::from_pointee(trust.clone()),
            server: ArcSwapOption::empty(),
            problem: ArcSwapOption::empty(),
            open: OpenConnections::default(),
            version: Mutex::new(version),
            changes,
        }));
        credentials.replace(identity, trust)?;
        Ok(credentials)
    }

    /// Replaces identity and trust for all later handshakes. Cuts connections whose peer is no longer trusted.
    pub fn replace(&self, identity: Option<Identity>, trust: Trust) -> Result<()> {
        let version = self.0.version.lock().unwrap_or_else(PoisonError::into_inner);
        let server = match &identity {
            Some(identity) => server_config(self.0.rule, identity, &trust)?,
            None => None,
        };
        self.0.identity.store(identity.map(Arc::new));
        let changed = !self.0.trust.load().same_as(&trust);
        self.0.trust.store(Arc::new(trust));
        self.0.server.store(server.map(Arc::new));
        version.send_modify(|version| *version += 1);
        if changed {
            self.review();
        }
        Ok(())
    }

    /// Returns a version that changes with the identity. Connections that show the old identity should be replaced
    /// before the other end stops trusting it.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.0.changes.clone()
    }

    pub fn replace_identity(&self, identity: Identity) -> Result<()> {
        self.replace(Some(identity), Trust::clone(&self.trust()))
    }

    /// Checks every open connection against the current trust.
    pub fn review(&self) {
        let trust = self.trust();
        let now = UnixTime::now();
        let cut = self.0.open.cut_where(|side, chain| refuses(&trust, side, chain, now));
        if cut > 0 {
            tracing::warn!(cut, "connections were cut: their certificates are trusted no longer");
        }
    }

    /// Cuts the connections of a removed node. Its certificate may still open new connections, but their calls are
    /// rejected: the node's record says that it was removed.
    pub fn cut(&self, node_id: &NodeId) {
        let names_it = |leaf: &CertificateDer<'static>| {
            let facts = CertificateFacts::of(leaf);
            facts.is_ok_and(|facts| facts.dns_names.iter().any(|name| name == node_id.as_str()))
        };
        let cut = self.0.open.cut_where(|_, chain| chain.first().is_some_and(names_it));
        if cut > 0 {
            tracing::info!(%node_id, cut, "the connections of a removed node were cut");
        }
    }

    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.0.identity.load_full()
    }

    pub(super) fn trust(&self) -> Arc<Trust> {
        self.0.trust.load_full()
    }

    pub(super) fn server(&self) -> Option<Arc<ServerConfig>> {
        self.0.server.load_full()
    }

    /// Returns the client configuration, and whether a certificate will be shown. `bare` shows no certificate.
    pub(super) fn client(&self, expect: Expect, bare: bool) -> Result<(ClientConfig, bool)> {
        let failed = |e: rustls::Error| Error::internal("TLS cannot be set up").source(e);
        let verifier = ServerVerifier { trust: self.trust(), expect };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let identity = self.identity().filter(|_| !bare);
        let shows = identity.is_some();
        let mut config = match identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.clone())))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        config.resumption = Resumption::disabled();
        // SNI would send the name in clear text; the certificate contains it anyway.
        config.enable_sni = false;
        Ok((config, shows))
    }

    /// Registers a connection. A connection whose peer was dropped in the meantime is cut at once.
    pub(super) fn enter(&self, side: PeerSide, chain: Vec<CertificateDer<'static>>) -> Entry {
        let entry = self.0.open.enter(side, chain.clone());
        // Checked after registration, so that a concurrent change is seen by one of the two.
        if !chain.is_empty() && refuses(&self.trust(), side, &chain, UnixTime::now()) {
            entry.cut.cancel();
        }
        entry
    }

    /// Returns the problem with the certificates on disk, while older certificates stay in use.
    pub fn problem(&self) -> Option<String> {
        let expired = self.identity().filter(|own| own.facts.is_expired(now_ms() / 1000));
        let noted = self.0.problem.load_full().map(|problem| problem.to_string());
        noted.or_else(|| expired.map(|_| "this node's certificate has expired".to_owned()))
    }

    /// Records a problem until it is cleared, and logs it once.
    pub(super) fn note(&self, problem: Option<&Error>) {
        let text = problem.map(Error::to_string);
        if self.0.problem.load_full().as_deref() == text.as_ref() {
            return;
        }
        if let Some(error) = problem {
            tracing::error!(
                error = %error.chain(),
                "the certificates were not replaced: the old ones stay in use"
            );
        }
        self.0.problem.store(text.map(Arc::new));
    }
}

fn refuses(trust: &Trust, side: PeerSide, chain: &[CertificateDer<'static>], now: UnixTime) -> bool {
    let Some((end_entity, intermediates)) = chain.split_first() else { return false };
    let verdict = match side {
        PeerSide::Client => trust.verify_client(end_entity, intermediates, now),
        PeerSide::Server => trust.verify_server(end_entity, intermediates, now),
    };
    verdict.is_err()
}

fn server_config(rule: PeerRule, identity: &Identity, trust: &Trust) -> Result<Option<ServerConfig>> {
    let Some(verifier) = trust.client_verifier(rule == PeerRule::Optional) else { return Ok(None) };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::internal("TLS cannot be set up").source(e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.clone())));
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    // A resumed session is not verified again: it would outlive the CA of its first handshake.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Some(config))
}

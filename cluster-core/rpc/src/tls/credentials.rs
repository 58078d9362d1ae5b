//! Who this node is and whom it trusts, at this moment. One handle, shared by everything that dials or
//! is dialled; identity and trust are swapped under it, and open connections are judged anew.

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

/// Between looks at whether the certificates of open connections still hold: they expire, too.
pub(super) const REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// A key with its certificate chain, checked to belong together.
#[derive(Debug, Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    pub facts: CertificateFacts,
}

impl Identity {
    /// Refuses what does not match, has expired, or cannot be read.
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

/// What a server asks of its callers during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRule {
    /// A certificate from a trusted CA, or no connection.
    Required,
    /// None is needed to attest; everything else is refused without one, call by call.
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
    /// Rises with every change of the identity. Its lock makes swaps come one after the other.
    version: Mutex<watch::Sender<u64>>,
    changes: watch::Receiver<u64>,
}

#[derive(Debug, Clone)]
pub struct Credentials(Arc<Shared>);

impl Credentials {
    /// Without an identity nobody is let in, and dialling shows no certificate.
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

    /// Takes effect for every handshake from now on; connections whose peer is trusted no longer are cut.
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

    /// Changes whenever the identity did: connections that show the old one are to be made anew, before
    /// the other end stops trusting it.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.0.changes.clone()
    }

    pub fn replace_identity(&self, identity: Identity) -> Result<()> {
        self.replace(Some(identity), Trust::clone(&self.trust()))
    }

    /// Judges every open connection by what is trusted now.
    pub fn review(&self) {
        let trust = self.trust();
        let now = UnixTime::now();
        let cut = self.0.open.cut_where(|side, chain| refuses(&trust, side, chain, now));
        if cut > 0 {
            tracing::warn!(cut, "connections were cut: their certificates are trusted no longer");
        }
    }

    /// Cuts the connections of a node that is no member any more. Its certificate may still open others,
    /// and no call on them is taken: the node's record says that it was removed.
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

    /// How to dial; `bare` shows no certificate. Tells whether one will be shown.
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
        // The name is in the certificate, not in the clear.
        config.enable_sni = false;
        Ok((config, shows))
    }

    /// Takes a connection into the books; one whose peer was dropped meanwhile is cut at once.
    pub(super) fn enter(&self, side: PeerSide, chain: Vec<CertificateDer<'static>>) -> Entry {
        let entry = self.0.open.enter(side, chain.clone());
        // After it is in the table: a change in between is seen by one of the two.
        if !chain.is_empty() && refuses(&self.trust(), side, &chain, UnixTime::now()) {
            entry.cut.cancel();
        }
        entry
    }

    /// What is wrong with the certificates on disk, while older ones stay in use.
    pub fn problem(&self) -> Option<String> {
        let expired = self.identity().filter(|own| own.facts.is_expired(now_ms() / 1000));
        let noted = self.0.problem.load_full().map(|problem| problem.to_string());
        noted.or_else(|| expired.map(|_| "this node's certificate has expired".to_owned()))
    }

    /// Keeps a problem until there is none, and logs it once.
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
    // A resumed session is not verified again: it would outlive the CA it was opened under.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Some(config))
}

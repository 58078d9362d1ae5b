//! TLS for HTTPS clients, with a server certificate and without client certificates. New files are used for later
//! connections. A bad new file is reported, and the old certificate stays in use.

use std::{fmt, fs, sync::Arc};

use aegis_config::schema::HttpTls;
use aegis_identity::sha256;
use aegis_types::error::{Error, ErrorCode, Result};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{ALPN_HTTP2, Identity, changes::Changes, provider};

const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Current certificate.
struct Current(ArcSwap<CertifiedKey>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Returns the configuration of an HTTPS listener, updated from the files: TLS 1.3, without resumption. Its task ends
/// with `stop`.
pub fn web_server(files: HttpTls, stop: CancellationToken) -> Result<Arc<ServerConfig>> {
    // Watches before reading, so that a change in between is found.
    let mut changes = Changes::of(&[&files.cert, &files.key]);
    let (identity, mut used) = read(&files)?;
    let current = Arc::new(Current(ArcSwap::new(identity.certified_key())));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::internal("TLS cannot be set up").source(e))?
        .with_no_client_auth()
        .with_cert_resolver(current.clone());
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    tokio::spawn(async move {
        while stop.run_until_cancelled(changes.next()).await.is_some() {
            match read(&files) {
                Ok((_, digest)) if digest == used => {}
                Ok((identity, digest)) => {
                    used = digest;
                    current.0.store(identity.certified_key());
                    tracing::info!(cert = %files.cert.display(), "the certificate of HTTP was replaced");
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "the certificate of HTTP stays as it is")
                }
            }
        }
    });
    Ok(Arc::new(config))
}

fn read(files: &HttpTls) -> Result<(Identity, [u8; 32])> {
    let bytes = |key: &str, path: &std::path::Path| {
        fs::read(path).map(Zeroizing::new).map_err(|e| {
            let what = format!("spec.mcp.tls.{key}: {} cannot be read", path.display());
            Error::new(ErrorCode::ConfigInvalid, what)
                .remedy("name a PEM file that this process can read")
                .source(e)
        })
    };
    let (cert, key) = (bytes("cert", &files.cert)?, bytes("key", &files.key)?);
    let identity = Identity::of_pem(&cert, &key).map_err(|e| {
        let why = format!("spec.mcp.tls: {}: {}", files.cert.display(), e.message());
        Error::new(ErrorCode::ConfigInvalid, why).remedy("replace it with a file that is whole and in time")
    })?;
    Ok((identity, sha256(&[sha256(&cert), sha256(&key)].concat())))
}

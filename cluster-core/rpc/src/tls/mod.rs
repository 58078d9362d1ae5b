//! TLS on the cluster port, both ways round: who we are, whom we trust, and the connections that hang
//! on it.
//!
//! - [`credentials`]: the identity and the trust of this moment, swapped as a whole; everything else
//!   asks it.
//! - [`files`]: the operator's certificates, watched. [`kept`]: a worker's certificate from the built-in
//!   CA. [`own`]: the controller's own, renewed by itself.
//! - [`trust`], [`verify`]: what is accepted of the other end.
//! - [`server`], [`client`]: handshakes, bounded in time and number; their places are in [`super::places`].
//! - [`connection`], [`open`]: a connection under TLS, cut when its peer is trusted no longer.
//! - [`web`]: HTTPS, for callers that are no nodes.
//! - [`refusal`]: why a handshake failed, as an error that a person can act on.
//!
//! TLS 1.3 only, and nothing is ever resumed: a ticket would carry an old verdict past a change of the
//! trusted CAs.
//!
//! Tasks: one a set of files (watches, swaps); one for the controller's own certificate; one a handshake,
//! which ends within seconds.

mod changes;
pub mod client;
pub mod connection;
pub mod credentials;
pub mod files;
pub mod kept;
mod open;
pub mod own;
pub mod refusal;
pub(super) mod server;
mod trust;
mod verify;
mod web;

pub use client::HostPort;
pub use connection::TlsConnection;
pub use credentials::{Credentials, Identity, PeerRule};
pub use kept::KeptCertificate;
pub use trust::Trust;
pub use verify::Expect;
pub use web::web_server;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

/// Certificates of a peer's chain, its own included. A real one has two or three.
const CHAIN_MAX: usize = 8;
const ALPN_HTTP2: &[u8] = b"h2";

/// The one crypto backend.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

#[cfg(test)]
mod tests;

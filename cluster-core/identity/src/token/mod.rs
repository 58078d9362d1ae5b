//! Node security tokens: RS256 JWTs that name a node for an hour (RFC 7519, RFC 7515).
//!
//! The only algorithm is RS256, and `kid` is looked up among our own keys: nothing in a token's
//! header chooses how it is checked. [`TokenSigner`] signs, by a key of this controller or by one that
//! OpenBao keeps; [`TokenKeys`] checks. Both kinds of key change over time: the newest signs, the older
//! ones are kept for as long as a token that they signed can live.

mod keys;
mod local;
mod signer;
mod transit;

use aegis_types::{
    ids::{ClusterId, NodeId},
    node::Role,
};
use serde::{Deserialize, Serialize};

pub use keys::TokenKeys;
pub use local::LocalKeys;
pub use signer::{TokenKeysView, TokenSigner};
pub use transit::{TransitAuth, TransitSettings};

/// One hour, as published.
pub const TOKEN_LIFETIME_SECS: i64 = 3600;
/// Between two clocks of one machine and the second that `iat` is rounded to.
const LEEWAY_SECS: i64 = 5;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The controller that issued it.
    pub iss: NodeId,
    /// The cluster.
    pub aud: ClusterId,
    /// The node that it names.
    pub sub: NodeId,
    pub role: Role,
    /// SHA-256 of the capabilities at attestation, hexadecimal.
    pub capabilities_hash: String,
    /// Thumbprint of the node's key (RFC 7800, as a plain string).
    pub cnf: String,
    pub jti: String,
    /// Unix seconds.
    pub iat: i64,
    pub nbf: i64,
    pub exp: i64,
}

#[cfg(test)]
mod tests;

//! Node security tokens: RS256 JWTs that name a node for an hour (RFC 7519, RFC 7515).
//!
//! The only algorithm is RS256, and `kid` is looked up among the known keys: a token's header cannot choose its
//! verification. [`TokenSigner`] signs with a key of this controller or of OpenBao; [`TokenKeys`] verifies. Both kinds
//! of key rotate: the newest key signs, and older keys are kept as long as their tokens can live.

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
/// Tolerance for two clocks of one machine, and for the rounding of `iat` to a second.
const LEEWAY_SECS: i64 = 5;

/// Claims of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Controller that issued the token.
    pub iss: NodeId,
    /// The cluster.
    pub aud: ClusterId,
    /// Node that the token names.
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

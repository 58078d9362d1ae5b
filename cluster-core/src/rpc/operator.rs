//! The bearer token of operators: the one of the HTTP door, for the calls that are theirs and no node's.

use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;

use super::listener::Via;
use crate::{
    error::{Error, ErrorCode, Result},
    identity::sha256,
};

/// SHA-256 of the token; without one nobody is an operator here.
#[derive(Debug, Clone, Copy)]
pub struct OperatorToken(pub Option<[u8; 32]>);

impl OperatorToken {
    /// Whether the caller bears it. Who speaks inside a node's SSH connection is that node.
    pub(super) fn check(self, via: &Via, metadata: &MetadataMap) -> Result<()> {
        let refused = || {
            Error::new(ErrorCode::Unauthenticated, "this call needs the operator's bearer token")
                .remedy("send Authorization: Bearer with the token in http.token of the data directory")
        };
        if let Via::Link(_) = via {
            return Err(Error::new(ErrorCode::NotYours, "this is an operator's call, and no node's"));
        }
        let expected = self.0.ok_or_else(refused)?;
        let given = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(refused)?;
        match bool::from(sha256(given.as_bytes()).ct_eq(&expected)) {
            true => Ok(()),
            false => Err(refused()),
        }
    }
}

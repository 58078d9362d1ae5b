//! Public keys that verify tokens, and the verification.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{ClusterId, NodeId},
};
use aws_lc_rs::rsa::PublicKey as RsaPublicKey;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};

use super::{Claims, LEEWAY_SECS, TOKEN_LIFETIME_SECS};
use crate::sha256;

/// Size limit of a token; tokens have about 900 bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Maximum number of remembered checks. A node has one token at a time, and a new token each hour.
const VERIFIED_MAX: usize = 16_384;
/// Minimum key length for RS256 (RFC 7518, section 3.3).
const MODULUS_BYTES_MIN: usize = 256;

/// Published RSA public key (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Jwk {
    kty: String,
    alg: String,
    pub kid: String,
    n: String,
    e: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct JwkSet {
    pub keys: Vec<Jwk>,
}

impl Jwk {
    /// Derives `kid` from the key, so that two signers never give two keys the same name.
    pub fn of(key: &RsaPublicKey) -> Result<Self> {
        if key.modulus_len() < MODULUS_BYTES_MIN {
            return Err(Error::new(ErrorCode::ConfigInvalid, "the token key has less than 2048 bits"));
        }
        let n = URL_SAFE_NO_PAD.encode(key.modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(key.exponent().big_endian_without_leading_zero());
        let kid = hex::encode(&sha256(format!("{e}.{n}").as_bytes())[..8]);
        Ok(Self { kty: "RSA".into(), alg: "RS256".into(), kid, n, e })
    }
}

impl JwkSet {
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::internal("the token keys cannot be written").source(e))
    }
}

/// Keys that verify the tokens of one cluster. A change of the keys makes a new value, with an empty cache of checks.
pub struct TokenKeys {
    cluster_id: ClusterId,
    issuer: NodeId,
    keys: Vec<(String, DecodingKey)>,
    /// Verified claims by the token's hash, until the token expires. A token is checked with every call of its node.
    verified: Mutex<HashMap<[u8; 32], Claims>>,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(kid, _)| kid)).finish()
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorCode::Unauthenticated, format!("the node security token is refused: {why}"))
        .remedy("attest again")
}

impl TokenKeys {
    /// Parses a JSON Web Key Set.
    pub fn parse(key_set: &str, cluster_id: ClusterId, issuer: NodeId) -> Result<Self> {
        let set = serde_json::from_str(key_set).map_err(|e| unusable().source(e))?;
        Self::of(&set, cluster_id, issuer)
    }

    pub(super) fn of(set: &JwkSet, cluster_id: ClusterId, issuer: NodeId) -> Result<Self> {
        let keys = set
            .keys
            .iter()
            .filter(|jwk| jwk.kty == "RSA" && jwk.alg == "RS256")
            .map(|jwk| {
                let key = DecodingKey::from_rsa_components(&jwk.n, &jwk.e).map_err(|_| unusable())?;
                Ok((jwk.kid.clone(), key))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { cluster_id, issuer, keys, verified: Mutex::default() })
    }

    /// Verifies a token completely, except for the record of the node that it names.
    pub fn verify(&self, token: &str, now_secs: i64) -> Result<Claims> {
        if token.len() > TOKEN_BYTES_MAX || token.bytes().filter(|b| *b == b'.').count() != 2 {
            return Err(refused("it is not a JWT of ours"));
        }
        let hash = sha256(token.as_bytes());
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => self.check_signature(token)?,
        };
        check_times(&claims, now_secs)?;
        self.remember(hash, &claims, now_secs);
        Ok(claims)
    }

    fn remember(&self, hash: [u8; 32], claims: &Claims, now_secs: i64) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= VERIFIED_MAX && !verified.contains_key(&hash) {
            verified.retain(|_, claims| claims.exp > now_secs);
            // With this many nodes, clearing the cache costs each node one signature check.
            if verified.len() >= VERIFIED_MAX {
                verified.clear();
            }
        }
        verified.entry(hash).or_insert_with(|| claims.clone());
    }

    fn check_signature(&self, token: &str) -> Result<Claims> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("its header cannot be read"))?;
        if header.alg != Algorithm::RS256 {
            return Err(refused("its algorithm is not RS256"));
        }
        // `crit` names extensions that must be understood (RFC 7515, section 4.1.11). No extension is supported.
        if header.crit.is_some() {
            return Err(refused("it has critical extensions"));
        }
        let kid = header.kid.ok_or_else(|| refused("it names no key"))?;
        let (_, key) = self
            .keys
            .iter()
            .find(|(known, _)| *known == kid)
            .ok_or_else(|| refused("it names a key that is not ours"))?;
        // Times are checked separately, by the caller's clock and with explicit bounds.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.set_audience(&[&self.cluster_id]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation)
            .map_err(|e| refused("its signature, issuer, audience or claims are wrong").source(e))?
            .claims;
        Ok(claims)
    }

    #[cfg(test)]
    pub(super) fn fill_memory(&self, claims: &Claims) {
        let mut verified = self.verified.lock().unwrap();
        for number in 0..VERIFIED_MAX {
            verified.insert(sha256(&number.to_be_bytes()), claims.clone());
        }
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.verified.lock().unwrap().len()
    }
}

fn unusable() -> Error {
    Error::new(ErrorCode::InvalidArgument, "the controller's token keys cannot be read")
}

fn check_times(claims: &Claims, now_secs: i64) -> Result<()> {
    if claims.exp <= now_secs {
        return Err(Error::new(ErrorCode::TokenExpired, "the node security token has expired")
            .remedy("attest again; if it happens at once, compare the clocks"));
    }
    if claims.nbf > now_secs + LEEWAY_SECS || claims.iat > now_secs + LEEWAY_SECS {
        return Err(refused("it is from the future"));
    }
    if claims.exp.saturating_sub(claims.iat) > TOKEN_LIFETIME_SECS || claims.exp <= claims.iat {
        return Err(refused("its lifetime is not ours"));
    }
    Ok(())
}

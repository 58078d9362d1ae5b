//! Node security tokens: RS256 JWTs that name a node for an hour (RFC 7519, RFC 7515).
//!
//! The only algorithm is RS256, and `kid` is looked up among our own keys: nothing in a token's
//! header chooses how it is checked.

use std::{fmt, fs, path::Path};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{key::write_new, sha256};
use crate::{
    cluster::peer::Role,
    error::{Error, ErrorCode, Result},
    ids::{ClusterId, NodeId},
};

/// One hour, as published.
pub const TOKEN_LIFETIME_SECS: i64 = 3600;
/// Between two clocks of one machine and the second that `iat` is rounded to.
const LEEWAY_SECS: i64 = 5;
/// A token of ours has about 900 bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

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

/// Signs tokens with an RSA-2048 key of this controller.
pub struct LocalSigner {
    kid: String,
    key: EncodingKey,
    jwk: Jwk,
}

impl fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalSigner({})", self.kid)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Jwk {
    kty: String,
    alg: String,
    kid: String,
    n: String,
    e: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

impl LocalSigner {
    /// Reads the key, or makes one where there is no file.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        let unusable = |why: &str| {
            Error::new(ErrorCode::ConfigInvalid, format!("the token key {} {why}", path.display()))
        };
        let pair = match fs::read_to_string(path) {
            Ok(pem) => {
                let der = from_pem(&pem).ok_or_else(|| unusable("is not PKCS#8 PEM"))?;
                KeyPair::from_pkcs8(&der).map_err(|_| unusable("is not an RSA key"))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pair = KeyPair::generate(KeySize::Rsa2048)
                    .map_err(|_| Error::internal("an RSA key cannot be made"))?;
                write_new(path, pkcs8_pem(&pair)?.as_bytes())
                    .map_err(|e| unusable("cannot be written").source(e))?;
                pair
            }
            Err(error) => return Err(unusable("cannot be read").source(error)),
        };
        Self::of(&pair)
    }

    fn of(pair: &KeyPair) -> Result<Self> {
        let public = pair.public_key();
        let n = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        let kid = hex::encode(&sha256(format!("{e}.{n}").as_bytes())[..8]);
        let key = EncodingKey::from_rsa_pem(pkcs8_pem(pair)?.as_bytes())
            .map_err(|e| Error::internal("the token key cannot be used").source(e))?;
        let jwk = Jwk { kty: "RSA".into(), alg: "RS256".into(), kid: kid.clone(), n, e };
        Ok(Self { kid, key, jwk })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, claims, &self.key)
            .map_err(|e| Error::internal("a node security token cannot be signed").source(e))
    }

    /// The public keys, for who must check our tokens: a JSON Web Key Set (RFC 7517).
    pub fn key_set(&self) -> Result<String> {
        serde_json::to_string(&JwkSet { keys: vec![self.jwk.clone()] })
            .map_err(|e| Error::internal("the token keys cannot be written").source(e))
    }
}

/// The keys that tokens of one cluster are checked with.
pub struct TokenKeys {
    cluster_id: ClusterId,
    issuer: NodeId,
    keys: Vec<(String, DecodingKey)>,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(kid, _)| kid)).finish()
    }
}

impl TokenKeys {
    pub fn parse(key_set: &str, cluster_id: ClusterId, issuer: NodeId) -> Result<Self> {
        let unusable =
            || Error::new(ErrorCode::InvalidArgument, "the controller's token keys cannot be read");
        let set: JwkSet = serde_json::from_str(key_set).map_err(|e| unusable().source(e))?;
        let keys = set
            .keys
            .into_iter()
            .filter(|jwk| jwk.kty == "RSA" && jwk.alg == "RS256")
            .map(|jwk| {
                Ok((jwk.kid, DecodingKey::from_rsa_components(&jwk.n, &jwk.e).map_err(|_| unusable())?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { cluster_id, issuer, keys })
    }

    /// Checks everything there is to a token but the record of the node that it names.
    pub fn verify(&self, token: &str, now_secs: i64) -> Result<Claims> {
        let refused = |why: &str| {
            Error::new(ErrorCode::Unauthenticated, format!("the node security token is refused: {why}"))
                .remedy("attest again")
        };
        if token.len() > TOKEN_BYTES_MAX || token.bytes().filter(|b| *b == b'.').count() != 2 {
            return Err(refused("it is not a JWT of ours"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("its header cannot be read"))?;
        if header.alg != Algorithm::RS256 {
            return Err(refused("its algorithm is not RS256"));
        }
        // `crit` names extensions that must be understood (RFC 7515, section 4.1.11): we know none.
        if header.crit.is_some() {
            return Err(refused("it has critical extensions"));
        }
        let kid = header.kid.ok_or_else(|| refused("it names no key"))?;
        let (_, key) = self
            .keys
            .iter()
            .find(|(known, _)| *known == kid)
            .ok_or_else(|| refused("it names a key that is not ours"))?;
        // Times are checked below, by the clock that the caller gives and with bounds of our own.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.set_audience(&[&self.cluster_id]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation)
            .map_err(|e| refused("its signature, issuer, audience or claims are wrong").source(e))?
            .claims;
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
        Ok(claims)
    }
}

fn pkcs8_pem(pair: &KeyPair) -> Result<Zeroizing<String>> {
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| Error::internal("an RSA key cannot be encoded"))?;
    let base64 = Zeroizing::new(STANDARD.encode(der.as_ref()));
    let mut pem = Zeroizing::new(String::from("-----BEGIN PRIVATE KEY-----\n"));
    for line in base64.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(pem)
}

fn from_pem(pem: &str) -> Option<Zeroizing<Vec<u8>>> {
    let body = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----")?;
    let body = body.strip_suffix("-----END PRIVATE KEY-----")?;
    let base64 = Zeroizing::new(body.split_whitespace().collect::<String>());
    STANDARD.decode(base64.as_bytes()).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn setting() -> (LocalSigner, TokenKeys, Claims) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token-key.pem");
        let made = LocalSigner::load_or_create(&path).unwrap();
        let signer = LocalSigner::load_or_create(&path).unwrap();
        assert_eq!(made.kid, signer.kid, "the file reads back");
        let (cluster, issuer) = (ClusterId::parse("c1").unwrap(), NodeId::parse("ctrl").unwrap());
        let keys = TokenKeys::parse(&signer.key_set().unwrap(), cluster.clone(), issuer.clone()).unwrap();
        let claims = Claims {
            iss: issuer,
            aud: cluster,
            sub: NodeId::parse("edge-1").unwrap(),
            role: Role::Worker,
            capabilities_hash: "h".into(),
            cnf: "t".into(),
            jti: "j".into(),
            iat: 1_000,
            nbf: 1_000,
            exp: 1_000 + TOKEN_LIFETIME_SECS,
        };
        (signer, keys, claims)
    }

    #[test]
    fn a_token_of_ours_verifies_until_it_expires() {
        let (signer, keys, claims) = setting();
        let token = signer.sign(&claims).unwrap();
        assert_eq!(keys.verify(&token, 1_000).unwrap(), claims);
        assert_eq!(keys.verify(&token, 4_600).unwrap_err().code(), ErrorCode::TokenExpired);
    }

    #[test]
    fn tokens_with_claims_missing_wrong_or_out_of_bounds_are_refused() {
        let (signer, keys, claims) = setting();
        let base = serde_json::to_value(&claims).unwrap();
        let changed = |name: &str, value: serde_json::Value| {
            let mut claims = base.clone();
            claims[name] = value;
            claims
        };
        let without = |name: &str| {
            let mut claims = base.clone();
            claims.as_object_mut().unwrap().remove(name);
            claims
        };
        let bad = [
            without("aud"),
            without("iss"),
            without("sub"),
            without("exp"),
            without("nbf"),
            changed("aud", json!("c2")),
            changed("aud", json!(["c1", "c2"])),
            changed("iss", json!("other")),
            changed("exp", json!("4600")),
            changed("exp", json!(1_000 + 10 * 365 * 86_400_i64)),
            changed("nbf", json!(2_000)),
            changed("iat", json!(2_000)),
        ];
        for claims in bad {
            let header = Header { kid: Some(signer.kid.clone()), ..Header::new(Algorithm::RS256) };
            let token = jsonwebtoken::encode(&header, &claims, &signer.key).unwrap();
            assert_eq!(
                keys.verify(&token, 1_000).unwrap_err().code(),
                ErrorCode::Unauthenticated,
                "{claims}"
            );
        }
    }

    #[test]
    fn headers_that_choose_the_check_are_refused() {
        let (signer, keys, claims) = setting();
        let sign = |header: &Header| jsonwebtoken::encode(header, &claims, &signer.key).unwrap();
        let good = Header { kid: Some(signer.kid.clone()), ..Header::new(Algorithm::RS256) };
        let body = sign(&good);
        let body = body.split_once('.').unwrap().1;
        let none = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","kid":"{}"}}"#, signer.kid));
        let public = signer.key_set().unwrap();
        let hs = Header { kid: Some(signer.kid.clone()), ..Header::new(Algorithm::HS256) };
        let bad = [
            format!("{none}.{body}"),
            jsonwebtoken::encode(&hs, &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap(),
            sign(&Header { alg: Algorithm::PS256, ..good.clone() }),
            sign(&Header { kid: None, ..good.clone() }),
            sign(&Header { kid: Some("../../etc/passwd".into()), ..good.clone() }),
            sign(&Header { crit: Some(vec!["x".into()]), ..good.clone() }),
            format!("{}.", sign(&good)),
            "x".repeat(1_000_000),
        ];
        for token in bad {
            assert!(keys.verify(&token, 1_000).is_err(), "{}", crate::ids::shown(&token));
        }
    }
}

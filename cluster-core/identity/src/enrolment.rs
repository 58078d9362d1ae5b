//! Enrolment tokens, for workers that join without the controller's SSH: `<id>.<secret>.<ca fingerprint>`, or
//! `<id>.<secret>.none.<controller key thumbprint>`.
//!
//! The secret is shown once and stored as a hash. The fingerprint is that of the built-in CA, by which a joining node
//! verifies its controller. If the built-in CA does not serve the cluster port, the node uses the thumbprint of the
//! controller's key.

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::EnrolmentTokenId,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Fingerprint, PublicKey, random, sha256};

const SECRET_BYTES: usize = 32;
const NO_CA: &str = "none";

/// A token as a joining node presents it.
pub struct EnrolmentToken {
    pub id: EnrolmentTokenId,
    /// The CA that the bearer may trust.
    pub ca: Option<Fingerprint>,
    /// Thumbprint of the controller's key, where the token names it.
    pub controller: Option<String>,
    secret: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolmentToken({})", self.id)
    }
}

/// A fresh token: the text for its bearer, the hash for the store.
pub struct IssuedToken {
    pub id: EnrolmentTokenId,
    pub text: Zeroizing<String>,
    pub secret_hash: [u8; 32],
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IssuedToken({})", self.id)
    }
}

impl EnrolmentToken {
    pub fn issue(ca: Option<Fingerprint>, controller: &PublicKey) -> Result<IssuedToken> {
        let id = EnrolmentTokenId::parse(hex::encode(random::<8>()?))?;
        let secret = Zeroizing::new(random::<SECRET_BYTES>()?);
        let ca = ca.map_or_else(|| format!("{NO_CA}.{}", controller.thumbprint()), |ca| ca.to_string());
        let text = format!("{id}.{}.{ca}", URL_SAFE_NO_PAD.encode(secret.as_slice()));
        Ok(IssuedToken { id, text: Zeroizing::new(text), secret_hash: sha256(secret.as_slice()) })
    }

    /// The error never repeats what was given.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(ErrorCode::EnrolmentInvalid, "the enrolment token is not one").remedy(
                "create one with `aegis node token create`; it looks like <id>.<secret>.<fingerprint>",
            )
        };
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(ca), controller, None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        if controller.is_some_and(|text| !is_thumbprint(text)) {
            return Err(invalid());
        }
        let secret = URL_SAFE_NO_PAD.decode(secret).map_err(|_| invalid())?;
        if secret.len() != SECRET_BYTES {
            return Err(invalid());
        }
        let ca = match ca {
            NO_CA => None,
            text => Some(Fingerprint::parse(text).ok_or_else(invalid)?),
        };
        let id = EnrolmentTokenId::parse(id).map_err(|_| invalid())?;
        Ok(Self { id, ca, controller: controller.map(str::to_owned), secret: Zeroizing::new(secret) })
    }

    /// In constant time.
    pub fn matches(&self, secret_hash: &[u8; 32]) -> bool {
        sha256(&self.secret).ct_eq(secret_hash).into()
    }
}

fn is_thumbprint(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeKey;

    #[test]
    fn an_issued_token_reads_back_and_matches_only_its_own_hash() {
        let ca = Fingerprint::of(&vec![1].into());
        let key = NodeKey::generate().unwrap().public();
        let issue = |ca| EnrolmentToken::issue(ca, &key).unwrap();
        let (issued, other) = (issue(Some(ca)), issue(None));
        let token = EnrolmentToken::parse(&issued.text).unwrap();
        assert_eq!(token.id, issued.id);
        assert!(token.matches(&issued.secret_hash));
        assert!(!token.matches(&other.secret_hash));
        assert_eq!((token.ca, token.controller), (Some(ca), None));
        let other = EnrolmentToken::parse(&other.text).unwrap();
        assert_eq!((other.ca, other.controller), (None, Some(key.thumbprint())));
        let older = issued.text.rsplit_once('.').unwrap().0;
        assert!(EnrolmentToken::parse(&format!("{older}.none")).is_ok(), "without a thumbprint");
    }

    #[test]
    fn a_bad_token_is_refused_without_being_repeated() {
        for bad in ["", "a", "a.b.c", "a.b.c.d", "A.QUJD.none", "a.b.none.c", &"x".repeat(10_000)] {
            let error = EnrolmentToken::parse(bad).unwrap_err();
            assert_eq!(error.code(), ErrorCode::EnrolmentInvalid);
            assert!(bad.len() < 4 || !error.to_string().contains(bad));
        }
    }
}

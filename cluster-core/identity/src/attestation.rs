//! Stateless challenges of attestations. The challenge id carries what the controller must know when the answer
//! arrives, protected by a MAC. A flood of requests therefore costs no memory. Only answered challenges are remembered,
//! until they expire.

use std::{collections::HashMap, sync::Mutex};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{ClusterId, EnrolmentTokenId, NodeId, Tag},
    node::Role,
};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{PublicKey, random, sha256};

/// Length of a challenge and of a node's nonce; input of any other length is not signed.
pub const CHALLENGE_BYTES: usize = 32;
pub const CHALLENGE_LIFETIME_MS: i64 = 60_000;
/// "one already seen within 5 minutes is refused".
const NONCE_MEMORY_MS: i64 = 300_000;
/// Bound of both memories. Above it the oldest entries are evicted. 65,536 in 5 minutes is more than 200 attestations a
/// second.
const REMEMBERED_MAX: usize = 65_536;

/// Enrolment token of this cluster, as presented by a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentedToken {
    pub id: EnrolmentTokenId,
    /// Bound to the node that presents the token, rather than valid for any node.
    pub bound: bool,
    /// Tags that the token admits; `None` admits any tags.
    #[serde(default)]
    pub tags: Option<Vec<Tag>>,
}

/// Statements of an attesting node about itself.
#[derive(Debug, Clone)]
pub struct Attestation {
    pub node_id: NodeId,
    pub role: Role,
    pub public_key: PublicKey,
    pub nonce: Option<uuid::Uuid>,
    /// Checked against the store, not yet spent.
    pub token: Option<PresentedToken>,
    pub capabilities_hash: String,
    pub software_version: String,
}

/// Challenge that the node must sign.
#[derive(Debug, Clone)]
pub struct Challenge {
    pub id: String,
    pub bytes: [u8; CHALLENGE_BYTES],
}

/// Data that the controller recovers when the answer arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeTicket {
    pub node_id: NodeId,
    pub role: Role,
    #[serde(with = "key_text")]
    pub public_key: PublicKey,
    pub token: Option<PresentedToken>,
    pub capabilities_hash: String,
    pub software_version: String,
    pub issued_at_ms: i64,
    salt: [u8; 16],
}

mod key_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::PublicKey;

    pub fn serialize<S: Serializer>(key: &PublicKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&key.to_base64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PublicKey, D::Error> {
        PublicKey::from_base64(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Issues challenges and accepts each answer once.
pub struct Challenger {
    mac: hmac::Key,
    nonces: Mutex<Remembered>,
    answered: Mutex<Remembered>,
}

impl std::fmt::Debug for Challenger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenger")
    }
}

impl Challenger {
    /// Makes a challenger with a fresh MAC key: challenges do not outlive the process.
    pub fn new() -> Result<Self> {
        Ok(Self {
            mac: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()?),
            nonces: Mutex::default(),
            answered: Mutex::default(),
        })
    }

    pub fn issue(&self, attestation: Attestation, now_ms: i64) -> Result<Challenge> {
        if let Some(nonce) = attestation.nonce {
            remember(&self.nonces, nonce.into_bytes().to_vec(), now_ms, NONCE_MEMORY_MS).map_err(|()| {
                Error::new(ErrorCode::NonceReplay, "this attestation nonce was used in the last 5 minutes")
                    .remedy("send a fresh UUID with every attempt")
            })?;
        }
        let ticket = ChallengeTicket {
            node_id: attestation.node_id,
            role: attestation.role,
            public_key: attestation.public_key,
            token: attestation.token,
            capabilities_hash: attestation.capabilities_hash,
            software_version: attestation.software_version,
            issued_at_ms: now_ms,
            salt: random()?,
        };
        let body = serde_json::to_vec(&ticket)
            .map_err(|e| Error::internal("a challenge cannot be written").source(e))?;
        let tag = hmac::sign(&self.mac, &body);
        let id = format!("{}.{}", URL_SAFE_NO_PAD.encode(&body), URL_SAFE_NO_PAD.encode(tag.as_ref()));
        Ok(Challenge { bytes: challenge_bytes(&id), id })
    }

    /// Opens a challenge id of this controller, once.
    pub fn redeem(&self, challenge_id: &str, now_ms: i64) -> Result<(ChallengeTicket, [u8; 32])> {
        let unknown = || {
            Error::new(ErrorCode::ChallengeExpired, "this challenge is not one of ours, or is used up")
                .remedy("attest again")
        };
        let (body, tag) = challenge_id.split_once('.').ok_or_else(unknown)?;
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| unknown())?;
        let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| unknown())?;
        hmac::verify(&self.mac, &body, &tag).map_err(|_| unknown())?;
        let ticket: ChallengeTicket = serde_json::from_slice(&body).map_err(|_| unknown())?;
        if now_ms.saturating_sub(ticket.issued_at_ms) > CHALLENGE_LIFETIME_MS {
            return Err(Error::new(ErrorCode::ChallengeExpired, "the challenge was answered after 60 s")
                .remedy("attest again"));
        }
        remember(&self.answered, tag, now_ms, CHALLENGE_LIFETIME_MS).map_err(|()| unknown())?;
        Ok((ticket, challenge_bytes(challenge_id)))
    }
}

fn challenge_bytes(challenge_id: &str) -> [u8; 32] {
    sha256(challenge_id.as_bytes())
}

/// Remembered values, with the time at which each may be forgotten.
#[derive(Debug, Default)]
struct Remembered {
    until_ms: HashMap<Vec<u8>, i64>,
    order: std::collections::VecDeque<(i64, Vec<u8>)>,
}

/// Remembers a value. Fails if the value is remembered already.
fn remember(memory: &Mutex<Remembered>, what: Vec<u8>, now_ms: i64, for_ms: i64) -> Result<(), ()> {
    let mut memory = memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    while let Some((until_ms, _)) = memory.order.front() {
        if *until_ms > now_ms && memory.order.len() < REMEMBERED_MAX {
            break;
        }
        if let Some((_, oldest)) = memory.order.pop_front() {
            memory.until_ms.remove(&oldest);
        }
    }
    if memory.until_ms.contains_key(&what) {
        return Err(());
    }
    memory.until_ms.insert(what.clone(), now_ms + for_ms);
    memory.order.push_back((now_ms + for_ms, what));
    Ok(())
}

/// Returns the statement that a node signs. Every part is preceded by its length, so that different statements have
/// different bytes.
pub fn statement(
    cluster_id: &ClusterId,
    controller_id: &NodeId,
    node_id: &NodeId,
    public_key: &PublicKey,
    challenge: &[u8],
    certificate_request: &[u8],
) -> Vec<u8> {
    let request_hash = sha256(certificate_request);
    length_delimited(&[
        b"aegis-attest-v1",
        cluster_id.as_str().as_bytes(),
        controller_id.as_str().as_bytes(),
        node_id.as_str().as_bytes(),
        public_key.as_bytes(),
        challenge,
        &request_hash,
    ])
}

/// A controller's answer to a node that it admits. [`Admitted::statement`] is what the controller signs.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    pub cluster_id: &'a ClusterId,
    pub controller_id: &'a NodeId,
    pub controller_key: &'a PublicKey,
    pub node_id: &'a NodeId,
    /// Nonce of the node, fresh, so that an answer to an earlier attestation proves nothing.
    pub nonce: &'a [u8],
    pub session_id: &'a str,
    pub token: &'a str,
    pub token_keys: &'a str,
    pub epoch: u64,
    pub certificate_chain: &'a [u8],
    pub ca_bundle: &'a [u8],
}

impl Admitted<'_> {
    /// Returns the bytes that the controller signs. The signature proves that the controller holds its key, and that
    /// the answer was not changed.
    pub fn statement(&self) -> Vec<u8> {
        length_delimited(&[
            b"aegis-admit-v1",
            self.cluster_id.as_str().as_bytes(),
            self.controller_id.as_str().as_bytes(),
            self.controller_key.as_bytes(),
            self.node_id.as_str().as_bytes(),
            self.nonce,
            self.session_id.as_bytes(),
            &sha256(self.token.as_bytes()),
            &sha256(self.token_keys.as_bytes()),
            &self.epoch.to_be_bytes(),
            &sha256(self.certificate_chain),
            &sha256(self.ca_bundle),
        ])
    }
}

fn length_delimited(parts: &[&[u8]]) -> Vec<u8> {
    let mut statement = Vec::with_capacity(512);
    for part in parts {
        // No part comes near 4 GiB.
        statement.extend_from_slice(&(part.len() as u32).to_be_bytes());
        statement.extend_from_slice(part);
    }
    statement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeKey;

    fn attestation(nonce: Option<uuid::Uuid>) -> Attestation {
        Attestation {
            node_id: NodeId::parse("edge-1").unwrap(),
            role: Role::Worker,
            public_key: NodeKey::generate().unwrap().public(),
            nonce,
            token: None,
            capabilities_hash: String::new(),
            software_version: "1".into(),
        }
    }

    #[test]
    fn a_challenge_is_redeemed_once_and_in_time() {
        let challenger = Challenger::new().unwrap();
        let first = challenger.issue(attestation(None), 1_000).unwrap();
        let (ticket, bytes) = challenger.redeem(&first.id, 61_000).unwrap();
        assert_eq!((ticket.node_id.as_str(), bytes), ("edge-1", first.bytes));
        let late = challenger.issue(attestation(None), 1_000).unwrap();
        let forged = format!("{}x", late.id);
        for (id, now_ms) in [(&first.id, 1_000), (&late.id, 61_001), (&forged, 1_000), (&"a.b".into(), 0)] {
            let error = challenger.redeem(id, now_ms).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ChallengeExpired);
        }
        let other = Challenger::new().unwrap();
        assert!(other.redeem(&late.id, 1_000).is_err(), "another controller's MAC key");
    }

    #[test]
    fn a_nonce_is_taken_once_in_five_minutes() {
        let challenger = Challenger::new().unwrap();
        let nonce = Some(uuid::Uuid::new_v4());
        challenger.issue(attestation(nonce), 0).unwrap();
        let error = challenger.issue(attestation(nonce), 299_999).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NonceReplay);
        challenger.issue(attestation(nonce), 300_001).unwrap();
    }

    #[test]
    fn statements_of_different_parts_differ() {
        let key = NodeKey::generate().unwrap().public();
        let say = |cluster: &str, controller: &str| {
            statement(
                &ClusterId::parse(cluster).unwrap(),
                &NodeId::parse(controller).unwrap(),
                &NodeId::parse("n").unwrap(),
                &key,
                &[0; 32],
                b"",
            )
        };
        assert_ne!(say("ab", "c"), say("a", "bc"));
    }
}

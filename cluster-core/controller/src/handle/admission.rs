//! Admission of nodes: both steps of an attestation, enrolment tokens, and the session of an admitted node.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use aegis_identity::{
    Attestation, Challenge, Claims, EnrolmentToken, Fingerprint, IssuedToken, PresentedToken, PublicKey,
    TOKEN_LIFETIME_SECS, statement,
};
use aegis_rpc::{ClusterClock, Sealer};
use aegis_store::{TokenRecord, Write};
use aegis_types::{
    clock::rfc3339,
    error::{Error, ErrorCode, Result},
    ids::{EnrolmentTokenId, NodeId, SessionId, Tag},
    node::Role,
    node_event::NodeEventKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::membership::{Change, Enrolment, Membership},
    Controller,
};
use crate::sessions::OVERLAP_MS;

/// Between events about machines that come in one node's name.
const REFUSED_EVENT_PAUSE_MS: i64 = 600_000;
/// An expired token is shown for so long; then it goes as another is made.
const TOKENS_KEPT_MS: i64 = 30 * 86_400_000;
/// A list shows the newest.
const TOKENS_SHOWN_MAX: u32 = 500;

/// Answer to a node that has changed its key.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub token: String,
    pub expires_at_secs: i64,
    pub overlap_until_ms: i64,
}

/// Session and token of an admitted node.
#[derive(Debug, Clone)]
pub struct Admission {
    pub token: String,
    pub expires_at_secs: i64,
    pub session_id: SessionId,
    pub token_keys: String,
}

/// A node's answer to its challenge.
#[derive(Debug, Clone)]
pub struct ChallengeAnswer {
    pub challenge_id: String,
    pub node_id: NodeId,
    pub signature: ChallengeSignature,
    pub certificate_request: Vec<u8>,
}

/// Statement that the answer to a challenge signs.
#[derive(Debug, Clone)]
pub enum ChallengeSignature {
    /// The statement with everything it stands for.
    Statement(Vec<u8>),
    /// The challenge alone, as the published protocol has it: a node that seals nothing.
    Bare(Vec<u8>),
}

impl ChallengeSignature {
    const fn seals(&self) -> bool {
        matches!(self, Self::Statement(_))
    }
}

/// An enrolment token as its operator sees it: never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    pub token_id: EnrolmentTokenId,
    pub state: TokenState,
    /// The only node that can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The role that it admits.
    pub role: Role,
    /// The only tags that the node can claim; absent where it can claim any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<Tag>>,
    /// RFC 3339.
    pub created_at: String,
    pub expires_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    Open,
    Used,
    Revoked,
    Expired,
}

impl TokenView {
    fn of(record: TokenRecord, now_ms: i64) -> Self {
        let state = match (&record.spent, record.revoked) {
            (Some(_), _) => TokenState::Used,
            (None, true) => TokenState::Revoked,
            (None, false) if record.expires_at_ms <= now_ms => TokenState::Expired,
            (None, false) => TokenState::Open,
        };
        let (used_by, used_at) = record.spent.map(|spent| (spent.by, rfc3339(spent.at_ms))).unzip();
        Self {
            token_id: record.token_id,
            state,
            node_id: record.node_id,
            role: record.role,
            tags: record.tags,
            created_at: rfc3339(record.created_at_ms),
            expires_at: rfc3339(record.expires_at_ms),
            used_by,
            used_at,
        }
    }
}

/// Nodes that an enrolment token admits.
#[derive(Debug, Clone)]
pub struct TokenOrder {
    /// Id of the node. `None` admits any name that is free.
    pub node_id: Option<NodeId>,
    pub role: Role,
    pub lifetime: Duration,
    /// Tags that the node may claim. `None` allows any.
    pub tags: Option<Vec<Tag>>,
}

/// The error where a token was spent or revoked since it was presented.
pub(super) fn token_is_gone() -> Error {
    Error::new(ErrorCode::EnrolmentInvalid, "the enrolment token was used or revoked meanwhile")
        .remedy("create a new one with `aegis node token create`")
}

/// The tokens of a session: the node's, and our own towards it.
struct SessionTokens {
    node: String,
    own: String,
}

impl Controller {
    /// First step: who it claims to be, checked as far as it can be without its signature.
    pub async fn attest(
        &self,
        mut attestation: Attestation,
        token: Option<EnrolmentToken>,
    ) -> Result<Challenge> {
        let now_ms = self.now_ms();
        if attestation.node_id == self.0.id {
            return Err(Error::new(
                ErrorCode::Conflict,
                format!("{} is the controller's own id", attestation.node_id),
            )
            .remedy("give the node another id in spec.node.id"));
        }
        let mut admitted = None;
        let (node_id, key) = (attestation.node_id.clone(), attestation.public_key);
        if let Some(token) = &token {
            match self.check_token(token, &node_id, now_ms).await {
                Ok(record) => {
                    admitted = Some(record.role);
                    let bound = record.node_id.is_some();
                    let (id, tags) = (record.token_id, record.tags);
                    attestation.token = Some(PresentedToken { id, bound, tags });
                }
                // A member shows its pinned key and needs no token, whatever became of the one it carries.
                Err(error) if !self.is_pinned(&node_id, &key).await? => return Err(error),
                Err(_) => {}
            }
        }
        let enrolment = Enrolment::of(attestation.token.as_ref());
        let name = node_id.clone();
        let known = self
            .decide(move |membership, _| {
                membership.check_key(&node_id, &key, enrolment)?;
                Ok((Vec::new(), membership.record(&node_id).map(|record| record.role)))
            })
            .await
            .inspect_err(|error| self.note_refused(name, error.code(), now_ms))?;
        // A node's rights follow from its role, so it is not the node that says which.
        if let Some(role) = admitted.or(known)
            && role != attestation.role
        {
            return Err(Error::new(
                ErrorCode::Forbidden,
                format!("node {} is admitted in another role than it asks for", attestation.node_id),
            )
            .remedy("set spec.cluster.role: worker, or create a token with `--role`"));
        }
        self.0.challenger.issue(attestation, now_ms)
    }

    /// Raises an event where a machine comes in the name of a node that has another key, or was removed. Once
    /// in a while for each node: anybody may attest.
    fn note_refused(&self, node_id: NodeId, code: ErrorCode, now_ms: i64) {
        if !matches!(code, ErrorCode::KeyMismatch | ErrorCode::NodeRemoved) {
            return;
        }
        let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        // Only names of nodes that are or were known come here.
        let last = refused.insert(node_id.clone(), now_ms);
        match last {
            Some(last) if now_ms.saturating_sub(last) < REFUSED_EVENT_PAUSE_MS => {
                refused.insert(node_id, last);
            }
            _ => self.0.events.append(NodeEventKind::NodeRefused, node_id, now_ms),
        }
    }

    /// Whether this is a member with this key. Asks the owner, so that an enrolment that is being stored is
    /// waited for.
    async fn is_pinned(&self, node_id: &NodeId, key: &PublicKey) -> Result<bool> {
        let (id, key) = (node_id.clone(), *key);
        let pinned = move |membership: &mut Membership, _| {
            let record = membership.record(&id);
            let is_pinned = record.is_some_and(|record| record.public_key.as_ref() == Some(key.as_bytes()));
            Ok((Vec::new(), is_pinned))
        };
        self.decide(pinned).await
    }

    async fn check_token(
        &self,
        token: &EnrolmentToken,
        node_id: &NodeId,
        now_ms: i64,
    ) -> Result<TokenRecord> {
        let invalid = |why: &str| {
            Error::new(ErrorCode::EnrolmentInvalid, format!("the enrolment token {why}"))
                .remedy("create a new one with `aegis node token create`")
        };
        let record = self.0.store.token(&token.id).await?.filter(|record| token.matches(&record.secret_hash));
        let record = record.ok_or_else(|| invalid("is not one of this cluster"))?;
        if record.spent.is_some() {
            return Err(invalid("was used before"));
        }
        if record.revoked {
            return Err(invalid("was revoked"));
        }
        if record.expires_at_ms <= now_ms {
            return Err(Error::new(ErrorCode::EnrolmentExpired, "the enrolment token has expired")
                .remedy("create a new one with `aegis node token create`"));
        }
        match &record.node_id {
            Some(bound) if bound != node_id => Err(invalid("is bound to another node id")),
            _ => Ok(record),
        }
    }

    /// Second step: the signature. Key and token are stored before anything is issued.
    pub async fn answer(&self, answer: ChallengeAnswer) -> Result<Admission> {
        let now = self.now_ms();
        let (ticket, challenge) = self.0.challenger.redeem(&answer.challenge_id, now)?;
        if ticket.node_id != answer.node_id {
            return Err(Error::new(ErrorCode::NotYours, "the challenge was issued to another node"));
        }
        let (node_id, role, key) = (ticket.node_id.clone(), ticket.role, ticket.public_key);
        let sealed = answer.signature.seals();
        match &answer.signature {
            ChallengeSignature::Statement(signature) => {
                let (cluster, controller) = (&self.0.cluster_id, &self.0.id);
                let request = &answer.certificate_request;
                key.verify(&statement(cluster, controller, &node_id, &key, &challenge, request), signature)?;
            }
            ChallengeSignature::Bare(signature) => key.verify(&challenge, signature)?,
        }
        // Before anything is stored: while nothing can be signed, no enrolment token is spent.
        let tokens = self.session_tokens(&node_id, role, &key, ticket.capabilities_hash, now).await?;
        // The pin may have changed since the first step. Key, token and record change in one step.
        let (known, enrolment) = (node_id.clone(), Enrolment::of(ticket.token.as_ref()));
        let enrols = ticket.token.is_some();
        let (token_id, tags) = ticket.token.map(|token| (token.id, token.tags)).unzip();
        let version = ticket.software_version;
        let attested = version.clone();
        let admitted = self.decide(move |membership, _| {
            membership.check_key(&known, &key, enrolment)?;
            let changes = match token_id {
                Some(token_id) => {
                    let mut record = membership.enrol(&known, role, &key, sealed);
                    record.version = attested;
                    record.bound_tags = tags.flatten();
                    vec![Change::Enrol { token_id, record: Box::new(record) }]
                }
                None => membership.attested(&known, sealed, &attested)?,
            };
            Ok((changes, ()))
        });
        match admitted.await {
            // The token has admitted this very key meanwhile: the answer to an earlier try was lost.
            Err(_) if enrols && self.is_pinned(&node_id, &key).await? => {
                let known = node_id.clone();
                let again = move |membership: &mut Membership, _| {
                    Ok((membership.attested(&known, sealed, &version)?, ()))
                };
                self.decide(again).await?;
            }
            admitted => admitted?,
        }
        if enrols {
            self.0.sessions.rekey(&node_id, &key);
        }
        self.open_session(node_id, key, tokens, now)
    }

    /// The node's token and our own for its session, which lasts as long as the first.
    async fn session_tokens(
        &self,
        node_id: &NodeId,
        role: Role,
        key: &PublicKey,
        capabilities_hash: String,
        now_ms: i64,
    ) -> Result<SessionTokens> {
        let (node, own) = tokio::try_join!(
            self.token(node_id, role, key, capabilities_hash, now_ms),
            self.own_token(now_ms),
        )?;
        Ok(SessionTokens { node, own })
    }

    /// Signed once a second at most: when a thousand nodes come back at once, signatures are what costs.
    async fn own_token(&self, now_ms: i64) -> Result<String> {
        let mut newest = self.0.own_token.lock().await;
        let second = now_ms / 1000;
        if let Some((signed_at, token)) = &*newest
            && *signed_at == second
        {
            return Ok(token.clone());
        }
        let token =
            self.token(&self.0.id, Role::Controller, &self.public_key(), String::new(), now_ms).await?;
        *newest = Some((second, token.clone()));
        Ok(token)
    }

    fn open_session(
        &self,
        node_id: NodeId,
        key: PublicKey,
        tokens: SessionTokens,
        now_ms: i64,
    ) -> Result<Admission> {
        let SessionTokens { node: token, own } = tokens;
        let session_id = SessionId::mint();
        let clock = ClusterClock::new(now_ms, tokio::time::Instant::now());
        let sealer = Sealer::new(
            self.0.key.clone(),
            self.0.id.clone(),
            node_id.to_string(),
            own,
            session_id.clone(),
            self.0.epoch,
            clock,
        );
        self.0.sessions.open(node_id, key, Arc::new(sealer), now_ms);
        let expires_at_secs = now_ms / 1000 + TOKEN_LIFETIME_SECS;
        Ok(Admission { token, expires_at_secs, session_id, token_keys: self.0.signer.key_set()? })
    }

    async fn token(
        &self,
        node_id: &NodeId,
        role: Role,
        key: &PublicKey,
        capabilities_hash: String,
        now_ms: i64,
    ) -> Result<String> {
        let iat = now_ms / 1000;
        let claims = Claims {
            iss: self.0.id.clone(),
            aud: self.0.cluster_id.clone(),
            sub: node_id.clone(),
            role,
            capabilities_hash,
            cnf: key.thumbprint(),
            jti: uuid::Uuid::new_v4().to_string(),
            iat,
            nbf: iat,
            exp: iat + TOKEN_LIFETIME_SECS,
        };
        self.0.signer.sign(&claims).await
    }

    /// `ca` is what the bearer will know the cluster port by, where a CA of ours serves it.
    pub async fn issue_enrolment_token(
        &self,
        order: TokenOrder,
        ca: Option<Fingerprint>,
    ) -> Result<(IssuedToken, i64)> {
        let issued = EnrolmentToken::issue(ca, &self.public_key())?;
        let created_at_ms = self.now_ms();
        let lifetime_ms = i64::try_from(order.lifetime.as_millis()).unwrap_or(i64::MAX / 2);
        let expires_at_ms = created_at_ms + lifetime_ms;
        let record = TokenRecord {
            token_id: issued.id.clone(),
            secret_hash: issued.secret_hash,
            node_id: order.node_id,
            role: order.role,
            tags: order.tags,
            created_at_ms,
            expires_at_ms,
            spent: None,
            revoked: false,
        };
        let prune = Write::PruneTokens { before_ms: created_at_ms.saturating_sub(TOKENS_KEPT_MS) };
        self.0.store.write(Write::Together(vec![prune, Write::CreateToken(record)])).await?;
        Ok((issued, expires_at_ms))
    }

    /// Newest first.
    pub async fn enrolment_tokens(&self) -> Result<Vec<TokenView>> {
        let now_ms = self.now_ms();
        let records = self.0.store.tokens(TOKENS_SHOWN_MAX).await?;
        Ok(records.into_iter().map(|record| TokenView::of(record, now_ms)).collect())
    }

    /// Revokes a token that has not been used.
    pub async fn revoke_enrolment_token(&self, token_id: &EnrolmentTokenId) -> Result<TokenView> {
        let now_ms = self.now_ms();
        let revoked = self.0.store.write(Write::RevokeToken { token_id: token_id.clone(), now_ms }).await?;
        let record = self.0.store.token(token_id).await?;
        let record = record.ok_or_else(|| Error::not_found("enrolment token", token_id.as_str()))?;
        let view = TokenView::of(record, now_ms);
        match (revoked, view.state) {
            (0, TokenState::Used) => Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("the enrolment token {token_id} was used"),
            )
            .remedy("remove the node that it admitted: aegis node remove ID")),
            _ => Ok(view),
        }
    }

    /// The node's own wish, signed with both keys: the old one is good for a short overlap.
    pub async fn rotate_key(
        &self,
        node_id: NodeId,
        role: Role,
        old: PublicKey,
        key: PublicKey,
    ) -> Result<Rotation> {
        let now = self.now_ms();
        // Before the key is pinned: while nothing can be signed, the node keeps its old key and session.
        let token = self.token(&node_id, role, &key, String::new(), now).await?;
        let id = node_id.clone();
        self.decide(move |membership, _| Ok((membership.rotate_key(&id, &old, &key)?, ()))).await?;
        self.0.sessions.retire(&node_id, now);
        tracing::info!(%node_id, "the node has changed its key");
        Ok(Rotation {
            token,
            expires_at_secs: now / 1000 + TOKEN_LIFETIME_SECS,
            overlap_until_ms: now + OVERLAP_MS,
        })
    }
}

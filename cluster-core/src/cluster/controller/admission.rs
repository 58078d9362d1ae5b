//! Who is let in: both steps of an attestation, enrolment tokens, and what an admitted node is given.

use std::{sync::Arc, time::Duration};

use super::{super::membership::Change, Controller};
use crate::{
    clock::now_ms,
    cluster::peer::Role,
    error::{Error, ErrorCode, Result},
    identity::{
        Attestation, Challenge, Claims, EnrolmentToken, IssuedToken, PublicKey, TOKEN_LIFETIME_SECS,
        statement,
    },
    ids::{NodeId, SessionId},
    rpc::{ClusterClock, Sealer},
    store::{TokenRecord, Write},
};

/// What an admitted node is given.
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
    /// Over the statement with everything it stands for.
    pub signature: Vec<u8>,
    pub certificate_request: Vec<u8>,
}

impl Controller {
    /// First step: who it claims to be, checked as far as it can be without its signature.
    pub async fn attest(
        &self,
        mut attestation: Attestation,
        token: Option<EnrolmentToken>,
    ) -> Result<Challenge> {
        let now_ms = now_ms();
        if let Some(token) = &token {
            self.check_token(token, &attestation.node_id, now_ms).await?;
            attestation.token_id = Some(token.id.clone());
        }
        let (node_id, key, has_token) =
            (attestation.node_id.clone(), attestation.public_key, token.is_some());
        self.decide(move |membership, _| {
            membership.check_key(&node_id, &key, has_token).map(|()| (Vec::new(), ()))
        })
        .await?;
        self.0.challenger.issue(attestation, now_ms)
    }

    async fn check_token(&self, token: &EnrolmentToken, node_id: &NodeId, now_ms: i64) -> Result<()> {
        let invalid = |why: &str| {
            Error::new(ErrorCode::EnrolmentInvalid, format!("the enrolment token {why}"))
                .remedy("create a new one with `aegis node token create`")
        };
        let record = self.0.store.token(&token.id).await?.filter(|record| token.matches(&record.secret_hash));
        let record = record.ok_or_else(|| invalid("is not one of this cluster"))?;
        if record.spent {
            return Err(invalid("was used before"));
        }
        if record.expires_at_ms <= now_ms {
            return Err(Error::new(ErrorCode::EnrolmentExpired, "the enrolment token has expired")
                .remedy("create a new one with `aegis node token create`"));
        }
        match &record.node_id {
            Some(bound) if bound != node_id => Err(invalid("is bound to another node id")),
            _ => Ok(()),
        }
    }

    /// Second step: the signature. Key and token are stored before anything is issued.
    pub async fn answer(&self, answer: ChallengeAnswer) -> Result<Admission> {
        let now = now_ms();
        let (ticket, challenge) = self.0.challenger.redeem(&answer.challenge_id, now)?;
        if ticket.node_id != answer.node_id {
            return Err(Error::new(ErrorCode::NotYours, "the challenge was issued to another node"));
        }
        let (cluster, controller) = (&self.0.cluster_id, &self.0.id);
        let signed = statement(
            cluster,
            controller,
            &ticket.node_id,
            &ticket.public_key,
            &challenge,
            &answer.certificate_request,
        );
        ticket.public_key.verify(&signed, &answer.signature)?;

        let (node_id, role, key) = (ticket.node_id.clone(), ticket.role, ticket.public_key);
        if let Some(token_id) = ticket.token_id {
            let enrolled = node_id.clone();
            let record = self
                .decide(move |membership, _| Ok((Vec::new(), membership.enrol(&enrolled, role, &key))))
                .await?;
            let write = Write::SpendToken { token_id, node: Box::new(record.clone()), now_ms: now };
            if self.0.store.write(write).await? == 0 {
                return Err(Error::new(
                    ErrorCode::EnrolmentInvalid,
                    "the enrolment token was used meanwhile",
                )
                .remedy("create a new one with `aegis node token create`"));
            }
            self.decide(move |membership, now| {
                membership.apply(Change::Put(Box::new(record)), now);
                Ok((Vec::new(), ()))
            })
            .await?;
            self.0.sessions.rekey(&node_id, &key);
        } else {
            // The pin may have changed since the first step.
            let known = node_id.clone();
            self.decide(move |membership, _| {
                membership.check_key(&known, &key, false).map(|()| (Vec::new(), ()))
            })
            .await?;
        }
        self.open_session(node_id, role, key, ticket.capabilities_hash, now)
    }

    fn open_session(
        &self,
        node_id: NodeId,
        role: Role,
        key: PublicKey,
        capabilities_hash: String,
        now_ms: i64,
    ) -> Result<Admission> {
        let token = self.token(&node_id, role, &key, capabilities_hash, now_ms)?;
        let own = self.token(&self.0.id, Role::Controller, &self.public_key(), String::new(), now_ms)?;
        let session_id = SessionId::mint();
        let clock = ClusterClock::new(now_ms, std::time::Instant::now());
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

    fn token(
        &self,
        node_id: &NodeId,
        role: Role,
        key: &PublicKey,
        capabilities_hash: String,
        now_ms: i64,
    ) -> Result<String> {
        let iat = now_ms / 1000;
        self.0.signer.sign(&Claims {
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
        })
    }

    pub async fn issue_enrolment_token(
        &self,
        node_id: Option<NodeId>,
        lifetime: Duration,
    ) -> Result<(IssuedToken, i64)> {
        let issued = EnrolmentToken::issue()?;
        let created_at_ms = now_ms();
        let expires_at_ms = created_at_ms + i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX / 2);
        let record = TokenRecord {
            token_id: issued.id.clone(),
            secret_hash: issued.secret_hash,
            node_id,
            created_at_ms,
            expires_at_ms,
            spent: false,
        };
        self.0.store.write(Write::CreateToken(record)).await?;
        Ok((issued, expires_at_ms))
    }
}

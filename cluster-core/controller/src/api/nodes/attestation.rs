//! AttestNode and ChallengeNode: the calls of those who have no token yet.

use aegis_identity::{
    Admitted, Attestation, CHALLENGE_BYTES, CertificateRequest, EnrolmentToken, PublicKey, sha256,
};
use aegis_proto::aegis::cluster::v1 as pb;
use aegis_rpc::{
    PROTOCOL_VERSION,
    convert::{role_from_wire, software_version},
    limits::OpenCall,
    via::{self, AuthStage},
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
    text::shown,
};

use super::{ControllerApi, IncomingCall};
use crate::handle::{Admission, ChallengeAnswer, ChallengeSignature, Controller};

/// 0 is what a node of the other implementation sends, which knows no such field.
fn check_protocol(version: u32) -> Result<()> {
    if version <= PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::FailedPrecondition,
        format!("the node speaks protocol version {version}, and this controller up to {PROTOCOL_VERSION}"),
    )
    .remedy("update the controller, then the node"))
}

impl ControllerApi {
    pub(super) async fn attest(
        &self,
        arrival: &IncomingCall,
        request: pb::AttestNodeRequest,
    ) -> Result<pb::AttestNodeResponse> {
        let _admitted = self.0.limits.admit(OpenCall::Attest, arrival.stranger()).await?;
        let node_id = NodeId::parse(request.node_id)?;
        let _ = arrival.caller.set(node_id.clone());
        via::check(&arrival.via, &node_id, AuthStage::Attesting)?;
        check_protocol(request.protocol_version)?;
        let capabilities = request.capabilities.unwrap_or_default();
        let nonce = match request.nonce.as_str() {
            "" => None,
            text => Some(
                uuid::Uuid::parse_str(text)
                    .map_err(|_| Error::invalid(format!("the nonce \"{}\" is not a UUID", shown(text))))?,
            ),
        };
        let token = match request.enrolment_token.as_str() {
            "" => None,
            text => Some(EnrolmentToken::parse(text)?),
        };
        let attestation = Attestation {
            node_id,
            role: role_from_wire(request.role)?,
            public_key: PublicKey::parse(&request.public_key)?,
            nonce,
            token: None,
            capabilities_hash: hex::encode(sha256(&prost::Message::encode_to_vec(&capabilities))),
            software_version: software_version(request.software_version)?,
        };
        let controller = &self.0.controller;
        let challenge = controller.attest(attestation, token).await?;
        Ok(pb::AttestNodeResponse {
            challenge_nonce: challenge.bytes.to_vec(),
            challenge_id: challenge.id,
            cluster_id: controller.cluster_id().to_string(),
            controller_id: controller.id().to_string(),
            controller_time_ms: controller.now_ms(),
            protocol_version: PROTOCOL_VERSION,
        })
    }

    pub(super) async fn challenge(
        &self,
        arrival: &IncomingCall,
        request: pb::ChallengeNodeRequest,
    ) -> Result<pb::ChallengeNodeResponse> {
        let _admitted = self.0.limits.admit(OpenCall::Signed, arrival.stranger()).await?;
        let node_id = NodeId::parse(request.node_id)?;
        let _ = arrival.caller.set(node_id.clone());
        via::check(&arrival.via, &node_id, AuthStage::Attesting)?;
        let signature = match request.signature_v1 {
            signature if !signature.is_empty() => ChallengeSignature::Statement(signature),
            _ if self.admits_bare(&arrival.via) => ChallengeSignature::Bare(request.challenge_signature),
            _ => {
                return Err(Error::new(
                    ErrorCode::InvalidSignature,
                    "the answer signs the bare challenge, not the whole statement",
                )
                .remedy(
                    "send signature_v1; nodes of the other implementation need \
                     spec.cluster.allow_unsealed_context, and come in over loopback",
                ));
            }
        };
        // Older nodes send none.
        if !matches!(request.nonce.len(), 0 | CHALLENGE_BYTES) {
            return Err(Error::invalid(format!("the nonce has {} bytes, not 32", request.nonce.len())));
        }
        // Before anything is spent on it.
        let wanted = match (&self.0.settings.authority, request.certificate_request.as_slice()) {
            (None, _) | (_, []) => None,
            (Some(authority), der) => {
                authority.check_name(&node_id)?;
                Some((authority, CertificateRequest::parse(der)?))
            }
        };
        let controller = &self.0.controller;
        let answer = ChallengeAnswer {
            challenge_id: request.challenge_id,
            node_id: node_id.clone(),
            signature,
            certificate_request: request.certificate_request,
        };
        let admission = controller.answer(answer).await?;
        tracing::info!(%node_id, session_id = %admission.session_id, "attested");
        let (certificate_chain, ca_bundle) = match wanted {
            Some((authority, wanted)) => {
                let chain = authority.certify(&node_id, &wanted)?;
                tracing::info!(%node_id, "a certificate was issued");
                (chain.into_bytes(), authority.certificate_pem().as_bytes().to_vec())
            }
            None => Default::default(),
        };
        Ok(admitted(controller, &node_id, &request.nonce, admission, (certificate_chain, ca_bundle)))
    }
}

/// The answer to an admitted node, with the controller's signature over all of it.
fn admitted(
    controller: &Controller,
    node_id: &NodeId,
    nonce: &[u8],
    admission: Admission,
    (certificate_chain, ca_bundle): (Vec<u8>, Vec<u8>),
) -> pb::ChallengeNodeResponse {
    let (key, session_id) = (controller.public_key(), admission.session_id.to_string());
    let told = Admitted {
        cluster_id: controller.cluster_id(),
        controller_id: controller.id(),
        controller_key: &key,
        node_id,
        nonce,
        session_id: &session_id,
        token: &admission.token,
        token_keys: &admission.token_keys,
        epoch: controller.epoch(),
        certificate_chain: &certificate_chain,
        ca_bundle: &ca_bundle,
    };
    let controller_signature = controller.sign(&told.statement()).to_vec();
    pb::ChallengeNodeResponse {
        node_security_token: admission.token,
        expires_at: Some(prost_types::Timestamp { seconds: admission.expires_at_secs, nanos: 0 }),
        session_id,
        controller_public_key: key.as_bytes().to_vec(),
        token_keys: admission.token_keys,
        certificate_chain,
        ca_bundle,
        epoch: controller.epoch(),
        controller_signature,
    }
}

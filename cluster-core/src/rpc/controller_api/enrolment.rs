//! IssueEnrollmentToken: an operator's call, not a node's, so it bears the operator's token.

use std::time::Duration;

use aegis_proto::aegis::cluster::v1 as pb;
use subtle::ConstantTimeEq as _;

use super::{Arrival, ControllerApi};
use crate::{
    clock::rfc3339,
    cluster::{controller::TokenOrder, peer::Role},
    error::{Error, ErrorCode, Result},
    identity::sha256,
    ids::NodeId,
    rpc::listener::Via,
};

/// As `aegis node token create` has it.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

impl ControllerApi {
    pub(super) async fn issue_token(
        &self,
        arrival: &Arrival,
        request: pb::IssueEnrollmentTokenRequest,
    ) -> Result<pb::IssueEnrollmentTokenResponse> {
        let _admitted = self.0.limits.admit(arrival.stranger()).await?;
        self.check_operator(arrival)?;
        let node_id = match request.issued_to.as_str() {
            "" => None,
            text => Some(NodeId::parse(text)?),
        };
        let order = TokenOrder { node_id, role: Role::Worker, lifetime: LIFETIME };
        let ca = self.0.settings.authority.as_ref().map(|authority| authority.fingerprint());
        let (issued, expires_at_ms) = self.0.controller.issue_enrolment_token(order, ca).await?;
        let endpoint = self.0.settings.endpoint.clone();
        Ok(pb::IssueEnrollmentTokenResponse {
            token: issued.text.to_string(),
            expires_at: rfc3339(expires_at_ms),
            command_hint: format!("aegis node join {endpoint} --token-file FILE"),
            // What a camera reads is what a person would type.
            qr_payload: format!("{endpoint}#{}", issued.text.as_str()),
            controller_endpoint: endpoint,
        })
    }

    fn check_operator(&self, arrival: &Arrival) -> Result<()> {
        let refused = || {
            Error::new(ErrorCode::Unauthenticated, "this call needs the operator's bearer token")
                .remedy("send Authorization: Bearer with the token in http.token of the data directory")
        };
        if let Via::Link(_) = arrival.via {
            return Err(Error::new(ErrorCode::NotYours, "a node does not issue enrolment tokens"));
        }
        let expected = self.0.settings.operator_token_sha256.ok_or_else(refused)?;
        let given = arrival.metadata.get("authorization").and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(refused)?;
        match bool::from(sha256(given.as_bytes()).ct_eq(&expected)) {
            true => Ok(()),
            false => Err(refused()),
        }
    }
}

//! IssueEnrollmentToken: an operator's call, not a node's, so it bears a token of the scope `admin`.

use std::time::Duration;

use aegis_proto::aegis::cluster::v1 as pb;
use aegis_rpc::limits::OpenCall;
use aegis_types::{clock::rfc3339, error::Result, ids::NodeId, node::Role, scope::Scope};
use serde_json::json;

use super::{ControllerApi, IncomingCall};
use crate::{audit::Arguments, handle::TokenOrder};

/// Lifetime of a token, as of `aegis node token create`.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

impl ControllerApi {
    pub(super) async fn issue_token(
        &self,
        arrival: &IncomingCall,
        request: pb::IssueEnrollmentTokenRequest,
    ) -> Result<pb::IssueEnrollmentTokenResponse> {
        let _admitted = self.0.limits.admit(OpenCall::Signed, arrival.stranger()).await?;
        let operators = &self.0.settings.operators;
        let (bearer, _) = operators.known(&arrival.via, &arrival.metadata)?;
        let arguments = Arguments::default();
        arguments.note(&json!({ "issued_to": request.issued_to }));
        let issued = self.issue(request);
        operators.run(bearer, Scope::Admin, "IssueEnrollmentToken", arguments, issued).await
    }

    async fn issue(
        &self,
        request: pb::IssueEnrollmentTokenRequest,
    ) -> Result<pb::IssueEnrollmentTokenResponse> {
        let node_id = match request.issued_to.as_str() {
            "" => None,
            text => Some(NodeId::parse(text)?),
        };
        let order = TokenOrder { node_id, role: Role::Worker, lifetime: LIFETIME, tags: None };
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
}

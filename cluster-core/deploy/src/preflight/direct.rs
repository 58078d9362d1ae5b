//! Direct link of a deployed node: the node dials the controller, and the controller dials the node.
//!
//! The node gets no secret for this link. Its key is pinned over SSH, as with the other links. It identifies its
//! controller by the fingerprint of the built-in CA and by the controller's key, both in its configuration. An
//! enrolment token would only be one more secret on the host.

use std::time::Duration;

use aegis_config::endpoint::CLUSTER_PORT;
use aegis_ssh::Connection;
use aegis_types::{
    error::{Error, Result},
    link::NodeLink,
};
use url::Url;

use crate::{
    host::scripts,
    model::{
        facts::HostFacts,
        finding::{Finding, Severity},
    },
};

const REACH_LIMIT: Duration = Duration::from_secs(15);

/// Checks whether both sides can dial each other, as far as that can be known before anything runs on the host.
pub(super) async fn findings(
    connection: &Connection,
    facts: &HostFacts,
    link: &NodeLink,
) -> Result<Vec<Finding>> {
    let NodeLink::Direct { controller, .. } = link else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut add = |severity, code: &str, message: String, fix: String| {
        found.push(Finding { code: code.to_owned(), severity, message, fix });
    };
    let hops = connection.route().len() - 1;
    if hops > 0 {
        add(
            Severity::Error,
            "direct_route",
            format!(
                "the host is reached through {hops} other host(s), and a direct link has to reach it itself"
            ),
            "deploy with link=ssh".to_owned(),
        );
    }
    let ours = matches!(facts.link, Some(NodeLink::Direct { .. })) && facts.look.any_runs();
    if facts.listening.contains(&CLUSTER_PORT) && !ours {
        add(
            Severity::Error,
            "direct_port",
            format!("port {CLUSTER_PORT} is taken on the host, where the node would listen"),
            format!("stop what listens there; on the host: ss -ltnp 'sport = :{CLUSTER_PORT}'"),
        );
    }
    let unreadable = |error| Error::internal("the controller's own address cannot be read").source(error);
    let url: Url = controller.parse().map_err(|error: url::ParseError| unreadable(error))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(CLUSTER_PORT).to_string();
    match connection.script(scripts::REACHES, &[&host, &port], REACH_LIMIT).await?.status {
        0 => {}
        UNKNOWN => add(
            Severity::Warning,
            "direct_controller",
            format!("whether the host reaches {controller} cannot be tried: it has neither bash nor nc"),
            "none is needed if it does; the deployment's join step shows it".to_owned(),
        ),
        _ => add(
            Severity::Error,
            "direct_controller",
            format!("the host does not reach the controller at {controller}"),
            "open that port on the way, correct spec.cluster.advertise_address, or deploy with link=ssh"
                .to_owned(),
        ),
    }
    Ok(found)
}

const UNKNOWN: i32 = 3;

#[cfg(test)]
mod tests {

    use crate::DirectOffer;
    use aegis_identity::Fingerprint;
    use aegis_types::error::ErrorCode;

    #[test]
    fn what_cannot_be_offered_is_refused_with_what_to_change() {
        for (offer, expected) in [
            (DirectOffer::Nothing, "spec.cluster.advertise_address"),
            (DirectOffer::OperatorCertificates, "spec.cluster.tls"),
        ] {
            let error = offer.check().unwrap_err();
            assert_eq!(error.code(), ErrorCode::FailedPrecondition);
            assert!(error.to_string().contains(expected), "{error}");
        }
        let ca = Fingerprint::of(&vec![1].into());
        let offer = DirectOffer::BuiltIn { endpoint: "https://c.example:50056".parse().unwrap(), ca };
        assert_eq!(offer.check().unwrap().1, &ca);
    }
}

//! Address and certificates that the controller offers for direct links.

use aegis_config::endpoint::CLUSTER_PORT;
use aegis_identity::Fingerprint;
use aegis_ssh::Connection;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    link::NodeLink,
};
use url::Url;

/// Address and certificates that this controller offers to nodes that dial it.
#[derive(Debug, Clone, Default)]
pub enum DirectOffer {
    /// No address beyond this machine.
    #[default]
    Nothing,
    /// The operator's certificates; only the operator can issue one for another node.
    OperatorCertificates,
    BuiltIn {
        endpoint: Url,
        ca: Fingerprint,
    },
}

impl DirectOffer {
    /// Rejects a direct link before anything is changed, with a remedy.
    pub fn check(&self) -> Result<(&Url, &Fingerprint)> {
        let refuse = |why: &str| Error::new(ErrorCode::FailedPrecondition, format!("link \"direct\": {why}"));
        match self {
            DirectOffer::BuiltIn { endpoint, ca } => Ok((endpoint, ca)),
            DirectOffer::Nothing => Err(refuse("this controller has no address that a node could dial")
                .remedy("set spec.cluster.advertise_address: https://HOST:PORT, or leave link out for ssh")),
            DirectOffer::OperatorCertificates => Err(refuse(
                "this controller uses certificates of yours, and cannot issue one to the node",
            )
            .remedy(
                "remove spec.cluster.tls for the built-in CA; or join that machine by hand: aegis node join",
            )),
        }
    }

    /// Returns the link of a node on this host, at the address that the controller uses for SSH.
    pub fn link(&self, connection: &Connection) -> Result<NodeLink> {
        let (endpoint, ca) = self.check()?;
        let address = connection.route().last().map(|host| host.address.as_str().to_owned());
        let address = address.ok_or_else(|| Error::internal("a connection to nowhere"))?;
        let host = if address.contains(':') { format!("[{address}]") } else { address };
        Ok(NodeLink::Direct {
            controller: endpoint.as_str().trim_end_matches('/').to_owned(),
            ca: ca.to_string(),
            node: format!("https://{host}:{CLUSTER_PORT}"),
        })
    }
}

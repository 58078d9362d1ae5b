//! Checks which node may call on a connection, by the kind of the connection. The envelope checks the claims of a call
//! itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use tonic::Request;

use super::places::Authenticated;

/// Progress of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthStage {
    /// Proving its identity; it may not have a certificate yet.
    Attesting,
    /// A member, which has a certificate.
    Admitted,
}

pub fn entered<T>(request: &Request<T>) -> PeerInfo {
    // The server sets it on every connection. Otherwise nothing is known, and the least privilege applies: a TLS caller
    // without a certificate.
    let unknown = || PeerInfo {
        via: PeerTransport::Tls { from: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), names: None },
        proven: Authenticated::default(),
    };
    request.extensions().get::<PeerInfo>().cloned().unwrap_or_else(unknown)
}

/// Checks that this node may call on the connection.
pub fn check(via: &PeerTransport, node_id: &NodeId, stage: AuthStage) -> Result<()> {
    match via {
        PeerTransport::Link(owner) if owner != node_id => Err(Error::new(
            ErrorCode::NotYours,
            format!("{node_id} speaks on the connection that was made to {owner}"),
        )),
        PeerTransport::Tls { names: None, .. } if stage == AuthStage::Admitted => {
            Err(Error::new(ErrorCode::UntrustedCa, format!("{node_id} shows no certificate")).remedy(
                "attest with a certificate request, then connect with the certificate that comes back",
            ))
        }
        // Compared byte by byte: a wildcard is an ordinary name.
        PeerTransport::Tls { names: Some(names), .. }
            if !names.iter().any(|name| name == node_id.as_str()) =>
        {
            Err(Error::new(ErrorCode::NotYours, format!("the certificate shown is not {node_id}'s"))
                .remedy("a node's certificate holds its id as a DNS name in the subject alternative name"))
        }
        PeerTransport::Tls { .. }
        | PeerTransport::Link(_)
        | PeerTransport::Plain(_)
        | PeerTransport::Unix => Ok(()),
    }
}

/// Kind of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerTransport {
    /// Plaintext, on loopback or if the configuration allows it.
    Plain(SocketAddr),
    /// Direct link, with the verified DNS names of the caller's certificate; `None` if the caller showed no
    /// certificate.
    Tls {
        from: SocketAddr,
        names: Option<Arc<[String]>>,
    },
    Unix,
    /// Inside the SSH connection of this node, which is the only permitted caller.
    Link(NodeId),
}

/// Facts about a connection, for the calls on it.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    pub via: PeerTransport,
    pub proven: Authenticated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_speaks_for_the_very_id_it_names() {
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let under = |names: Option<&[&str]>| PeerTransport::Tls {
            from,
            names: names.map(|names| names.iter().map(ToString::to_string).collect()),
        };
        let node = NodeId::parse("edge-1").unwrap();
        let code = |via: &PeerTransport, stage| check(via, &node, stage).map_err(|e| e.code());
        assert_eq!(code(&under(Some(&["edge-1"])), AuthStage::Admitted), Ok(()));
        assert_eq!(code(&under(Some(&["host.example", "edge-1"])), AuthStage::Attesting), Ok(()));
        for names in [&["*"][..], &["EDGE-1"], &["edge-10"], &["edge-1."], &["*.edge-1"], &[]] {
            for stage in [AuthStage::Attesting, AuthStage::Admitted] {
                assert_eq!(code(&under(Some(names)), stage), Err(ErrorCode::NotYours), "{names:?}");
            }
        }
        assert_eq!(code(&under(None), AuthStage::Attesting), Ok(()));
        assert_eq!(code(&under(None), AuthStage::Admitted), Err(ErrorCode::UntrustedCa));
        let other = NodeId::parse("edge-2").unwrap();
        assert_eq!(code(&PeerTransport::Link(other), AuthStage::Admitted), Err(ErrorCode::NotYours));
    }
}

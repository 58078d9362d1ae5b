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

use super::places::Proven;

/// Progress of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Proving its identity; it may not have a certificate yet.
    Attesting,
    /// A member, which has a certificate.
    Admitted,
}

pub fn entered<T>(request: &Request<T>) -> Entered {
    // The server sets it on every connection. Otherwise nothing is known, and the least privilege applies: a TLS caller
    // without a certificate.
    let unknown = || Entered {
        via: Via::Tls { from: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), names: None },
        proven: Proven::default(),
    };
    request.extensions().get::<Entered>().cloned().unwrap_or_else(unknown)
}

/// Checks that this node may call on the connection.
pub fn check(via: &Via, node_id: &NodeId, stage: Stage) -> Result<()> {
    match via {
        Via::Link(owner) if owner != node_id => Err(Error::new(
            ErrorCode::NotYours,
            format!("{node_id} speaks on the connection that was made to {owner}"),
        )),
        Via::Tls { names: None, .. } if stage == Stage::Admitted => {
            Err(Error::new(ErrorCode::UntrustedCa, format!("{node_id} shows no certificate")).remedy(
                "attest with a certificate request, then connect with the certificate that comes back",
            ))
        }
        // Compared byte by byte: a wildcard is an ordinary name.
        Via::Tls { names: Some(names), .. } if !names.iter().any(|name| name == node_id.as_str()) => {
            Err(Error::new(ErrorCode::NotYours, format!("the certificate shown is not {node_id}'s"))
                .remedy("a node's certificate holds its id as a DNS name in the subject alternative name"))
        }
        Via::Tls { .. } | Via::Link(_) | Via::Plain(_) | Via::Unix => Ok(()),
    }
}

/// Kind of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
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
pub struct Entered {
    pub via: Via,
    pub proven: Proven,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_speaks_for_the_very_id_it_names() {
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let under = |names: Option<&[&str]>| Via::Tls {
            from,
            names: names.map(|names| names.iter().map(ToString::to_string).collect()),
        };
        let node = NodeId::parse("edge-1").unwrap();
        let code = |via: &Via, stage| check(via, &node, stage).map_err(|e| e.code());
        assert_eq!(code(&under(Some(&["edge-1"])), Stage::Admitted), Ok(()));
        assert_eq!(code(&under(Some(&["host.example", "edge-1"])), Stage::Attesting), Ok(()));
        for names in [&["*"][..], &["EDGE-1"], &["edge-10"], &["edge-1."], &["*.edge-1"], &[]] {
            for stage in [Stage::Attesting, Stage::Admitted] {
                assert_eq!(code(&under(Some(names)), stage), Err(ErrorCode::NotYours), "{names:?}");
            }
        }
        assert_eq!(code(&under(None), Stage::Attesting), Ok(()));
        assert_eq!(code(&under(None), Stage::Admitted), Err(ErrorCode::UntrustedCa));
        let other = NodeId::parse("edge-2").unwrap();
        assert_eq!(code(&Via::Link(other), Stage::Admitted), Err(ErrorCode::NotYours));
    }
}

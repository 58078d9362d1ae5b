//! How a deployed node and its controller reach each other.

use serde::{Deserialize, Serialize};

/// Ports of a link on the host's loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPorts {
    /// Port on which sshd listens, and which leads to the controller.
    pub controller: u16,
    /// Port on which the node listens.
    pub node: u16,
}

/// Kind of link that a deployment asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkMode {
    #[default]
    Ssh,
    Direct,
}

impl LinkMode {
    pub fn is_usual(&self) -> bool {
        *self == LinkMode::Ssh
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum NodeLink {
    /// Inside the SSH connection, by unix sockets on the host.
    #[default]
    Sockets,
    /// Inside the SSH connection, by ports of the host's loopback: sshd forwards no sockets there.
    Ports(LinkPorts),
    /// Both dial each other, under TLS.
    Direct {
        /// Address of the controller, for the node.
        controller: String,
        /// SHA-256 of the controller's CA, in hexadecimal.
        ca: String,
        /// Address of the node, for the controller.
        node: String,
    },
}

impl NodeLink {
    pub fn ports(&self) -> Option<LinkPorts> {
        match self {
            NodeLink::Ports(ports) => Some(*ports),
            NodeLink::Sockets | NodeLink::Direct { .. } => None,
        }
    }

    pub fn is_direct(&self) -> bool {
        matches!(self, NodeLink::Direct { .. })
    }

    pub fn is_usual(&self) -> bool {
        *self == NodeLink::Sockets
    }
}

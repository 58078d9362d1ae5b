//! Ends of forwarded connections on a host.

use std::fmt;

use russh::{ChannelStream, client::Msg};

/// Channel to or from the host, as a stream; closed when dropped.
pub type SshStream = ChannelStream<Msg>;

/// End on the host that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ForwardEndpoint {
    /// Unix socket, by its path.
    Socket(String),
    /// Port of the host's loopback, which every user of the host can reach.
    Port(u16),
}

impl ForwardEndpoint {
    pub fn socket(&self) -> Option<&str> {
        match self {
            ForwardEndpoint::Socket(path) => Some(path),
            ForwardEndpoint::Port(_) => None,
        }
    }
}

impl fmt::Display for ForwardEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardEndpoint::Socket(path) => write!(f, "socket {path}"),
            ForwardEndpoint::Port(port) => write!(f, "port {port} of its loopback"),
        }
    }
}

/// Address in forwarding requests to OpenSSH, and in its reports of connections.
pub const LOOPBACK: &str = "127.0.0.1";

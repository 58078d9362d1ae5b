//! Ends of forwarded connections on a host.

use std::fmt;

use russh::{ChannelStream, client::Msg};

/// A channel to or from the host, as a stream; it closes when dropped.
pub type SshStream = ChannelStream<Msg>;

/// A place on the host where connections come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostEnd {
    /// A unix socket, by its path.
    Socket(String),
    /// Of the host's loopback: whoever is on the host reaches it.
    Port(u16),
}

impl HostEnd {
    pub fn socket(&self) -> Option<&str> {
        match self {
            HostEnd::Socket(path) => Some(path),
            HostEnd::Port(_) => None,
        }
    }
}

impl fmt::Display for HostEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostEnd::Socket(path) => write!(f, "socket {path}"),
            HostEnd::Port(port) => write!(f, "port {port} of its loopback"),
        }
    }
}

/// As OpenSSH is asked for it, and as it names it in each connection.
pub const LOOPBACK: &str = "127.0.0.1";

//! Ports of a host: those that a service publishes, those that something has taken, and when they conflict.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Socket of the host that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundSocket {
    pub protocol: Protocol,
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for BoundSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol} {}", SocketAddr::new(self.address, self.port))
    }
}

impl BoundSocket {
    /// Reads `tcp 0100007F:1F9A`: words of the address in the order of a little-endian machine, as
    /// `/proc/net/tcp` has them.
    pub fn parse(text: &str) -> Option<Self> {
        let (protocol, socket) = text.split_once(' ')?;
        let (address, port) = socket.split_once(':')?;
        let words =
            (0..address.len()).step_by(8).map(|at| u32::from_str_radix(address.get(at..at + 8)?, 16).ok());
        let words: Vec<[u8; 4]> = words.map(|word| word.map(u32::to_le_bytes)).collect::<Option<_>>()?;
        let address = match words.as_slice() {
            [word] => IpAddr::from(*word),
            [a, b, c, d] => {
                let bytes: [u8; 16] = [*a, *b, *c, *d].concat().try_into().ok()?;
                IpAddr::from(bytes).to_canonical()
            }
            _ => return None,
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Self { protocol: Protocol::parse(protocol)?, address, port })
    }
}

/// Ports of the host that a service publishes: one, or a range of which Docker takes a free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPorts {
    pub first: u16,
    pub last: u16,
    pub protocol: Protocol,
    /// `None` for all addresses.
    pub address: Option<IpAddr>,
}

impl HostPorts {
    /// One TCP port at all addresses.
    pub const fn tcp(port: u16) -> Self {
        Self { first: port, last: port, protocol: Protocol::Tcp, address: None }
    }

    /// Whether no port of these can be bound besides the sockets that are taken.
    pub fn are_taken(&self, bound: impl Iterator<Item = BoundSocket> + Clone) -> bool {
        (self.first..=self.last).all(|port| {
            bound.clone().any(|socket| {
                socket.port == port && socket.protocol == self.protocol && self.meets(socket.address)
            })
        })
    }

    fn meets(&self, taken: IpAddr) -> bool {
        let is_any = |address: IpAddr| {
            address == IpAddr::from(Ipv4Addr::UNSPECIFIED) || address == IpAddr::from(Ipv6Addr::UNSPECIFIED)
        };
        match self.address {
            None => true,
            Some(own) => is_any(own) || is_any(taken) || own.to_canonical() == taken,
        }
    }
}

impl fmt::Display for HostPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "port {}", self.first)?,
            false => write!(f, "ports {} to {}", self.first, self.last)?,
        }
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str(" (udp)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_judged_by_address_protocol_and_range() {
        let bound = ["tcp 3500007F:0035", "udp 00000000:0044", "tcp 0000000000000000FFFF00000100007F:0050"];
        let bound = bound.map(|text| BoundSocket::parse(text).unwrap());
        let taken = |ports: HostPorts| ports.are_taken(bound.iter().copied());
        let at = |port, address: &str| HostPorts { address: address.parse().ok(), ..HostPorts::tcp(port) };
        assert!(taken(HostPorts::tcp(0x35)) && taken(at(0x35, "127.0.0.53")) && taken(at(0x35, "0.0.0.0")));
        assert!(!taken(at(0x35, "10.0.0.1")), "another address");
        assert!(taken(at(0x50, "127.0.0.1")), "mapped into IPv6");
        let udp = HostPorts { protocol: Protocol::Udp, ..at(0x44, "10.0.0.1") };
        assert!(taken(udp) && !taken(HostPorts::tcp(0x44)), "another protocol");
        assert!(!taken(HostPorts { last: 0x36, ..HostPorts::tcp(0x35) }), "one of the range is free");
        for bad in ["", "tcp", "tcp 1:1", "sctp 00000000:0035", "tcp 0000000g:0035", "tcp é000000:0035"] {
            assert_eq!(BoundSocket::parse(bad), None, "{bad}");
        }
    }
}

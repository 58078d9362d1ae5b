//! Network access of a container: the internet, and those local networks that the node's operator opens.
//!
//! The cloud's metadata address, the node's own addresses and private networks are closed. The rules are policy routing
//! rules in a network namespace held by a helper container, the guard. The execution's container joins that namespace
//! (`network_mode: container:…`) and has no capability to change the rules. A connection to a closed address fails at
//! once with EACCES. Nothing on the host changes, and no program of the host is needed: the guard runs this executable.
//! Port 53 stays open. Engines before Docker 26 query the host's name servers from within the namespace. These are
//! often in the LAN or at the metadata address itself.
//!
//! This module decides the rules; [`install`] applies them to the kernel.

mod install;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use install::{READY, run};

/// Private, shared, link-local, reserved and multicast networks (RFC 6890), with the metadata addresses
/// 169.254.169.254, 100.100.100.200 and fd00:ec2::254 in them, and NAT64, which leads to private addresses of IPv4.
const CLOSED: [&str; 13] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "fc00::/7",
    "fe80::/10",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
];
const DNS_PORT: u16 = 53;

/// Subject of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Name servers at any address. `tcp`: the protocol is TCP, otherwise UDP.
    Names {
        is_v6: bool,
        tcp: bool,
    },
    /// One TCP service.
    Service(SocketAddr),
    Open(IpNet),
    Closed(IpNet),
}

impl Rule {
    /// Returns the priority; a lower value is evaluated first. Opening rules precede closing rules. All rules follow
    /// the table of local addresses, by which a container reaches itself.
    fn priority(self) -> u32 {
        match self {
            Rule::Names { .. } => 100,
            Rule::Service(_) => 200,
            Rule::Open(_) => 300,
            Rule::Closed(_) => 400,
        }
    }

    fn is_v6(self) -> bool {
        match self {
            Rule::Names { is_v6, .. } => is_v6,
            Rule::Service(address) => address.is_ipv6(),
            Rule::Open(net) | Rule::Closed(net) => matches!(net, IpNet::V6(_)),
        }
    }
}

/// Returns whether everything is open, so that no guard is needed.
pub fn is_needless(open: &[IpNet]) -> bool {
    open.iter().any(|net| matches!(net, IpNet::V4(net) if net.prefix_len() == 0))
}

/// Returns the rules of a namespace. The operator opens `services` and `open`; `own` are the node's addresses.
pub fn rules(services: &[SocketAddr], open: &[IpNet], own: &[IpAddr]) -> Vec<Rule> {
    let names = [false, true].map(|is_v6| [false, true].map(|tcp| Rule::Names { is_v6, tcp }));
    let closed = CLOSED.iter().filter_map(|text| text.parse().ok()).map(Rule::Closed);
    let own = own.iter().map(|address| Rule::Closed(IpNet::from(*address)));
    let services = services.iter().map(|address| Rule::Service(*address));
    let open = open.iter().map(|net| Rule::Open(*net));
    names.into_iter().flatten().chain(services).chain(open).chain(closed).chain(own).collect()
}

/// Returns the addresses of this machine outside the fixed list of networks: public addresses.
pub fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let closed: Vec<IpNet> = CLOSED.iter().filter_map(|text| text.parse().ok()).collect();
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let mut own: Vec<IpAddr> = interfaces
        .filter_map(address)
        .filter(|address| !address.is_loopback() && !closed.iter().any(|net| net.contains(address)))
        .collect();
    own.sort_unstable();
    own.dedup();
    own
}

#[cfg(test)]
mod tests {
    use aegis_types::network::parse_open;

    use super::*;

    /// Evaluates the rules for a TCP connection as the kernel does: the first match decides.
    fn is_open(rules: &[Rule], to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        let mut rules = rules.to_vec();
        rules.sort_by_key(|rule| rule.priority());
        let decides = |rule: &Rule| match rule {
            Rule::Names { is_v6, tcp } => {
                (*tcp && *is_v6 == to.is_ipv6() && to.port() == DNS_PORT).then_some(true)
            }
            Rule::Service(address) => (*address == to).then_some(true),
            Rule::Open(net) => net.contains(&to.ip()).then_some(true),
            Rule::Closed(net) => net.contains(&to.ip()).then_some(false),
        };
        rules.iter().find_map(decides).unwrap_or(true)
    }

    #[test]
    fn surroundings_are_closed_and_the_internet_is_open() {
        let rules = rules(&[], &[], &["192.0.2.7".parse().unwrap()]);
        for closed in [
            "169.254.169.254:80",
            "100.100.100.200:80",
            "[fd00:ec2::254]:80",
            "172.18.0.1:22",
            "10.0.0.1:443",
            "192.168.1.1:80",
            "100.64.1.1:80",
            "[fe80::1]:80",
            "[64:ff9b::a00:1]:80",
            "239.255.255.250:1900",
            "192.0.2.7:8088",
        ] {
            assert!(!is_open(&rules, closed), "{closed}");
        }
        for open in ["1.1.1.1:443", "192.0.2.8:80", "[2606:4700::1111]:443", "10.0.0.2:53", "[fd00::1]:53"] {
            assert!(is_open(&rules, open), "{open}");
        }
    }

    #[test]
    fn operator_opens_networks_and_services() {
        let open = parse_open(&["10.1.2.3/16".into(), "192.168.7.7".into()]).unwrap();
        let rules = rules(&["10.9.9.9:8150".parse().unwrap()], &open, &[]);
        for open in ["10.1.255.1:80", "192.168.7.7:80", "10.9.9.9:8150"] {
            assert!(is_open(&rules, open), "{open}");
        }
        for closed in ["10.2.0.1:80", "192.168.7.8:80", "10.9.9.9:22"] {
            assert!(!is_open(&rules, closed), "{closed}");
        }
        assert!(is_needless(&parse_open(&["0.0.0.0/0".into()]).unwrap()));
        assert!(!is_needless(&open));
    }
}

//! Target of an SSH connection: a valid host in canonical form. This machine is rejected unless the configuration
//! allows it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use aegis_types::{
    error::{Error, Result},
    ids::UserName,
    text::shown,
};

pub const SSH_PORT_DEFAULT: u16 = 22;
/// Longest DNS name (RFC 1035, section 2.3.4).
const HOST_LENGTH_MAX: usize = 253;
const LABEL_LENGTH_MAX: usize = 63;
/// Names that always resolve to this machine.
const LOOPBACK_NAMES: [&str; 5] =
    ["localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost"];
/// Names of cloud metadata services.
const METADATA_NAMES: [&str; 3] = ["metadata", "metadata.google.internal", "instance-data"];

/// Permitted use of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressKind {
    Usable,
    /// This machine itself, allowed only by the configuration.
    Loopback,
    /// Never allowed: link-local (including metadata services), unspecified, multicast.
    Forbidden(&'static str),
}

/// Classifies an address in any spelling, including mapped and translated IPv4.
pub fn address_kind(address: IpAddr) -> AddressKind {
    match address {
        IpAddr::V4(v4) => ipv4_kind(v4),
        IpAddr::V6(v6) => match embedded_ipv4(v6) {
            Some(v4) => ipv4_kind(v4),
            None => ipv6_kind(v6),
        },
    }
}

fn ipv4_kind(address: Ipv4Addr) -> AddressKind {
    /// Alibaba Cloud's metadata service, outside the link-local range.
    const METADATA_ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    if address.octets()[0] == 0 {
        AddressKind::Forbidden("an unspecified address")
    } else if address.is_loopback() {
        AddressKind::Loopback
    } else if address.is_link_local() {
        AddressKind::Forbidden("a link-local address, where metadata services answer")
    } else if address == METADATA_ALIBABA {
        AddressKind::Forbidden("a metadata service")
    } else if address.is_multicast() || address.is_broadcast() {
        AddressKind::Forbidden("a multicast or broadcast address")
    } else {
        AddressKind::Usable
    }
}

fn ipv6_kind(address: Ipv6Addr) -> AddressKind {
    /// Amazon's metadata service.
    const METADATA_AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if address.is_loopback() {
        AddressKind::Loopback
    } else if address.is_unspecified() {
        AddressKind::Forbidden("an unspecified address")
    } else if address.segments()[0] & 0xffc0 == 0xfe80 {
        AddressKind::Forbidden("a link-local address")
    } else if address == METADATA_AWS {
        AddressKind::Forbidden("a metadata service")
    } else if address.is_multicast() {
        AddressKind::Forbidden("a multicast address")
    } else {
        AddressKind::Usable
    }
}

/// Returns the IPv4 host that `::ffff:a.b.c.d`, `::a.b.c.d`, `64:ff9b::a.b.c.d` or `2002:ab:cd::` reaches.
fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// Host name or address with a valid grammar.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress(String);

impl HostAddress {
    /// Parses a host. Names are stored in lower case and addresses in canonical form, so that one host has one spelling
    /// in pins and records.
    pub fn parse(text: &str, allow_loopback: bool) -> Result<Self> {
        let refuse = |why: &str| {
            Error::invalid(format!("host \"{}\" is not valid: {why}", shown(text)))
                .remedy("give a DNS name or an IP address, such as 192.168.1.50 or edge1.example.com")
        };
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        if text.len() > HOST_LENGTH_MAX {
            return Err(refuse("it is longer than 253 characters"));
        }
        if text.starts_with('-') {
            return Err(refuse("it begins with '-'"));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Self::from_address(address, allow_loopback, refuse);
        }
        Self::from_name(text, allow_loopback, refuse)
    }

    fn from_address(address: IpAddr, allow_loopback: bool, refuse: impl Fn(&str) -> Error) -> Result<Self> {
        match address_kind(address) {
            AddressKind::Usable => Ok(Self(address.to_canonical().to_string())),
            AddressKind::Loopback if allow_loopback => Ok(Self(address.to_canonical().to_string())),
            AddressKind::Loopback => Err(refuse(IS_THIS_MACHINE)),
            AddressKind::Forbidden(why) => Err(refuse(&format!("it is {why}"))),
        }
    }

    fn from_name(text: &str, allow_loopback: bool, refuse: impl Fn(&str) -> Error) -> Result<Self> {
        let name = text.to_ascii_lowercase();
        for label in name.split('.') {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if label.is_empty() || label.len() > LABEL_LENGTH_MAX {
                return Err(refuse("a part between dots is empty or longer than 63 characters"));
            }
            if !label.bytes().all(inner) {
                return Err(refuse("only a-z, 0-9, '-', '_' and '.' may stand in a name"));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(refuse("a part begins or ends with '-'"));
            }
        }
        // Resolvers read "127.1", "2130706433" and "0x7f.1" as addresses. RFC 1123 top-level domains are never numeric,
        // so a name that ends in a number is an address.
        let last = name.rsplit('.').next().unwrap_or_default();
        let numeric = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if numeric {
            return Err(refuse("it is a number and not an address in the form 192.168.1.50"));
        }
        let loopback =
            LOOPBACK_NAMES.contains(&name.as_str()) || name == "ip6-loopback" || name.ends_with(".localhost");
        if loopback && !allow_loopback {
            return Err(refuse(IS_THIS_MACHINE));
        }
        if METADATA_NAMES.contains(&name.as_str()) {
            return Err(refuse("it names a metadata service"));
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const IS_THIS_MACHINE: &str = "it is this machine itself (spec.deploy.allow_loopback permits that)";

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for HostAddress {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// Reads a host back from a record. Loopback was checked when the record was written, and is checked again when
/// connecting.
impl<'de> serde::Deserialize<'de> for HostAddress {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(from)?;
        Self::parse(&text, true).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for HostAddress {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HostAddress".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// Direct SSH target, never resolved as a cluster label and never replaced by another machine.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct SshTarget {
    pub host: HostAddress,
    pub port: u16,
    pub user: UserName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_path: Option<PathBuf>,
}

impl fmt::Display for SshTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.user, self.host, self.port)
    }
}

/// Host to connect to: the name that people gave, and its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name that people see, and that is pinned.
    pub name: HostAddress,
    /// Address to connect to, which is also looked up in known_hosts.
    pub address: HostAddress,
    pub port: u16,
}

impl Endpoint {
    pub fn direct(host: &HostAddress, port: u16) -> Self {
        Self { name: host.clone(), address: host.clone(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name == self.address {
            true => write!(f, "{} port {}", self.name, self.port),
            false => write!(f, "{} ({} port {})", self.name, self.address, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_their_usual_form_are_taken() {
        for good in ["192.168.1.50", "edge1.example.com", "Edge_1", "fd00::5", "10.0.0.1", "xn--bcher-kva.de"]
        {
            assert!(HostAddress::parse(good, false).is_ok(), "{good}");
        }
        assert_eq!(HostAddress::parse("Edge1.Example.COM", false).unwrap().as_str(), "edge1.example.com");
        assert_eq!(HostAddress::parse("::ffff:10.0.0.1", false).unwrap().as_str(), "10.0.0.1");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for bad in [
            "",
            "-oProxyCommand=sh",
            "$(id)",
            "a;b",
            "a b",
            "a\nb",
            "a\0b",
            "ü.example",
            "раура1.com",
            "a..b",
            ".a",
            "a.",
            "user@host",
            "host:22",
            "[::1]",
            "fe80::1%eth0",
            "a/b",
            "-",
            &"a".repeat(300),
            &format!("{}.de", "a".repeat(64)),
        ] {
            assert!(HostAddress::parse(bad, true).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_machine_is_refused_in_every_spelling() {
        for bad in [
            "127.0.0.1",
            "127.8.9.1",
            "localhost",
            "LOCALHOST",
            "a.localhost",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "0:0:0:0:0:ffff:7f00:1",
            "ip6-loopback",
        ] {
            assert!(HostAddress::parse(bad, false).is_err(), "{bad:?}");
        }
        for allowed in ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"] {
            assert!(HostAddress::parse(allowed, true).is_ok(), "{allowed:?}");
        }
    }

    #[test]
    fn numbers_and_metadata_services_are_always_refused() {
        for bad in [
            "0",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "224.0.0.1",
            "ff02::1",
            "metadata.google.internal",
            "255.255.255.255",
            "1.2.3",
            "0.1.2.3",
        ] {
            assert!(HostAddress::parse(bad, true).is_err(), "{bad:?}");
        }
    }
}

//! Listening address of the cluster port and its security, combined from several configuration keys.
//!
//! Off loopback the port uses TLS, unless the file allows plaintext explicitly.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};
use url::{Host, Url};

use super::{
    endpoint::{CLUSTER_PORT, Endpoint, is_loopback},
    schema::{Cluster, Network, Tls},
};

/// Listening address of the cluster port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Unix(PathBuf),
    Tcp {
        address: SocketAddr,
        /// The port is a default on loopback, so another free port may be used.
        any_port: bool,
    },
}

/// The operator's own certificates, as PEM files that are watched for changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePaths {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// May hold several CAs, for their rotation.
    pub ca: PathBuf,
}

/// Security of the cluster's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterTls {
    Off,
    Operator(CertificatePaths),
    /// TLS with certificates of the CA that the controller made.
    BuiltIn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPort {
    pub listen: Listen,
    pub tls: ClusterTls,
    /// Address for other nodes; `None` if the port is reached at its listening address.
    pub advertise: Option<Url>,
    /// The advertised address names no port or port 0, so the bound port is used.
    takes_bound_port: bool,
    /// The file allows plaintext off loopback.
    pub allow_insecure: bool,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ConfigInvalid, message)
}

/// Security that the advertised address implies.
enum Advertised {
    Nothing,
    Unix(PathBuf),
    Plain(Url),
    Tls(Url),
}

impl ClusterPort {
    pub fn of(cluster: &Cluster, network: &Network, endpoint: Option<&Endpoint>) -> Result<Self> {
        let advertised = advertised(cluster.advertise_address.as_deref())?;
        let dials_tls = matches!(endpoint, Some(Endpoint::Https(_)));
        let tls = tls(cluster.tls.as_ref(), &advertised, dials_tls)?;
        let allow_insecure = network.allow_insecure_bind == Some(true);
        let (host, advertised_port) = match &advertised {
            Advertised::Unix(path) => {
                let listen = Listen::Unix(path.clone());
                return Ok(Self { listen, tls, advertise: None, takes_bound_port: false, allow_insecure });
            }
            Advertised::Nothing => (None, None),
            Advertised::Plain(url) | Advertised::Tls(url) => {
                (url.host(), explicit_port(cluster.advertise_address.as_deref()))
            }
        };
        let bind = bind(network)?;
        let ip = match (&host, bind) {
            (_, Some(bind)) if !bind.is_loopback() => bind,
            (Some(host), _) if !is_loopback(host) => unspecified(host),
            // A worker without an advertised address is reached at the address from which it dials.
            (None, _) if tls != ClusterTls::Off && endpoint.is_some_and(Endpoint::is_remote) => {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            }
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        if tls == ClusterTls::Off && !ip.is_loopback() && !allow_insecure {
            let what = match &advertised {
                Advertised::Plain(url) => format!("spec.cluster.advertise_address {url}"),
                _ => format!("spec.network.bind_address {ip}"),
            };
            return Err(invalid(format!("{what}: only loopback is served without TLS"))
                .remedy("write spec.cluster.advertise_address: https://HOST:PORT, which turns TLS on; or, where everybody on the network may read along, set spec.network.allow_insecure_bind: true"));
        }
        let asked_port = cluster.cluster_grpc_port.or(advertised_port);
        let any_port = asked_port.is_none() && ip.is_loopback();
        let listen =
            Listen::Tcp { address: SocketAddr::new(ip, asked_port.unwrap_or(CLUSTER_PORT)), any_port };
        let advertise = match advertised {
            Advertised::Plain(url) | Advertised::Tls(url) => Some(url),
            Advertised::Nothing | Advertised::Unix(_) => None,
        };
        let takes_bound_port = matches!(advertised_port, None | Some(0));
        Ok(Self { listen, tls, advertise, takes_bound_port, allow_insecure })
    }

    /// Returns the address for other nodes, given the bound address. Returns `None` if a worker is reached at the
    /// address from which it dials.
    pub fn address(&self, bound: SocketAddr) -> Option<Url> {
        let mut url = match &self.advertise {
            Some(url) => url.clone(),
            None if bound.ip().is_unspecified() => return None,
            None => at(self.scheme(), bound)?,
        };
        if self.takes_bound_port {
            // Fails only for addresses that cannot have a port.
            let _ = url.set_port(Some(bound.port()));
        }
        Some(url)
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls == ClusterTls::Off { "http" } else { "https" }
    }
}

/// Returns the URL of a socket address.
pub fn at(scheme: &str, address: SocketAddr) -> Option<Url> {
    Url::parse(&format!("{scheme}://{address}")).ok()
}

fn advertised(given: Option<&str>) -> Result<Advertised> {
    let Some(text) = given else { return Ok(Advertised::Nothing) };
    let key = "spec.cluster.advertise_address";
    let url = Url::parse(text)
        .map_err(|e| invalid(format!("{key} {}: {e}", shown(text))).remedy("write https://HOST:PORT"))?;
    match url.scheme() {
        "unix" => Ok(Advertised::Unix(PathBuf::from(url.path()))),
        "https" if url.host().is_some() => Ok(Advertised::Tls(url)),
        "http" if url.host().is_some() => Ok(Advertised::Plain(url)),
        other => Err(invalid(format!("{key}: the scheme {other} is not https, http or unix"))
            .remedy("write https://HOST:PORT")),
    }
}

/// Returns the port as written. `Url` omits the default port of its scheme.
fn explicit_port(given: Option<&str>) -> Option<u16> {
    let (_, rest) = given?.split_once("://")?;
    Url::parse(&format!("cluster://{rest}")).ok()?.port()
}

fn tls(given: Option<&Tls>, advertised: &Advertised, dials_tls: bool) -> Result<ClusterTls> {
    let given = given.cloned().unwrap_or_default();
    let paths = [("cert_path", given.cert_path), ("key_path", given.key_path), ("ca_cert", given.ca_cert)];
    if given.enabled == Some(false) {
        if matches!(advertised, Advertised::Tls(_)) || dials_tls {
            return Err(invalid("spec.cluster.tls.enabled is false and an address of the cluster is https")
                .remedy("remove tls.enabled, or write http://"));
        }
        return Ok(ClusterTls::Off);
    }
    match paths {
        [(_, Some(cert)), (_, Some(key)), (_, Some(ca))] => {
            if matches!(advertised, Advertised::Plain(_)) {
                return Err(invalid(
                    "spec.cluster.tls names certificates and spec.cluster.advertise_address is http",
                )
                .remedy("write https://"));
            }
            Ok(ClusterTls::Operator(CertificatePaths { cert, key, ca }))
        }
        [(_, None), (_, None), (_, None)] => {
            let wanted = matches!(advertised, Advertised::Tls(_)) || dials_tls || given.enabled == Some(true);
            Ok(if wanted { ClusterTls::BuiltIn } else { ClusterTls::Off })
        }
        partial => {
            let missing: Vec<_> =
                partial.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
            let missing = missing.join(" and spec.cluster.tls.");
            Err(invalid(format!("spec.cluster.tls.{missing} is missing"))
                .remedy("name all three: cert_path, key_path and ca_cert; or none, for the built-in CA"))
        }
    }
}

fn bind(network: &Network) -> Result<Option<IpAddr>> {
    let Some(text) = &network.bind_address else { return Ok(None) };
    let address = if text == "localhost" { "127.0.0.1" } else { text.as_str() };
    let parsed = address.parse().map_err(|_| {
        invalid(format!("spec.network.bind_address \"{}\" is not an IP address", shown(text)))
    })?;
    Ok(Some(parsed))
}

fn unspecified<S>(host: &Host<S>) -> IpAddr {
    match host {
        Host::Ipv6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        Host::Ipv4(_) | Host::Domain(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Overrides, Settings, parse};

    fn port(text: &str) -> Result<ClusterPort> {
        let overrides = Overrides { data_dir: Some("/data".into()), ..Default::default() };
        Settings::of(&parse(text)?, &overrides).map(|settings| settings.cluster_port)
    }

    fn tcp(address: &str) -> Listen {
        // Only a default port on loopback may be replaced.
        Listen::Tcp { address: address.parse().unwrap(), any_port: address == "127.0.0.1:50056" }
    }

    const PATHS: &str = "{cert_path: /c, key_path: /k, ca_cert: /a}";

    #[test]
    fn every_combination_has_its_one_meaning() {
        let worker = "role: worker, controller: {endpoint: ";
        for (cluster, network, listen, tls) in [
            ("", "", "127.0.0.1:50056", ClusterTls::Off),
            ("tls: {enabled: true}", "", "127.0.0.1:50056", ClusterTls::BuiltIn),
            ("advertise_address: 'https://c.example:50100'", "", "0.0.0.0:50100", ClusterTls::BuiltIn),
            ("advertise_address: 'https://c.example'", "", "0.0.0.0:50056", ClusterTls::BuiltIn),
            ("advertise_address: 'https://c.example:443'", "", "0.0.0.0:443", ClusterTls::BuiltIn),
            ("advertise_address: 'https://[2001:db8::1]:50056'", "", "[::]:50056", ClusterTls::BuiltIn),
            ("advertise_address: 'https://127.0.0.1:0'", "", "127.0.0.1:0", ClusterTls::BuiltIn),
            (
                "advertise_address: 'https://c.example:443', cluster_grpc_port: 50056",
                "bind_address: 10.0.0.1",
                "10.0.0.1:50056",
                ClusterTls::BuiltIn,
            ),
            ("advertise_address: 'http://localhost:1234'", "", "127.0.0.1:1234", ClusterTls::Off),
            (
                "advertise_address: 'http://c.example:1234'",
                "allow_insecure_bind: true",
                "0.0.0.0:1234",
                ClusterTls::Off,
            ),
            ("cluster_grpc_port: 50057", "", "127.0.0.1:50057", ClusterTls::Off),
            (&format!("{worker}'https://c.example:1'}}"), "", "0.0.0.0:50056", ClusterTls::BuiltIn),
            (
                "role: hybrid, controller: {endpoint: 'https://c.example:1'}",
                "",
                "127.0.0.1:50056",
                ClusterTls::Off,
            ),
            (&format!("{worker}'https://127.0.0.1:1'}}"), "", "127.0.0.1:50056", ClusterTls::BuiltIn),
        ] {
            let text = format!("spec: {{cluster: {{{cluster}}}, network: {{{network}}}}}");
            let port = port(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((port.listen, port.tls), (tcp(listen), tls), "{text}");
        }
        let operator = port(&format!("spec: {{cluster: {{tls: {PATHS}}}}}")).unwrap();
        assert_eq!(operator.listen, tcp("127.0.0.1:50056"));
        assert!(matches!(operator.tls, ClusterTls::Operator(_)));
    }

    #[test]
    fn what_is_unsafe_or_incomplete_is_refused_by_name() {
        for (cluster, network, expected) in [
            ("advertise_address: 'http://c.example:1'", "", "allow_insecure_bind"),
            ("tls: {enabled: false}", "bind_address: 0.0.0.0", "only loopback"),
            ("tls: {cert_path: /c, key_path: /k}", "", "spec.cluster.tls.ca_cert is missing"),
            ("tls: {ca_cert: /c}", "", "spec.cluster.tls.cert_path and spec.cluster.tls.key_path"),
            ("advertise_address: 'https://c:1', tls: {enabled: false}", "", "tls.enabled is false"),
            ("advertise_address: 'ftp://c:1'", "", "ftp"),
            ("advertise_address: 'nonsense'", "", "advertise_address"),
        ] {
            let text = format!("spec: {{cluster: {{{cluster}}}, network: {{{network}}}}}");
            let error = port(&text).map(|_| ()).expect_err(&text);
            assert_eq!(error.code(), ErrorCode::ConfigInvalid, "{error}");
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_address_told_has_the_port_that_was_bound() {
        let bound: SocketAddr = "127.0.0.1:41000".parse().unwrap();
        let told = |text: &str| port(text).unwrap().address(bound).unwrap().to_string();
        assert_eq!(told(""), "http://127.0.0.1:41000/");
        assert_eq!(
            told("spec: {cluster: {advertise_address: 'https://127.0.0.1:0'}}"),
            "https://127.0.0.1:41000/"
        );
        assert_eq!(
            told("spec: {cluster: {advertise_address: 'https://c.example:7'}}"),
            "https://c.example:7/"
        );
    }
}

//! Checks whether the daemon's ports are free, or its own. A connection is tried, and no port is bound, since a daemon
//! that starts at this moment needs its ports.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use cluster_core::{
    config::{Settings, cluster_port::Listen, settings::REST_PORT},
    default_port::recorded,
};
use tokio::net::TcpStream;

use super::{Check, Finding, daemon::Holder};
use crate::daemon::HTTP_ADDRESS;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Facts {
    holder: Holder,
    doors: Vec<Door>,
}

#[derive(Debug)]
struct Door {
    what: &'static str,
    /// Configuration key to choose another address.
    key: &'static str,
    address: SocketAddr,
    /// A default on loopback: the daemon uses another port if this port is taken.
    any_port: bool,
    answers: bool,
}

pub async fn look(settings: &Settings, data_dir: &Path, holder: Holder) -> Facts {
    let configured = SocketAddr::new(settings.bind_address, settings.rest_port.unwrap_or(REST_PORT));
    let any_http = settings.rest_port.is_none() && settings.bind_address.is_loopback();
    // A daemon may have been started with another port than the configured one.
    let served = match holder {
        Holder::Daemon | Holder::Silent(_) => served(data_dir).unwrap_or(configured),
        Holder::Nobody => configured,
    };
    let mut doors = vec![("HTTP", "spec.network.port or AEGIS_PORT", served, any_http)];
    if let Listen::Tcp { address, any_port } = settings.cluster_port.listen {
        let bound = any_port.then(|| recorded(data_dir, "cluster")).flatten().unwrap_or(address.port());
        let address = SocketAddr::new(address.ip(), bound);
        doors.push(("the cluster port", "spec.cluster.cluster_grpc_port", address, any_port));
    }
    // Port 0 is any free port.
    let doors = doors.into_iter().filter(|(_, _, address, _)| address.port() != 0);
    let doors = doors.map(async |(what, key, address, any_port)| {
        let connected = tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(reached(address))).await;
        Door { what, key, address, any_port, answers: matches!(connected, Ok(Ok(_))) }
    });
    Facts { holder, doors: futures::future::join_all(doors).await }
}

fn served(data_dir: &Path) -> Option<SocketAddr> {
    let text = std::fs::read_to_string(data_dir.join(HTTP_ADDRESS)).ok()?;
    let text = text.trim();
    text.strip_prefix("https://").unwrap_or(text).parse().ok()
}

/// Returns the address to connect to: loopback for an unspecified address.
fn reached(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

pub fn judge(Facts { holder, doors }: &Facts) -> Vec<Finding> {
    let check = Check::Ports;
    let mut findings = Vec::new();
    for Door { what, key, address, any_port, answers } in doors {
        match (holder, answers) {
            (Holder::Daemon, true) | (Holder::Nobody, false) => {}
            // The ports may be its own; its silence is reported as the daemon's failure.
            (Holder::Silent(_), _) => {}
            (Holder::Nobody, true) if *any_port => findings.push(
                check.ok(format!("another program answers at {address}; {what} takes a free port instead")),
            ),
            (Holder::Nobody, true) => findings.push(check.fail(
                format!("another program answers at {address}, where {what} would be"),
                format!("stop it, or choose another port with {key}"),
            )),
            (Holder::Daemon, false) => findings.push(check.warn(
                format!("the daemon runs, and {what} does not answer at {address}"),
                "it runs with another configuration: `aegis stop`, then `aegis up`",
            )),
        }
    }
    if findings.is_empty() {
        let all: Vec<_> = doors.iter().map(|door| format!("{} at {}", door.what, door.address)).collect();
        let all = if all.is_empty() { "any free ones".to_owned() } else { all.join(", ") };
        findings.push(check.ok(match holder {
            Holder::Daemon => format!("the daemon's own: {all}"),
            Holder::Silent(process) => {
                format!("left to process {process}, which has the data directory: {all}")
            }
            Holder::Nobody => format!("free: {all}"),
        }));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{self, Fail, Ok as Good, Warn};
    use cluster_core::config::{NodeConfig, Overrides};

    fn verdict(holder: Holder, answers: bool) -> Verdict {
        let address = "127.0.0.1:8088".parse().unwrap();
        let door = Door { what: "HTTP", key: "spec.network.port", address, any_port: false, answers };
        judge(&Facts { holder, doors: vec![door] })[0].result
    }

    #[test]
    fn taken_default_port_is_no_failure() {
        let address = "127.0.0.1:8088".parse().unwrap();
        let door = Door { what: "HTTP", key: "spec.network.port", address, any_port: true, answers: true };
        assert_eq!(judge(&Facts { holder: Holder::Nobody, doors: vec![door] })[0].result, Good);
    }

    #[test]
    fn a_port_is_free_or_ours() {
        assert_eq!(verdict(Holder::Nobody, false), Good);
        assert_eq!(verdict(Holder::Daemon, true), Good);
        assert_eq!(verdict(Holder::Nobody, true), Fail);
        assert_eq!(verdict(Holder::Daemon, false), Warn);
        assert_eq!(verdict(Holder::Silent(7), true), Good);
        assert_eq!(judge(&Facts { holder: Holder::Daemon, doors: Vec::new() })[0].result, Good);
    }

    #[tokio::test]
    async fn a_listener_of_another_program_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let overrides = Overrides { port: Some(port), ..Overrides::default() };
        let settings = Settings::of(&NodeConfig::default(), &overrides).unwrap();
        let facts = look(&settings, dir.path(), Holder::Nobody).await;
        assert!(facts.doors[0].answers, "{facts:?}");
        drop(listener);
        assert!(!look(&settings, dir.path(), Holder::Nobody).await.doors[0].answers);
    }
}

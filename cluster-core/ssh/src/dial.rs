//! The TCP connection to a host: which addresses of a name may be dialled, and which one answers first.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use aegis_types::error::{Error, ErrorCode, Result};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};

use super::target::{AddressKind, Endpoint, address_kind};
use crate::{Credentials, HostKeyRules};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Time that an address has before the next one is tried as well (RFC 8305, section 8).
const NEXT_ADDRESS_PAUSE: Duration = Duration::from_millis(250);

/// Connects to a host, at the first of its addresses that answers.
pub(super) async fn dial(host: &Endpoint, options: &ConnectOptions) -> Result<TcpStream> {
    let limit = options.timeouts.connect;
    let resolved = timeout(limit, lookup_host((host.address.as_str(), host.port)))
        .await
        .map_err(|_| unresolved(host))?
        .map_err(|error| unresolved(host).source(error))?;
    let addresses: Vec<SocketAddr> = resolved.take(ADDRESSES_MAX).collect();
    let addresses = permitted(host, addresses, options.allow_loopback)?;
    let stream = first_that_answers(host, addresses, limit).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Connects to the first address that answers. The next address is tried after a short pause, or when one has failed:
/// a name may have an address that swallows packets (RFC 8305).
async fn first_that_answers(
    host: &Endpoint,
    addresses: Vec<SocketAddr>,
    limit: Duration,
) -> Result<TcpStream> {
    let (mut tries, mut last) = (FuturesUnordered::new(), unresolved(host));
    let mut left = addresses.into_iter();
    loop {
        let has_next = match left.next() {
            Some(address) => {
                tries.push(timeout(limit, TcpStream::connect(address)));
                true
            }
            None => false,
        };
        let ended = tokio::select! {
            ended = tries.next() => ended,
            () = sleep(NEXT_ADDRESS_PAUSE), if has_next => continue,
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => last = unreachable(host, &error).source(error),
            Some(Err(_)) => last = silent(host, "when connected to"),
            None => return Err(last),
        }
    }
}

/// The addresses that may be dialled. A name may lead anywhere, and elsewhere than when it was checked: what
/// counts is the address. One that leads to this machine is refused as a whole; link-local addresses, which
/// mDNS gives with others, are left out.
fn permitted(host: &Endpoint, addresses: Vec<SocketAddr>, allow_loopback: bool) -> Result<Vec<SocketAddr>> {
    let (mut usable, mut refusal) = (Vec::new(), None);
    for address in addresses {
        match address_kind(address.ip()) {
            AddressKind::Usable => usable.push(address),
            AddressKind::Loopback if allow_loopback => usable.push(address),
            AddressKind::Loopback => return Err(misled(host, &address, "this machine itself")),
            AddressKind::Forbidden(why) => refusal = Some(misled(host, &address, why)),
        }
    }
    match refusal {
        Some(refusal) if usable.is_empty() => Err(refusal),
        _ => Ok(usable),
    }
}

fn unresolved(host: &Endpoint) -> Error {
    Error::new(ErrorCode::HostUnreachable, format!("the name {} does not resolve", host.address))
        .remedy("check the spelling, or give the host's IP address")
}

fn misled(host: &Endpoint, address: &SocketAddr, why: &str) -> Error {
    Error::invalid(format!("host {} resolves to {}, which is {why}", host.address, address.ip()))
        .remedy("give the address of another machine; spec.deploy.allow_loopback permits loopback targets")
}

/// Everything but the target that opening a connection needs.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    pub rules: Arc<HostKeyRules>,
    pub credentials: Credentials,
    pub allow_loopback: bool,
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Resolving, and each address's TCP connection.
    pub connect: Duration,
    /// Key exchange, and login.
    pub login: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), login: Duration::from_secs(20) }
    }
}

pub(super) fn silent(host: &Endpoint, when: &str) -> Error {
    Error::new(ErrorCode::HostUnreachable, format!("{host} is silent {when}"))
        .remedy("check the address, the route and the firewall between here and there")
}

pub(super) fn unreachable(host: &Endpoint, error: &io::Error) -> Error {
    let (what, remedy) = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            ("refuses the connection", "check that sshd runs there and listens on this port (ssh_port)")
        }
        _ => ("cannot be reached", "check the address, the route and the firewall between here and there"),
    };
    Error::new(ErrorCode::HostUnreachable, format!("{host} {what}")).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::{super::target::HostAddress, *};
    use tokio::net::{TcpListener, TcpSocket};

    #[test]
    fn link_local_addresses_of_a_name_are_left_out() {
        let host = Endpoint::direct(&HostAddress::parse("raspberrypi.local", false).unwrap(), 22);
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, usable) = (address("[fe80::1]:22"), address("192.168.1.7:22"));
        assert_eq!(permitted(&host, vec![local, usable], false).unwrap(), [usable]);
        assert!(permitted(&host, vec![local], false).unwrap_err().message().contains("link-local"));
        let own = address("127.0.0.1:22");
        assert!(permitted(&host, vec![usable, own], false).is_err(), "a name that leads here is refused");
        assert_eq!(permitted(&host, vec![usable, own], true).unwrap(), [usable, own]);
    }

    #[tokio::test]
    async fn address_that_swallows_packets_holds_nothing_up() {
        let host = Endpoint::direct(&HostAddress::parse("edge.lan", false).unwrap(), 22);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let swallows = full.local_addr().unwrap();
        // The kernel drops what comes when the queue of a listener is full.
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(swallows)).await {
            queued.push(stream.unwrap());
        }
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answers = open.local_addr().unwrap();
        let limit = Duration::from_secs(60);
        let dialled =
            timeout(Duration::from_secs(20), first_that_answers(&host, vec![swallows, answers], limit));
        assert_eq!(dialled.await.unwrap().unwrap().peer_addr().unwrap(), answers);

        drop(open);
        let refused = first_that_answers(&host, vec![answers], limit).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::HostUnreachable);
        assert!(first_that_answers(&host, Vec::new(), limit).await.is_err());
    }
}

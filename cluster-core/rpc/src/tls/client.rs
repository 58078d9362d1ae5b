//! Dials with TLS.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use aegis_types::error::{Error, Result};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::{Credentials, Expect, TlsConnection, open::PeerSide};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A server sends data as soon as it has accepted the client.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// Host and port to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    host: Host,
    port: u16,
}

impl HostPort {
    pub fn of(url: &Url) -> Result<Self> {
        let refused = || {
            Error::invalid(format!("{url} names no host and port"))
                .remedy("write it with its port, like https://host:50056")
        };
        let host = url.host().ok_or_else(refused)?.to_owned();
        Ok(Self { host, port: url.port_or_known_default().ok_or_else(refused)? })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = match &self.host {
            Host::Domain(name) => TcpStream::connect((name.as_str(), self.port)).await?,
            Host::Ipv4(address) => TcpStream::connect((*address, self.port)).await?,
            Host::Ipv6(address) => TcpStream::connect((*address, self.port)).await?,
        };
        // Small messages in both directions: Nagle's algorithm would cost 40 ms each.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn server_name(&self) -> io::Result<ServerName<'static>> {
        match &self.host {
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(io::Error::other),
            Host::Ipv4(address) => Ok(ServerName::from(IpAddr::from(*address))),
            Host::Ipv6(address) => Ok(ServerName::from(IpAddr::from(*address))),
        }
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Opens a connection that both ends have accepted. Also returns whether the client showed a certificate. A handshake
/// error can be read with [`super::refusal::of`].
pub async fn connect(
    credentials: &Credentials,
    to: &HostPort,
    expect: Expect,
    bare: bool,
) -> io::Result<(TlsConnection, bool)> {
    let (config, shown) = credentials.client(expect, bare).map_err(io::Error::other)?;
    let stream = to.connect().await?;
    let remote = stream.peer_addr()?;
    let connector = TlsConnector::from(Arc::new(config));
    let handshake = connector.connect(to.server_name()?, stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake was not finished in time")
    })??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let entry = credentials.enter(PeerSide::Server, chain);
    let connection = TlsConnection::new(stream.into(), remote, None, entry, None);
    Ok((connection.confirm(CONFIRM_TIMEOUT).await?, shown))
}

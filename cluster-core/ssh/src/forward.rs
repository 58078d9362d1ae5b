//! Listening ends on the host, and channels to ends on the host.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};
use russh::Channel;
use tokio::{sync::mpsc, time::timeout};

use super::connection::{Connection, SshStream, lock};
use crate::{ForwardEndpoint, endpoint::LOOPBACK};

const REQUEST_LIMIT: Duration = Duration::from_secs(10);

impl Connection {
    /// Opens a channel to an end on the host.
    pub async fn open_channel(&self, end: &ForwardEndpoint) -> Result<SshStream> {
        match end {
            ForwardEndpoint::Socket(path) => {
                let opening = self.handle().channel_open_direct_streamlocal(path);
                self.opened(opening, end.to_string()).await.map(Channel::into_stream)
            }
            ForwardEndpoint::Port(port) => self.open_tcp(LOOPBACK, *port).await,
        }
    }

    /// Makes the host listen at an end, and sends every connection to `taker`. If `taker` is full, new connections are
    /// rejected. A stale socket file must be removed before.
    pub async fn listen(&self, end: &ForwardEndpoint, taker: mpsc::Sender<SshStream>) -> Result<()> {
        lock(self.forwards())?.insert(end.clone(), taker);
        let asked = async {
            match end {
                ForwardEndpoint::Socket(path) => self.handle().streamlocal_forward(path.as_str()).await,
                ForwardEndpoint::Port(port) => {
                    self.handle().tcpip_forward(LOOPBACK, u32::from(*port)).await.map(drop)
                }
            }
        };
        let error = match timeout(REQUEST_LIMIT, asked).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(russh::Error::RequestDenied)) => self.denied(end),
            Ok(Err(error)) => self.lost().source(error),
            Err(_) => self.lost(),
        };
        lock(self.forwards())?.remove(end);
        Err(error)
    }

    /// Listens at a port that the host chooses.
    pub async fn listen_somewhere(&self, taker: mpsc::Sender<SshStream>) -> Result<ForwardEndpoint> {
        let port = match timeout(REQUEST_LIMIT, self.handle().tcpip_forward(LOOPBACK, 0)).await {
            Ok(Ok(port)) => u16::try_from(port).map_err(|_| Error::internal("a port above 65535"))?,
            Ok(Err(russh::Error::RequestDenied)) => return Err(self.denied(&ForwardEndpoint::Port(0))),
            Ok(Err(error)) => return Err(self.lost().source(error)),
            Err(_) => return Err(self.lost()),
        };
        let end = ForwardEndpoint::Port(port);
        lock(self.forwards())?.insert(end.clone(), taker);
        Ok(end)
    }

    pub async fn unlisten(&self, end: &ForwardEndpoint) -> Result<()> {
        lock(self.forwards())?.remove(end);
        let asked = async {
            match end {
                ForwardEndpoint::Socket(path) => {
                    self.handle().cancel_streamlocal_forward(path.as_str()).await
                }
                ForwardEndpoint::Port(port) => {
                    self.handle().cancel_tcpip_forward(LOOPBACK, u32::from(*port)).await
                }
            }
        };
        match timeout(REQUEST_LIMIT, asked).await {
            Ok(Ok(())) | Ok(Err(russh::Error::RequestDenied)) => Ok(()),
            Ok(Err(error)) => Err(self.lost().source(error)),
            Err(_) => Err(self.lost()),
        }
    }

    /// Returns the error of a rejected request. sshd does not say whether forwarding is forbidden or impossible.
    fn denied(&self, end: &ForwardEndpoint) -> Error {
        let host = &self.target().host;
        let refused = |why: String| Error::new(ErrorCode::HostCheckFailed, why);
        match end {
            ForwardEndpoint::Socket(path) => refused(format!("{host} refuses to forward the socket {path}")).remedy(
                "set AllowStreamLocalForwarding yes and AllowTcpForwarding yes (and no DisableForwarding) in \
                 sshd_config on the host",
            ),
            ForwardEndpoint::Port(0) => refused(format!("{host} refuses to forward a port of its loopback"))
                .remedy("set AllowTcpForwarding yes (and no DisableForwarding) in sshd_config on the host"),
            ForwardEndpoint::Port(port) => {
                refused(format!("{host} does not forward {end}: it may not, or it is taken")).remedy(format!(
                    "see who listens there: ss -ltnp 'sport = :{port}'; sshd needs AllowTcpForwarding yes"
                ))
            }
        }
    }
}

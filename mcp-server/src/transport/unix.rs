//! The sockets in the data directory: made by its owner, for its owner's processes alone.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use cluster_core::{
    fs::DataDirectory,
    types::error::{Error, ErrorCode, Result},
};
use tokio::net::{UnixListener, UnixStream};

/// REST for the command line.
pub const API: &str = "api.sock";
/// MCP streams, after the handshake.
pub const MCP: &str = "mcp.sock";

/// Header of requests over [`API`]: the socket of the client's ssh agent. The daemon may outlive the agent of the login
/// that started it.
pub const SSH_AGENT: &str = "x-aegis-ssh-agent";

/// Returns the socket of this process's ssh agent.
pub fn ssh_agent() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("SSH_AUTH_SOCK")?);
    path.is_absolute().then_some(path)
}

/// A listening socket, removed when the daemon ends.
#[derive(Debug)]
pub struct Socket {
    pub listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Only the owner of the data directory may call this: a socket that is left there is stale then.
    pub fn bind(data: &DataDirectory, name: &str) -> Result<Self> {
        let path = data.path().join(name);
        let failed = |e: std::io::Error| {
            Error::new(ErrorCode::Storage, format!("the socket {} cannot be made", path.display()))
                .remedy("a socket's path has at most 107 bytes: use a data directory with a shorter one")
                .source(e)
        };
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// The next connection of our own user; others are turned away.
    pub async fn accept(&self) -> std::io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == nix::unistd::geteuid().as_raw() {
                return Ok(stream);
            }
            tracing::warn!(uid, socket = %self.path.display(), "a process of another user was turned away");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Left behind, it would be replaced at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

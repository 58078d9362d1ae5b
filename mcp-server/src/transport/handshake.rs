//! The first line on `mcp.sock`, both ways: which version speaks, so that a client of another build
//! gets words instead of a broken stream; and which tools the assistant's side gives up.

use std::{path::PathBuf, time::Duration};

use cluster_core::types::error::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::caller::ToolFilter;

/// Rises when what follows the first line changes.
pub const PROTOCOL: u32 = 1;
/// All tools by name fit.
const LINE_BYTES_MAX: usize = 4096;
const TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub aegis: String,
    pub protocol: u32,
    /// The daemon's: it heeds `narrowing`.
    #[serde(default)]
    pub narrows: bool,
    /// The assistant's side: what this connection gives up.
    #[serde(default)]
    pub narrowing: ToolFilter,
    /// The assistant's side: the socket of its ssh agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_agent: Option<PathBuf>,
}

impl Hello {
    fn of_daemon() -> Self {
        Self { narrows: true, ..Self::of_assistant(ToolFilter::default(), None) }
    }

    fn of_assistant(narrowing: ToolFilter, ssh_agent: Option<PathBuf>) -> Self {
        let aegis = env!("CARGO_PKG_VERSION").to_owned();
        Self { aegis, protocol: PROTOCOL, narrows: false, narrowing, ssh_agent }
    }
}

/// The assistant's side. A daemon that would not heed the narrowing is an error.
pub async fn greet<R, W>(
    read: &mut R,
    write: &mut W,
    narrowing: ToolFilter,
    ssh_agent: Option<PathBuf>,
) -> Result<Hello>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let narrows = narrowing != ToolFilter::default();
    let theirs = shake(read, write, Hello::of_assistant(narrowing, ssh_agent)).await?;
    if narrows && !theirs.narrows {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            "the daemon that runs is of another version and knows neither --read-only nor --tools",
        )
        .remedy("run `aegis stop`, then start the assistant's connection again"));
    }
    Ok(theirs)
}

/// The daemon's side.
pub async fn answer<R, W>(read: &mut R, write: &mut W) -> Result<Hello>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    shake(read, write, Hello::of_daemon()).await
}

/// Says our line, reads theirs, and fails when the two cannot talk.
async fn shake<R, W>(read: &mut R, write: &mut W, ours: Hello) -> Result<Hello>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let broken = |e: std::io::Error| Error::new(ErrorCode::Unavailable, "the connection broke").source(e);
    let both = async {
        let mut line = serde_json::to_vec(&ours)
            .map_err(|e| Error::internal("the handshake cannot be written").source(e))?;
        line.push(b'\n');
        write.write_all(&line).await.map_err(broken)?;
        write.flush().await.map_err(broken)?;
        let theirs = read_line(read).await?;
        if theirs.protocol != PROTOCOL {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "this is aegis {} and the other side is aegis {}: they speak different protocols",
                    env!("CARGO_PKG_VERSION"),
                    cluster_core::types::text::shown(&theirs.aegis)
                ),
            )
            .remedy(match theirs.protocol > PROTOCOL {
                true => "restart the assistant's connection to aegis, so that the newer one is started",
                false => "run `aegis stop`: the next request starts the newer one",
            }));
        }
        Ok(theirs)
    };
    tokio::time::timeout(TIME_MAX, both)
        .await
        .map_err(|_| Error::new(ErrorCode::Timeout, "the other side did not say its version"))?
}

/// Byte by byte, so that nothing of what follows is taken.
async fn read_line<R: AsyncRead + Unpin>(read: &mut R) -> Result<Hello> {
    let mut line = Vec::new();
    loop {
        let byte = read
            .read_u8()
            .await
            .map_err(|e| Error::new(ErrorCode::Unavailable, "the connection was closed").source(e))?;
        if byte == b'\n' {
            break;
        }
        if line.len() == LINE_BYTES_MAX {
            return Err(Error::invalid("the first line is too long for a handshake"));
        }
        line.push(byte);
    }
    serde_json::from_slice(&line).map_err(|e| Error::invalid("the first line is no handshake").source(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_of_one_version_agree_and_take_nothing_more() {
        let (a, b) = tokio::io::duplex(4096);
        let (mut ar, mut aw) = tokio::io::split(a);
        let (mut br, mut bw) = tokio::io::split(b);
        let narrowing = ToolFilter { read_only: true, tools: Some(vec!["list_peers".to_owned()]) };
        let (left, right) =
            tokio::join!(greet(&mut ar, &mut aw, narrowing.clone(), Some("/run/agent".into())), async {
                let hello = answer(&mut br, &mut bw).await;
                bw.write_all(b"next").await.unwrap();
                hello
            });
        let (daemon, assistant) = (left.unwrap(), right.unwrap());
        assert_eq!(daemon.protocol, assistant.protocol);
        assert_eq!(assistant.narrowing, narrowing);
        assert_eq!(assistant.ssh_agent.as_deref(), Some(std::path::Path::new("/run/agent")));
        let mut rest = [0; 4];
        ar.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"next");
    }

    #[tokio::test]
    async fn another_protocol_a_long_line_and_no_json_are_refused() {
        for line in [
            "{\"aegis\":\"9\",\"protocol\":2}\n".to_owned(),
            "x".repeat(5000),
            "{\"jsonrpc\":\"2.0\"}\n".to_owned(),
        ] {
            let mut written = Vec::new();
            assert!(answer(&mut line.as_bytes(), &mut written).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_daemon_that_would_not_narrow_is_not_used_for_it() {
        let line = format!("{{\"aegis\":\"0\",\"protocol\":{PROTOCOL}}}\n");
        let narrowing = ToolFilter { read_only: true, tools: None };
        let refused = greet(&mut line.as_bytes(), &mut Vec::new(), narrowing, None).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::FailedPrecondition);
        greet(&mut line.as_bytes(), &mut Vec::new(), ToolFilter::default(), None).await.unwrap();
    }
}

//! The first line on `mcp.sock`, both ways: which version speaks, so that a client of another build
//! gets words instead of a broken stream.

use std::time::Duration;

use cluster_core::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Rises when what follows the first line changes.
pub const PROTOCOL: u32 = 1;
const LINE_BYTES_MAX: usize = 1024;
const TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub aegis: String,
    pub protocol: u32,
}

impl Hello {
    fn ours() -> Self {
        Self { aegis: env!("CARGO_PKG_VERSION").to_owned(), protocol: PROTOCOL }
    }
}

/// Says our line, reads theirs, and fails when the two cannot talk.
pub async fn shake<R, W>(read: &mut R, write: &mut W) -> Result<Hello>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let broken = |e: std::io::Error| Error::new(ErrorCode::Unavailable, "the connection broke").source(e);
    let both = async {
        let mut line = serde_json::to_vec(&Hello::ours())
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
                    cluster_core::ids::shown(&theirs.aegis)
                ),
            )
            .remedy("run `aegis stop`, then start the assistant's connection again"));
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
        let (left, right) = tokio::join!(shake(&mut ar, &mut aw), async {
            let hello = shake(&mut br, &mut bw).await;
            bw.write_all(b"next").await.unwrap();
            hello
        });
        assert_eq!(left.unwrap(), right.unwrap());
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
            assert!(shake(&mut line.as_bytes(), &mut written).await.is_err());
        }
    }
}

//! HTTP to services on the host's loopback, through the SSH connection. Uses HTTP/1.0, where a response ends with its
//! connection and is never chunked.

use std::time::Duration;

use aegis_ssh::{Connection, SshStream};
use aegis_types::error::{Error, ErrorCode, Result};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::timeout,
};

const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;
/// Longest line of a response, head and body.
const LINE_BYTES_MAX: u64 = 64 * 1024;
const HEAD_LINES_MAX: usize = 100;

/// Services on loopback reject requests without a matching `Host`, and so does the node.
const HOST: &str = "Host: 127.0.0.1\r\n";

/// Result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// Nothing listens there, or the response did not arrive in time.
    Nothing,
    /// sshd forwards no TCP channels.
    Forbidden,
}

/// Sends a GET request and reads the whole response, at most 1 MiB.
pub async fn get(connection: &Connection, port: u16, path: &str) -> Result<Reply> {
    let asking = async {
        let mut lines =
            match Lines::ask(connection, port, &format!("GET {path} HTTP/1.0\r\n{HOST}\r\n")).await? {
                Asked::Lines(lines) => lines,
                Asked::Nothing => return Ok(Reply::Nothing),
                Asked::Forbidden => return Ok(Reply::Forbidden),
            };
        let mut body = Vec::new();
        let read = (&mut lines.stream).take(ANSWER_BYTES_MAX).read_to_end(&mut body).await;
        Ok(match read {
            Ok(_) => Reply::Answer { status: lines.status, body },
            Err(_) => Reply::Nothing,
        })
    };
    timeout(REQUEST_LIMIT, asking).await.unwrap_or(Ok(Reply::Nothing))
}

/// Sends a POST request whose response is read line by line, without a time limit.
pub async fn post(connection: &Connection, port: u16, path: &str, body: &str) -> Result<Asked> {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\n{HOST}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    Lines::ask(connection, port, &request).await
}

#[derive(Debug)]
pub enum Asked {
    Lines(Box<Lines>),
    Nothing,
    Forbidden,
}

/// Response whose head was read.
pub struct Lines {
    pub status: u16,
    stream: BufReader<SshStream>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lines({})", self.status)
    }
}

impl Lines {
    async fn ask(connection: &Connection, port: u16, request: &str) -> Result<Asked> {
        let mut stream = match connection.open_tcp("127.0.0.1", port).await {
            Ok(stream) => stream,
            Err(error) if error.code() == ErrorCode::HostCheckFailed => return Ok(Asked::Forbidden),
            Err(error) if error.code() == ErrorCode::Unavailable => return Ok(Asked::Nothing),
            Err(error) => return Err(error),
        };
        if stream.write_all(request.as_bytes()).await.is_err() {
            return Ok(Asked::Nothing);
        }
        let mut lines = Lines { status: 0, stream: BufReader::new(stream) };
        for at in 0..HEAD_LINES_MAX {
            let Ok(Some(line)) = lines.next().await else { return Ok(Asked::Nothing) };
            if at == 0 {
                let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
                lines.status = status.unwrap_or(0);
            } else if line.is_empty() {
                return Ok(Asked::Lines(Box::new(lines)));
            }
        }
        Ok(Asked::Nothing)
    }

    /// Returns the next line without its line end; `None` at the end of the response.
    pub async fn next(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        let lost = |why: &str| Error::new(ErrorCode::Unavailable, format!("an answer from the host {why}"));
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.len() as u64 == LINE_BYTES_MAX => Err(lost("has a line that is too long")),
            Ok(_) => Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned())),
            Err(error) => Err(lost("broke off").source(error)),
        }
    }
}

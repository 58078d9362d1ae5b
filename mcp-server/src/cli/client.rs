//! The daemon's REST API over its unix socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cluster_core::{
    core::HealthView,
    types::error::{Error, ErrorCode, Failure, Result},
};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::transport::unix;

/// Above every wait that we ask for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(150);
/// The largest list there is has about a thousand entries.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// One message of an event stream: an output chunk is far smaller.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(data_dir: &Path) -> Self {
        Self { socket: data_dir.join(unix::API) }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// A body that is text of its own, and not our JSON.
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, text: String) -> Result<T> {
        read(path, self.send(Method::POST, path, text.into()).await?).await
    }

    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::DELETE, path, None::<&()>).await
    }

    /// The daemon's health, also when it is not ready.
    pub async fn health(&self) -> Result<HealthView> {
        let response = self.raw(Method::GET, "/health", Bytes::new()).await?;
        let body = whole(response).await?;
        serde_json::from_slice(&body)
            .map_err(|e| Error::internal("the daemon's health is not understood").source(e))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|e| Error::internal("the request cannot be written").source(e))?,
            None => Vec::new(),
        };
        read(path, self.send(method, path, body.into()).await?).await
    }

    /// Sends. The time bound ends where the body begins.
    async fn raw(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.absent(e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(path, e))?;
        // Ends with the response's body.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if let Some(socket) = unix::ssh_agent() {
            request = request.header(unix::SSH_AGENT, socket.as_os_str().as_encoded_bytes());
        }
        let request = request
            .header(http::header::HOST, "localhost")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| Error::invalid(format!("{path} is no path")).source(e))?;
        tokio::time::timeout(ANSWER_TIME_MAX, sender.send_request(request))
            .await
            .map_err(|_| Error::new(ErrorCode::Timeout, format!("the daemon did not answer {path}")))?
            .map_err(|e| broken(path, e))
    }

    /// Sends, and turns an error answer into an error.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let response = self.raw(method, path, body).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = whole(response).await?;
        Err(match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => failure.into(),
            Err(e) => Error::internal(format!("the daemon answered {path} with {status}")).source(e),
        })
    }

    fn absent(&self, e: std::io::Error) -> Error {
        Error::new(ErrorCode::Unavailable, format!("no aegis daemon answers at {}", self.socket.display()))
            .remedy("start it with `aegis up`")
            .source(e)
    }

    /// Writes the body of an answer to a file, as it comes.
    pub async fn download(&self, path: &str, to: &mut std::fs::File) -> Result<()> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| broken(path, e))?;
            let Ok(data) = frame.into_data() else { continue };
            std::io::Write::write_all(to, &data).map_err(|e| {
                Error::new(ErrorCode::Storage, format!("what {path} answers cannot be written")).source(e)
            })?;
        }
        Ok(())
    }

    /// Follows a stream of events: `each` gets name and data, and says whether to go on. `again` is the
    /// command that goes on where a broken stream stopped.
    pub async fn follow(
        &self,
        path: &str,
        again: &str,
        mut each: impl FnMut(&str, &str) -> Result<bool>,
    ) -> Result<()> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let mut body = response.into_body();
        let mut messages = Messages::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| broken(path, e))?;
            let Ok(data) = frame.into_data() else { continue };
            messages.feed(&data)?;
            while let Some((name, data)) = messages.next() {
                if !each(&name, &data)? {
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorCode::Unavailable, "the daemon ended the stream")
            .remedy(format!("once it runs again: {again}")))
    }
}

async fn read<T: DeserializeOwned>(path: &str, response: Response<Incoming>) -> Result<T> {
    let body = whole(response).await?;
    serde_json::from_slice(&body).map_err(|e| {
        Error::internal(format!("the daemon's answer to {path} is not understood"))
            .remedy("the daemon may be of another version: run `aegis stop`, then `aegis up`")
            .source(e)
    })
}

async fn whole(response: Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() {
            Error::new(ErrorCode::ResourceExhausted, "the daemon's answer is too large")
        } else {
            Error::new(ErrorCode::Unavailable, "the connection to the daemon broke").source(e)
        }
    })?;
    Ok(body.to_bytes())
}

fn broken(path: &str, e: hyper::Error) -> Error {
    Error::new(ErrorCode::Unavailable, format!("the connection to the daemon broke at {path}"))
        .remedy("`aegis status` says whether it runs; aegis.log in the data directory says why not")
        .source(e)
}

/// Server-sent events out of chunks that break anywhere.
#[derive(Debug, Default)]
struct Messages {
    buffer: Vec<u8>,
}

impl Messages {
    fn feed(&mut self, data: &[u8]) -> Result<()> {
        if self.buffer.len() + data.len() > MESSAGE_BYTES_MAX {
            return Err(Error::new(ErrorCode::ResourceExhausted, "an event is too large"));
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// The next whole message that has data.
    fn next(&mut self) -> Option<(String, String)> {
        loop {
            let end = self.buffer.windows(2).position(|two| two == b"\n\n")?;
            let message: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let message = String::from_utf8_lossy(&message).into_owned();
            let (mut name, mut data) = ("message".to_owned(), Vec::new());
            for line in message.lines() {
                match line.split_once(':') {
                    Some(("event", value)) => value.trim_start().clone_into(&mut name),
                    Some(("data", value)) => data.push(value.strip_prefix(' ').unwrap_or(value).to_owned()),
                    _ => {}
                }
            }
            if !data.is_empty() {
                return Some((name, data.join("\n")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_stream_is_cut() {
        let stream = b"event: event\nid: 1\ndata: {\"a\":1}\n\n:\n\nevent: end\ndata: {}\n\n";
        for size in [1, 3, 7, stream.len()] {
            let mut messages = Messages::default();
            let mut found = Vec::new();
            for chunk in stream.chunks(size) {
                messages.feed(chunk).unwrap();
                while let Some(message) = messages.next() {
                    found.push(message);
                }
            }
            assert_eq!(
                found,
                [("event".to_owned(), "{\"a\":1}".to_owned()), ("end".to_owned(), "{}".to_owned())]
            );
        }
    }
}

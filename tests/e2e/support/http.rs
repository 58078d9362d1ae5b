//! HTTP without a client: every header is set by the test.

use std::{path::Path, sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName},
    },
};

use super::poll::within;

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    /// Returns the JSON-RPC answer of a POST to `/mcp`, from JSON or from an event stream.
    pub fn message(&self) -> Value {
        let stream = self.body.lines().filter_map(|line| line.strip_prefix("data:"));
        let texts = stream.map(str::trim).chain([self.body.trim()]);
        let mut messages = texts.filter_map(|text| serde_json::from_str::<Value>(text).ok());
        let found = messages.find(|message| message.get("id").is_some());
        found.unwrap_or_else(|| panic!("no answer in {} {}", self.status, self.body))
    }
}

pub async fn send(address: &str, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let stream = TcpStream::connect(address).await.expect("it listens");
    request(stream, method, path, headers, body).await.expect("an answer")
}

/// Like [`send`], with TLS. The server must show this certificate for this name.
pub async fn send_tls(
    address: &str,
    (name, certificate): (&'static str, CertificateDer<'static>),
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Reply, String> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(|e| e.to_string())?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from(name).map_err(|e| e.to_string())?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = within("a TLS handshake", LIMIT, connecting).await.map_err(|e| e.to_string())?;
    request(stream, Method::GET, path, headers, "").await
}

/// Like [`send`], for a server that need not answer.
pub async fn try_send(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Reply, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    request(stream, Method::GET, path, headers, "").await
}

/// Returns a body of JSON, or the error.
pub async fn get_unix(socket: &Path, path: &str) -> Result<Value, String> {
    json(send_unix(socket, Method::GET, path, &Value::Null).await?)
}

/// Like [`get_unix`], with a body.
pub async fn post_unix(socket: &Path, path: &str, body: &Value) -> Result<Value, String> {
    json(send_unix(socket, Method::POST, path, body).await?)
}

fn json(reply: Reply) -> Result<Value, String> {
    serde_json::from_str(&reply.body).map_err(|e| format!("{}: {e}: {}", reply.status, reply.body))
}

/// Sends any request over a unix socket, with an optional body of JSON.
pub async fn send_unix(socket: &Path, method: Method, path: &str, body: &Value) -> Result<Reply, String> {
    let stream = UnixStream::connect(socket).await.map_err(|e| e.to_string())?;
    let headers = [("host", "localhost"), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    request(stream, method, path, &headers, &body).await
}

/// Returns a body as a stream.
pub async fn open_unix(socket: &Path, path: &str) -> Incoming {
    let stream = UnixStream::connect(socket).await.expect("it listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Full::new(Bytes::new()));
    sender.send_request(request.expect("a request")).await.expect("an answer").into_body()
}

/// Reads a body until it ends or holds the expected text.
pub async fn read_unix(socket: &Path, path: &str, holds: impl Fn(&str) -> bool) -> String {
    read(open_unix(socket, path).await, path, holds).await
}

/// Like [`read_unix`], for an open body. Before the call, its connection buffers only what fits.
pub async fn read(mut body: Incoming, path: &str, holds: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.expect("a part").into_data() {
                text.push_str(&String::from_utf8_lossy(&data));
            }
            if holds(&text) {
                break;
            }
        }
    };
    within(path, LIMIT, read).await;
    text
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Reply, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
    let answered = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    };
    within(path, LIMIT, answered).await
}

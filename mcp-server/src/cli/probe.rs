//! `aegis probe URL`: exits 0 when a loopback URL answers with success. The container of a node has no
//! curl; this is its health check.

use std::time::Duration;

use clap::Args;
use cluster_core::types::error::{Error, ErrorCode, Result};
use http::{Request, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Below the health check's own timeout.
const PROBE_TIME_MAX: Duration = Duration::from_secs(4);
const HTTP_PORT: u16 = 80;

#[derive(Debug, Args)]
pub struct Probe {
    /// Like http://127.0.0.1:8090/health
    url: url::Url,
}

impl Probe {
    pub async fn run(self) -> Result<()> {
        let host = match (self.url.scheme(), self.url.host()) {
            ("http", Some(url::Host::Ipv4(ip))) if ip.is_loopback() => ip.to_string(),
            ("http", Some(url::Host::Ipv6(ip))) if ip.is_loopback() => ip.to_string(),
            ("http", Some(url::Host::Domain("localhost"))) => "localhost".to_owned(),
            _ => return Err(Error::invalid("only http URLs of this machine's loopback are probed")),
        };
        let port = self.url.port().unwrap_or(HTTP_PORT);
        tokio::time::timeout(PROBE_TIME_MAX, self.get(&host, port))
            .await
            .map_err(|_| Error::new(ErrorCode::Timeout, format!("{} did not answer in time", self.url)))?
    }

    async fn get(&self, host: &str, port: u16) -> Result<()> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorCode::Unavailable, format!("{} does not answer", self.url)).source(e)
        };
        let stream = TcpStream::connect((host, port)).await.map_err(|e| failed(e.into()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(e.into()))?;
        tokio::spawn(connection);
        let request = Request::get(self.url.path())
            .header(header::HOST, format!("{}:{port}", self.url.host_str().unwrap_or("localhost")))
            .body(Empty::<Bytes>::new())
            .map_err(|e| failed(e.into()))?;
        let status = sender.send_request(request).await.map_err(|e| failed(e.into()))?.status();
        if status.is_success() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Unavailable, format!("{} answers {status}", self.url)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_loopback_is_probed() {
        for bad in ["http://example.com/", "https://127.0.0.1/", "http://10.0.0.1/", "file:///etc/passwd"] {
            let error = Probe { url: bad.parse().unwrap() }.run().await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{bad}");
        }
    }
}

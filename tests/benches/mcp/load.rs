//! Clients of 2026-07-28, each with one connection, that call `list_peers` repeatedly.

use std::time::{Duration, Instant};

use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet};

use crate::support::raw;

#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: String,
    pub token: Option<String>,
    /// Text for failures.
    pub about: &'static str,
}

/// Result of one round.
pub struct Measured {
    /// Calls per second, of all clients together.
    pub rate: f64,
    /// Latency of each call, sorted.
    latencies: Vec<Duration>,
}

impl Measured {
    /// Returns the latency below which this share of the calls lies.
    pub fn milliseconds(&self, share: f64) -> f64 {
        let place = (self.latencies.len() as f64 * share) as usize;
        self.latencies[place.min(self.latencies.len() - 1)].as_secs_f64() * 1_000.0
    }
}

pub async fn run(endpoint: &Endpoint, clients: usize, length: Duration) -> Measured {
    let mut all = Vec::new();
    for _ in 0..clients {
        all.push(Client::connect(endpoint).await);
    }
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for mut client in all {
        running.spawn(async move {
            let mut latencies = Vec::new();
            while begun.elapsed() < length {
                let since = Instant::now();
                client.call().await;
                latencies.push(since.elapsed());
            }
            latencies
        });
    }
    let mut latencies = running.join_all().await.concat();
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    latencies.sort();
    Measured { rate, latencies }
}

/// Returns the structured result of one call.
pub async fn one(endpoint: &Endpoint) -> Value {
    let body = Client::connect(endpoint).await.call().await;
    let text = String::from_utf8(body.to_vec()).expect("UTF-8");
    let stream = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let mut messages =
        stream.chain([&*text]).filter_map(|text| serde_json::from_str::<Value>(text.trim()).ok());
    let answer = messages.find(|message| message.get("id").is_some());
    let answer = answer.unwrap_or_else(|| panic!("{}: no answer in {text}", endpoint.about));
    answer["result"]["structuredContent"].clone()
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    endpoint: Endpoint,
    body: Bytes,
    /// Length of the first answer. Later answers have the same length, except for the ages in them.
    length: Option<usize>,
}

impl Client {
    async fn connect(endpoint: &Endpoint) -> Self {
        let stream = TcpStream::connect(&endpoint.address).await.expect("it listens");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "list_peers", "arguments": {}, "_meta": raw::modern()}});
        Self { sender, endpoint: endpoint.clone(), body: call.to_string().into(), length: None }
    }

    /// Reads the whole answer, which must match the first.
    async fn call(&mut self) -> Bytes {
        let mut request = Request::post("/mcp")
            .header(header::HOST, &self.endpoint.address)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/call")
            .header("mcp-name", "list_peers");
        if let Some(token) = &self.endpoint.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(self.body.clone())).expect("a request");
        self.sender.ready().await.expect("a connection that stays");
        let response = self.sender.send_request(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a whole answer").to_bytes();
        let first = *self.length.get_or_insert(body.len());
        let about = self.endpoint.about;
        assert!(status.is_success() && body.len() * 10 > first * 9, "{about}: {status} {body:?}");
        body
    }
}

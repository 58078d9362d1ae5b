//! Streamable HTTP without a client: requests to `/mcp`, and their event streams message by message.

use std::{collections::VecDeque, time::Duration};

use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    controller::Controller,
    poll::within,
    raw::{initialize, modern},
};

const LIMIT: Duration = Duration::from_secs(60);
const NEWEST: &str = "2026-07-28";
const SESSION: &str = "mcp-session-id";

/// Address at which a controller serves MCP over HTTP, and its token.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: String,
    token: String,
}

impl Endpoint {
    pub fn of(controller: &Controller) -> Self {
        Self { address: controller.address().expect("HTTP is served"), token: controller.token() }
    }

    /// Sends a request on its own connection, which closes when its stream is dropped.
    async fn send(&self, method: Method, headers: &[(&str, &str)], body: &Value) -> Stream {
        let stream = TcpStream::connect(&self.address).await.expect("it listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri("/mcp")
            .header("host", &self.address)
            .header("authorization", format!("Bearer {}", self.token))
            .header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        let answer = within("an answer over HTTP", LIMIT, sender.send_request(request)).await;
        let (parts, body) = answer.expect("an answer").into_parts();
        Stream {
            status: parts.status,
            headers: parts.headers,
            body,
            unread: Vec::new(),
            notes: VecDeque::new(),
        }
    }
}

/// Response stream.
pub struct Stream {
    pub status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    /// Received bytes that are not a complete line yet.
    unread: Vec<u8>,
    /// Notifications received while waiting for an answer.
    notes: VecDeque<Value>,
}

impl Stream {
    /// Returns the next message; `None` after a regular end of the stream. Fails if the stream breaks off.
    pub async fn message(&mut self) -> Option<Value> {
        let next = async {
            loop {
                while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                    let line = self.unread.drain(..=end).collect::<Vec<_>>();
                    let data = line.strip_prefix(b"data:").unwrap_or(&line);
                    if let Ok(message) = serde_json::from_slice(data) {
                        return Some(message);
                    }
                }
                match self.body.frame().await {
                    Some(frame) => {
                        let data = frame.expect("the stream does not break off").into_data();
                        self.unread.extend_from_slice(&data.unwrap_or_default());
                    }
                    // JSON alone ends without a line's end.
                    None => return serde_json::from_slice(&std::mem::take(&mut self.unread)).ok(),
                }
            }
        };
        within("a message over HTTP", LIMIT, next).await
    }

    /// Returns the answer to the request with this id; notifications before it are kept.
    pub async fn answer(&mut self, id: &Value) -> Value {
        loop {
            let message = self.message().await.expect("an answer before the end");
            if message["id"] == *id && message.get("method").is_none() {
                return message;
            }
            self.notes.push_back(message);
        }
    }

    /// Returns the next notification of this method.
    pub async fn note(&mut self, method: &str) -> Value {
        if let Some(place) = self.notes.iter().position(|note| note["method"] == method) {
            return self.notes.remove(place).expect("it is there");
        }
        loop {
            let note = self.message().await.expect("a notification before the end");
            if note["method"] == method {
                return note;
            }
            self.notes.push_back(note);
        }
    }
}

/// Client of one era.
pub struct Client {
    endpoint: Endpoint,
    /// Session id of an older client.
    session: Option<String>,
    asked: u64,
}

impl Client {
    pub async fn older(controller: &Controller) -> Self {
        let endpoint = Endpoint::of(controller);
        let mut stream = endpoint.send(Method::POST, &[], &initialize()).await;
        stream.answer(&initialize()["id"]).await;
        let session = stream.headers[SESSION].to_str().expect("text").to_owned();
        let client = Self { endpoint, session: Some(session), asked: 1 };
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(client.send(Method::POST, "", &initialized).await.status, StatusCode::ACCEPTED);
        client
    }

    /// Makes a client without a session, whose requests are self-contained.
    pub fn newer(controller: &Controller) -> Self {
        Self { endpoint: Endpoint::of(controller), session: None, asked: 1 }
    }

    async fn send(&self, method: Method, name: &str, body: &Value) -> Stream {
        let headers = match &self.session {
            Some(session) => vec![(SESSION, session.as_str()), ("mcp-protocol-version", "2025-06-18")],
            None => vec![("mcp-protocol-version", NEWEST), ("mcp-method", name)],
        };
        let what = ["name", "uri"].into_iter().find_map(|key| body["params"][key].as_str());
        let what = what.filter(|_| self.session.is_none()).map(|what| ("mcp-name", what));
        let headers = headers.into_iter().chain(what).collect::<Vec<_>>();
        self.endpoint.send(method, &headers, body).await
    }

    /// Returns the stream of the answer, and the request's id.
    async fn request(&mut self, method: &str, mut params: Value) -> (Stream, Value) {
        self.asked += 1;
        if self.session.is_none() {
            params["_meta"] = modern();
        }
        let request = json!({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params});
        (self.send(Method::POST, method, &request).await, json!(self.asked))
    }

    /// Returns the answer, whether a result or an error.
    pub async fn attempt(&mut self, method: &str, params: Value) -> Value {
        let (mut stream, id) = self.request(method, params).await;
        stream.answer(&id).await
    }

    pub async fn ask(&mut self, method: &str, params: Value) -> Value {
        let answer = self.attempt(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let result = self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await;
        assert_ne!(result["isError"], true, "{tool}: {result}");
        result["structuredContent"].clone()
    }

    pub async fn read(&mut self, uri: &str) -> Value {
        self.ask("resources/read", json!({"uri": uri})).await["contents"][0].clone()
    }

    pub async fn document(&mut self, uri: &str) -> Value {
        let content = self.read(uri).await;
        serde_json::from_str(content["text"].as_str().expect("text")).expect("JSON")
    }

    /// Subscribes in the way of its era. Returns the stream of notifications, and the request's id.
    pub async fn subscribe(&mut self, uris: &[String]) -> (Stream, Value) {
        if self.session.is_none() {
            let filter = json!({"notifications": {"resourceSubscriptions": uris}});
            return self.request("subscriptions/listen", filter).await;
        }
        let stream = self.send(Method::GET, "", &Value::Null).await;
        assert_eq!(stream.status, StatusCode::OK);
        for uri in uris {
            self.ask("resources/subscribe", json!({"uri": uri})).await;
        }
        (stream, Value::Null)
    }

    /// Ends the session of an older client.
    pub async fn leave(self) -> StatusCode {
        self.send(Method::DELETE, "", &Value::Null).await.status
    }
}

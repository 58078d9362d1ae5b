//! JSON-RPC messages as the pipe parses them, and the few messages that it writes itself.
//!
//! A line of the client is parsed completely, as strictly as the daemon does. A valid line gets its answer from the
//! daemon, and an invalid line is answered here. Only the head of a daemon's line is parsed.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value, json};
use tokio_util::bytes;

use super::unique_keys::repeated_key;

/// Codes of JSON-RPC 2.0.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const INVALID_PARAMS: i32 = -32602;
const INTERNAL_ERROR: i32 = -32603;

const KEY_CHARS_SHOWN: usize = 100;

const PROTOCOL_VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Id of a request, of the two kinds that MCP has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_i64().map(Self::Number),
            Value::String(text) => Some(Self::Text(text.clone())),
            _ => None,
        }
    }
}

/// Kind of a request, with respect to a broken connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `tools/call`: may change something, so it is never sent twice.
    Call {
        tool: String,
        /// Request of 2026-07-28, whose results state that they are complete.
        stateless: bool,
    },
    Initialize,
    /// Applies to the session, until replaced by another of the same kind.
    Standing(Standing),
    Unsubscribe {
        uri: String,
    },
    Listen,
    /// Any other request, which only reads.
    Read,
}

/// State that a client of the older eras requests once, and that its daemon keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    LogLevel,
    Subscription { uri: String },
}

#[derive(Debug)]
pub enum FromClient {
    Request {
        id: Id,
        kind: Kind,
    },
    Cancelled {
        request: Option<Id>,
    },
    Initialized,
    /// Another notification.
    Notification,
    /// Answer to a question of the daemon; `None` as id if the answer belongs to no question.
    Answer {
        id: Option<Id>,
        message: Map<String, Value>,
    },
}

/// Invalid line, with the answer that reports it.
#[derive(Debug)]
pub struct NoMessage {
    pub answer: Bytes,
}

/// Returns the answer to an HTTP body that is not JSON, or that repeats a key.
pub fn unfit_body(body: &[u8]) -> Option<Bytes> {
    match repeated_key(body) {
        Ok(None) => None,
        Ok(Some(key)) => {
            // If the id itself is repeated, neither value is right.
            let id = if key == "id" { None } else { serde_json::from_slice(body).ok() };
            let id = id.and_then(|message: Value| Id::of(&message["id"]));
            Some(repeated(id.as_ref(), &key))
        }
        Err(e) => Some(unread(&format!("the body is not JSON: {}", where_of(&e)))),
    }
}

fn repeated(id: Option<&Id>, key: &str) -> Bytes {
    let code = if key.starts_with("params.") { INVALID_PARAMS } else { INVALID_REQUEST };
    let key: String = key.chars().take(KEY_CHARS_SHOWN).collect();
    error_line(id, code, &format!("{key} stands twice in the message; give it once"))
}

/// Parses one line of the client.
pub fn read_client(line: &[u8]) -> Result<FromClient, NoMessage> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    let not_json = |e: &serde_json::Error| NoMessage {
        answer: error_line(None, PARSE_ERROR, &format!("the line is not JSON: {}", where_of(e))),
    };
    let value: Value = serde_json::from_slice(line).map_err(|e| not_json(&e))?;
    let invalid = |id: Option<&Id>, words: &str| NoMessage { answer: error_line(id, INVALID_REQUEST, words) };
    let Value::Object(message) = value else {
        return Err(invalid(None, "a line holds one JSON-RPC message, an object"));
    };
    let id = message.get("id").and_then(Id::of);
    if let Some(key) = repeated_key(line).map_err(|e| not_json(&e))? {
        let id = id.as_ref().filter(|_| key != "id");
        return Err(NoMessage { answer: repeated(id, &key) });
    }
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(invalid(id.as_ref(), "the message does not say \"jsonrpc\": \"2.0\""));
    }
    let Some(method) = message.get("method") else {
        if message.contains_key("result") || message.contains_key("error") {
            return Ok(FromClient::Answer { id, message });
        }
        return Err(invalid(id.as_ref(), "the message has neither a method nor a result nor an error"));
    };
    let Some(method) = method.as_str() else {
        return Err(invalid(id.as_ref(), "the method is not a string"));
    };
    let params = message.get("params").unwrap_or(&Value::Null);
    if !(params.is_object() || params.is_null()) {
        return Err(invalid(id.as_ref(), "params is not an object"));
    }
    let text = |name: &str| params[name].as_str().unwrap_or_default().to_owned();
    if !message.contains_key("id") {
        return Ok(match method {
            "notifications/cancelled" => FromClient::Cancelled { request: Id::of(&params["requestId"]) },
            "notifications/initialized" => FromClient::Initialized,
            _ => FromClient::Notification,
        });
    }
    let Some(id) = id else {
        return Err(invalid(None, "the id of a request is a string or a whole number of 64 bits"));
    };
    let kind = match method {
        "tools/call" => {
            Kind::Call { tool: text("name"), stateless: params["_meta"][PROTOCOL_VERSION_KEY].is_string() }
        }
        "initialize" => Kind::Initialize,
        "resources/subscribe" => Kind::Standing(Standing::Subscription { uri: text("uri") }),
        "logging/setLevel" => Kind::Standing(Standing::LogLevel),
        "resources/unsubscribe" => Kind::Unsubscribe { uri: text("uri") },
        "subscriptions/listen" => Kind::Listen,
        _ => Kind::Read,
    };
    Ok(FromClient::Request { id, kind })
}

/// Returns only the position, since serde's message may quote the line.
fn where_of(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => format!("at byte {}", error.column()),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum FromDaemon {
    Answer {
        id: Id,
        failed: bool,
    },
    /// Request to the client, in the older eras.
    Question {
        id: Id,
    },
    /// Cancels a question, or ends a subscription.
    Cancelled {
        request: Id,
    },
    /// A `subscriptions/listen` is active.
    Acknowledged {
        listen: Id,
    },
    /// Passed to the client unchanged.
    Other,
}

#[derive(Deserialize)]
struct Head {
    id: Option<Id>,
    method: Option<String>,
    error: Option<IgnoredAny>,
    params: Option<HeadParams>,
}

#[derive(Deserialize)]
struct HeadParams {
    #[serde(rename = "requestId")]
    request: Option<Id>,
    #[serde(rename = "_meta")]
    meta: Option<HeadMeta>,
}

#[derive(Deserialize)]
struct HeadMeta {
    #[serde(rename = "io.modelcontextprotocol/subscriptionId")]
    subscription: Option<Id>,
}

/// Parses one line of the daemon; `None` if the line is not JSON-RPC.
pub fn read_daemon(line: &[u8]) -> Option<FromDaemon> {
    let head: Head = serde_json::from_slice(line).ok()?;
    let Some(method) = head.method else {
        return Some(match head.id {
            Some(id) => FromDaemon::Answer { id, failed: head.error.is_some() },
            None => FromDaemon::Other,
        });
    };
    if let Some(id) = head.id {
        return Some(FromDaemon::Question { id });
    }
    let params = head.params;
    let known = match method.as_str() {
        "notifications/cancelled" => {
            params.and_then(|params| params.request).map(|request| FromDaemon::Cancelled { request })
        }
        "notifications/subscriptions/acknowledged" => params
            .and_then(|params| params.meta?.subscription)
            .map(|listen| FromDaemon::Acknowledged { listen }),
        _ => None,
    };
    Some(known.unwrap_or(FromDaemon::Other))
}

/// Returns the version that an answer to `initialize` agreed on.
pub fn negotiated_version(line: &[u8]) -> Option<String> {
    let message: Value = serde_json::from_slice(line).ok()?;
    message["result"]["protocolVersion"].as_str().map(str::to_owned)
}

/// Returns the message with another id.
pub fn with_id(mut message: Map<String, Value>, id: &Id) -> Bytes {
    message.insert("id".to_owned(), json!(id));
    Value::Object(message).to_string().into()
}

/// Returns the line with another id; `None` if the line is no message.
pub fn line_with_id(line: &[u8], id: &Id) -> Option<Bytes> {
    Some(with_id(serde_json::from_slice(line).ok()?, id))
}

/// Cancels a question.
pub fn cancelled(request: &Id, reason: &str) -> Bytes {
    let params = json!({ "requestId": request, "reason": reason });
    json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params }).to_string().into()
}

/// Returns a tool's error, as text like all such errors.
pub fn tool_error(id: &Id, stateless: bool, text: &str) -> Bytes {
    let mut result = json!({ "content": [{ "type": "text", "text": text }], "isError": true });
    if stateless {
        result["resultType"] = "complete".into();
    }
    json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string().into()
}

/// Returns an error for a valid request that could not be carried out.
pub fn failure(id: &Id, words: &str) -> Bytes {
    error_line(Some(id), INTERNAL_ERROR, words)
}

/// Rejects a request. `id` is `None` if the error could be mistaken for the answer to another request.
pub fn refusal(id: Option<&Id>, words: &str) -> Bytes {
    error_line(id, INVALID_REQUEST, words)
}

/// Rejects a line whose message was not parsed at all.
pub fn unread(words: &str) -> Bytes {
    error_line(None, PARSE_ERROR, words)
}

fn error_line(id: Option<&Id>, code: i32, words: &str) -> Bytes {
    let error = json!({ "code": code, "message": words });
    json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> (Id, Kind) {
        match read_client(line.as_bytes()) {
            Ok(FromClient::Request { id, kind }) => (id, kind),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn ids_of_both_kinds_stay_apart() {
        assert_eq!(request(r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#), (Id::Number(7), Kind::Read));
        let (id, _) = request(r#"{"jsonrpc":"2.0","id":"7","method":"ping","params":{}}"#);
        assert_eq!(id, Id::Text("7".into()));
        assert!(failure(&id, "x").windows(8).any(|bytes| bytes == br#""id":"7""#));
    }

    #[test]
    fn what_is_no_message_is_answered_in_words() {
        for (line, code, id) in [
            ("{", PARSE_ERROR, Value::Null),
            ("hello", PARSE_ERROR, Value::Null),
            ("[]", INVALID_REQUEST, Value::Null),
            ("{}", INVALID_REQUEST, Value::Null),
            (r#"{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}"#, INVALID_REQUEST, Value::Null),
            (r#"{"jsonrpc":"2.0","id":7,"method":"ping","method":"x"}"#, INVALID_REQUEST, 7.into()),
            (
                r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":{"image":"a","image":"b"}}}"#,
                INVALID_PARAMS,
                7.into(),
            ),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, INVALID_REQUEST, Value::Null),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, INVALID_REQUEST, Value::Null),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, INVALID_REQUEST, 1.into()),
            (r#"{"jsonrpc":"2.0","id":"a","method":7}"#, INVALID_REQUEST, "a".into()),
            (r#"{"jsonrpc":"2.0","id":3,"method":"ping","params":[1]}"#, INVALID_REQUEST, 3.into()),
            (r#"{"jsonrpc":"2.0","id":"\ud800","method":"ping"}"#, PARSE_ERROR, Value::Null),
        ] {
            let refused = read_client(line.as_bytes()).unwrap_err();
            let answer: Value = serde_json::from_slice(&refused.answer).unwrap();
            assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(code), &id), "{line}: {answer}");
        }
        assert!(read_client(b"\"\xFF\"").is_err());
    }

    #[test]
    fn body_of_http_is_json_without_repeated_keys() {
        let answer = |body: &str| {
            let answer = unfit_body(body.as_bytes())?;
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            Some((
                answer["error"]["code"].clone(),
                answer["id"].clone(),
                answer["error"]["message"].to_string(),
            ))
        };
        assert_eq!(answer(r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#), None);
        let (code, id, _) = answer("{").unwrap();
        assert_eq!((code, id), (json!(PARSE_ERROR), Value::Null));
        let (code, id, says) = answer(r#"{"id":7,"params":{"arguments":{"env":{"A":1,"A":2}}}}"#).unwrap();
        assert_eq!((code, id), (json!(INVALID_PARAMS), json!(7)));
        assert!(says.contains("params.arguments.env.A stands twice"), "{says}");
    }

    #[test]
    fn an_error_that_comes_back_is_not_answered_again() {
        let echo = unread("the line is too long");
        assert!(matches!(read_client(&echo), Ok(FromClient::Answer { id: None, .. })));
    }

    #[test]
    fn of_the_daemons_line_the_head_is_read() {
        let read = |line: &str| read_daemon(line.as_bytes());
        let answer = |failed| Some(FromDaemon::Answer { id: Id::Number(1), failed });
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":1,"result":{"a":[1,{}]}}"#), answer(false));
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}"#), answer(true));
        assert_eq!(
            read(
                r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s"}}}"#
            ),
            Some(FromDaemon::Acknowledged { listen: Id::Text("s".into()) })
        );
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":null,"error":{}}"#), Some(FromDaemon::Other));
        assert_eq!(read("panicked at"), None);
    }
}

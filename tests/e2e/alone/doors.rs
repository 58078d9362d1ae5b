//! Access control: the bearer token, Host and Origin, on every route.

use http::{Method, StatusCode};
use serde_json::json;

use crate::support::{
    controller::{Controller, Setup},
    http::send,
    raw::initialize,
};

const ACCEPT: (&str, &str) = ("accept", "application/json, text/event-stream");
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn without_the_token_or_from_elsewhere_nobody_gets_in() {
    let controller = Controller::start(&Setup::default()).await;
    let address = controller.address().expect("HTTP is served");
    let token = format!("Bearer {}", controller.token());
    let (host, token) = (("host", address.as_str()), ("authorization", token.as_str()));
    let body = initialize().to_string();
    for (method, path) in [
        (Method::POST, "/mcp"),
        (Method::GET, "/v1/cluster/nodes"),
        (Method::GET, "/v1/cluster/status"),
        (Method::GET, "/deployments"),
        (Method::POST, "/deploy/edge-node"),
        (Method::POST, "/v1/executions"),
    ] {
        let send = async |headers: &[(&str, &str)]| {
            let headers = [&[JSON, ACCEPT], headers].concat();
            send(&address, method.clone(), path, &headers, &body).await
        };
        let reply = send(&[host]).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}: {}", reply.body);
        let challenge = reply.headers["www-authenticate"].to_str().expect("text");
        assert!(challenge.starts_with("Bearer"), "{challenge}");
        for wrong in ["Bearer x", "Basic x", "Bearer ", "bearer"] {
            let reply = send(&[host, ("authorization", wrong)]).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path} {wrong}");
        }
        for origin in ["http://evil.example", "null", "http://localhost.evil.example"] {
            let reply = send(&[host, token, ("origin", origin)]).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path} {origin}: {}", reply.body);
        }
        for elsewhere in ["evil.example", "127.0.0.1.evil.example", "localhost."] {
            let reply = send(&[("host", elsewhere), token]).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path} {elsewhere}: {}", reply.body);
        }
    }
    let reply = send(&address, Method::GET, "/v1/cluster/nodes", &[host, token], "").await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    for path in ["/health/live", "/health/ready", "/health"] {
        let reply = send(&address, Method::GET, path, &[host], "").await;
        assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.body);
        let reply = send(&address, Method::GET, path, &[("host", "evil.example")], "").await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path}");
    }
    // Admitting hosts and stopping the daemon are a person's, over the socket alone.
    for path in ["/v1/hosts", "/v1/hosts/probe", "/v1/shutdown"] {
        let reply = send(&address, Method::POST, path, &[host, token, JSON], "{}").await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}: {}", reply.body);
    }
}

#[tokio::test]
async fn large_or_invalid_bodies_get_the_right_status() {
    let controller = Controller::start(&Setup::default()).await;
    let address = controller.address().expect("HTTP is served");
    let token = format!("Bearer {}", controller.token());
    let headers = [("host", address.as_str()), ("authorization", &token), JSON, ACCEPT];
    let large = json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "x".repeat(5 << 20)}});
    for (path, body, status) in [
        ("/mcp", large.to_string(), StatusCode::PAYLOAD_TOO_LARGE),
        ("/v1/executions", large.to_string(), StatusCode::PAYLOAD_TOO_LARGE),
        ("/v1/executions", "{".to_owned(), StatusCode::BAD_REQUEST),
        ("/v1/executions", json!({"image": "busybox", "imgae": 1}).to_string(), StatusCode::BAD_REQUEST),
        ("/no/such/path", String::new(), StatusCode::NOT_FOUND),
    ] {
        let reply = send(&address, Method::POST, path, &headers, &body).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
    }
    let live = send(&address, Method::GET, "/health/live", &headers[..1], "").await;
    assert_eq!(live.status, StatusCode::OK);
}

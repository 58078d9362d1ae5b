//! The engine without a client: plain requests to its socket, and its events.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::support::{
    http::{open_unix, send_unix},
    poll::within,
};

const SOCKET: &str = "/var/run/docker.sock";
const LIMIT: Duration = Duration::from_secs(60);

/// Start and end of containers, by container name, and by execution if there is one.
#[derive(Debug, Default)]
struct Told {
    started: HashMap<String, Duration>,
    gone: HashMap<String, Duration>,
    ids: HashMap<String, String>,
}

#[derive(Debug)]
pub struct Docker {
    told: watch::Receiver<Told>,
}

/// Returns the time by the clock of the engine's events.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

impl Docker {
    pub async fn new() -> Self {
        // {"type":["container"],"event":["start","destroy"]}
        const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%2C%22destroy%22%5D%7D";
        let (tell, told) = watch::channel(Told::default());
        let events = open_unix(Path::new(SOCKET), EVENTS).await;
        tokio::spawn(listen(events, tell));
        Self { told }
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Value {
        let reply = send_unix(Path::new(SOCKET), method, path, body).await.expect("the engine answers");
        let good = reply.status.is_success() || reply.status == StatusCode::NOT_MODIFIED;
        assert!(good, "{path}: {} {}", reply.status, reply.body);
        if reply.body.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&reply.body).expect("JSON")
        }
    }

    async fn when(&self, what: &str, name: &str, of: impl Fn(&Told) -> Option<Duration>) -> Duration {
        let mut told = self.told.clone();
        let found = within(&format!("{name} {what}"), LIMIT, told.wait_for(|told| of(told).is_some())).await;
        of(&found.expect("the events go on")).expect("it was there")
    }

    /// Waits for the start of a container, by its name or by the id of its execution.
    pub async fn started(&self, name: &str) -> Duration {
        self.when("starts", name, |told| told.started.get(name).copied()).await
    }

    pub async fn gone(&self, name: &str) -> Duration {
        self.when("goes", name, |told| told.gone.get(name).copied()).await
    }

    /// Returns the request that makes the same container again, without the product's labels.
    pub async fn body_of(&self, name: &str) -> Value {
        let id = self.told.borrow().ids[name].clone();
        let found = self.ask(Method::GET, &format!("/containers/{id}/json"), &Value::Null).await;
        let mut body = found["Config"].clone();
        body["HostConfig"] = found["HostConfig"].clone();
        for marked in ["Labels", "Hostname"] {
            body.as_object_mut().expect("an object").remove(marked);
        }
        body
    }

    pub async fn create_and_start(&self, name: &str, body: &Value, command: &[&str]) {
        let mut body = body.clone();
        body["Entrypoint"] = json!(command);
        self.ask(Method::POST, &format!("/containers/create?name={name}"), &body).await;
        self.ask(Method::POST, &format!("/containers/{name}/start"), &Value::Null).await;
    }

    pub async fn wait(&self, name: &str) {
        self.ask(Method::POST, &format!("/containers/{name}/wait"), &Value::Null).await;
    }

    pub async fn remove(&self, name: &str) {
        self.ask(Method::DELETE, &format!("/containers/{name}?force=true&v=true"), &Value::Null).await;
    }

    /// Reads the stream of `docker logs --follow`: frames with a header of 8 bytes.
    pub async fn logs(&self, name: &str) -> Incoming {
        open_unix(Path::new(SOCKET), &format!("/containers/{name}/logs?follow=true&stdout=true")).await
    }
}

async fn listen(mut events: Incoming, tell: watch::Sender<Told>) {
    let mut text = Vec::new();
    while let Some(Ok(frame)) = events.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        text.extend_from_slice(&data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).expect("an event");
            tell.send_modify(|told| told.note(&event));
        }
    }
}

impl Told {
    fn note(&mut self, event: &Value) {
        let attributes = &event["Actor"]["Attributes"];
        let at = Duration::from_nanos(event["timeNano"].as_u64().expect("a time"));
        for name in [&attributes["name"], &attributes["aegis.execution_id"]] {
            let Some(name) = name.as_str().map(str::to_owned) else { continue };
            if event["Action"] == "start" {
                self.ids.insert(name.clone(), event["Actor"]["ID"].as_str().expect("an id").to_owned());
                self.started.insert(name, at);
            } else {
                self.gone.insert(name, at);
            }
        }
    }
}

//! JSON-RPC line by line over `aegis mcp`, without a client.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{cli::BINARY, controller::Controller, poll::within};

const LIMIT: Duration = Duration::from_secs(60);

pub struct Pipe {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Notifications received while waiting for an answer.
    notes: VecDeque<Value>,
}

impl Pipe {
    pub fn open(controller: &Controller) -> Self {
        Self::open_with(controller, &[])
    }

    pub fn open_with(controller: &Controller, environment: &[(&str, &str)]) -> Self {
        Self::start(controller, &[], environment)
    }

    pub fn open_flagged(controller: &Controller, flags: &[&str]) -> Self {
        Self::start(controller, flags, &[])
    }

    fn start(controller: &Controller, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(BINARY)
            .arg("mcp")
            .args(flags)
            .env("AEGIS_DATA_DIR", &controller.data)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("aegis mcp starts");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, output, notes: VecDeque::new() }
    }

    pub async fn send(&mut self, message: &Value) {
        self.write(format!("{message}\n").as_bytes()).await;
    }

    /// Writes arbitrary bytes.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).await.expect("it reads");
    }

    /// Returns the next message; every line is one message.
    pub async fn message(&mut self) -> Value {
        let line = within("a line over stdio", LIMIT, self.output.next_line()).await;
        let line = line.expect("UTF-8").expect("a message before the end");
        serde_json::from_str(&line).expect("a line is a message")
    }

    /// Returns the answer to the request with this id; notifications in between are kept.
    pub async fn answer(&mut self, id: &Value) -> Value {
        let answered = async {
            loop {
                let message = self.message().await;
                if message["id"] == *id && message.get("method").is_none() {
                    return message;
                }
                self.notes.push_back(message);
            }
        };
        within("an answer over stdio", LIMIT, answered).await
    }

    pub async fn ask(&mut self, message: &Value) -> Value {
        self.send(message).await;
        self.answer(&message["id"]).await
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs");
        kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), signal).expect("it runs");
    }

    /// Closes stdin. Returns the remaining messages, and the exit status.
    pub async fn drain(self) -> (Vec<Value>, i32) {
        let Self { mut child, input, mut output, .. } = self;
        drop(input);
        let rest = async {
            let mut messages = Vec::new();
            while let Some(line) = output.next_line().await.expect("UTF-8") {
                messages.push(serde_json::from_str(&line).expect("a line is a message"));
            }
            (messages, child.wait().await.expect("a status").code().unwrap_or(-1))
        };
        within("aegis mcp ends with its stdin", LIMIT, rest).await
    }

    /// Closes stdout after this last message, and returns the exit status.
    pub async fn turn_away(self, message: &Value) -> i32 {
        let Self { mut child, mut input, output, .. } = self;
        drop(output);
        // It may be gone already.
        let _ = input.write_all(format!("{message}\n").as_bytes()).await;
        let status = within("aegis mcp ends with its stdout", LIMIT, child.wait()).await.expect("a status");
        status.code().unwrap_or(-1)
    }

    /// Returns the exit status of a process that ends with its stdin open.
    pub async fn ended(mut self) -> i32 {
        let status = within("aegis mcp ends", LIMIT, self.child.wait()).await.expect("a status");
        status.code().unwrap_or(-1)
    }

    /// Returns the next notification of this method.
    pub async fn note(&mut self, method: &str) -> Value {
        if let Some(place) = self.notes.iter().position(|note| note["method"] == method) {
            return self.notes.remove(place).expect("it is there");
        }
        let told = async {
            loop {
                let note = self.message().await;
                if note["method"] == method {
                    return note;
                }
                self.notes.push_back(note);
            }
        };
        within("a notification over stdio", LIMIT, told).await
    }

    /// Closes stdin and returns the exit status.
    pub async fn close(self) -> i32 {
        let Self { mut child, input, output, .. } = self;
        drop(input);
        let status = within("aegis mcp ends with its stdin", LIMIT, child.wait()).await.expect("a status");
        drop(output);
        status.code().unwrap_or(-1)
    }
}

/// Initialises as Codex and Cursor do.
pub fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}})
}

/// Initialises as Claude Code does.
pub fn discover() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": modern()}})
}

/// Returns the metadata that every request of 2026-07-28 carries.
pub fn modern() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "e2e", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {}
    })
}

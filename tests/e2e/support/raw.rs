//! JSON-RPC line by line over `aegis mcp`, below any client.

use std::{process::Stdio, time::Duration};

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
}

impl Pipe {
    pub fn open(controller: &Controller) -> Self {
        Self::open_with(controller, &[])
    }

    pub fn open_with(controller: &Controller, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(BINARY)
            .arg("mcp")
            .env("AEGIS_DATA_DIR", &controller.data)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("aegis mcp starts");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, output }
    }

    pub async fn send(&mut self, message: &Value) {
        self.input.write_all(format!("{message}\n").as_bytes()).await.expect("it reads");
    }

    /// The answer to this request; notifications in between are passed over.
    pub async fn ask(&mut self, message: &Value) -> Value {
        self.send(message).await;
        let answered = async {
            loop {
                let line = self.output.next_line().await.expect("UTF-8").expect("an answer before the end");
                let answer: Value = serde_json::from_str(&line).expect("a line is a message");
                if answer["id"] == message["id"] {
                    return answer;
                }
            }
        };
        within("an answer over stdio", LIMIT, answered).await
    }

    /// Closes stdin; gives the exit status.
    pub async fn close(self) -> i32 {
        let Self { mut child, input, output } = self;
        drop(input);
        let status = within("aegis mcp ends with its stdin", LIMIT, child.wait()).await.expect("a status");
        drop(output);
        status.code().unwrap_or(-1)
    }
}

/// As Codex and Cursor open.
pub fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}})
}

/// As Claude Code opens.
pub fn discover() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": modern()}})
}

/// What every request of 2026-07-28 carries.
pub fn modern() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "e2e", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {}
    })
}

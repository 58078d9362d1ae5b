//! Helpers that the tests of this crate share.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use cluster_core::{
    config::{self, Overrides, Settings},
    controller::access::TokenTable,
    core::Core,
    fs::DataDirectory,
    types::caller::Door,
};
use rmcp::ServiceExt as _;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf,
};

use crate::{caller::Caller, server::AegisServer, tools::ToolRegistry};

/// Longer than anything that a test waits for.
const LIMIT: Duration = Duration::from_secs(20);

/// Configuration of a controller that runs no containers, on its own port.
const CONFIG: &str = "
spec:
  node: { id: ctrl, type: orchestrator }
  cluster: { role: controller, cluster_grpc_port: 0 }
  network: { port: 0 }
";

fn settings_of(text: &str) -> Settings {
    let overrides = Overrides { data_dir: Some("/nonexistent".into()), ..Overrides::default() };
    Settings::of(&config::parse(text).unwrap(), &overrides).unwrap()
}

pub fn settings() -> Settings {
    settings_of(CONFIG)
}

/// Starts a real core, in a directory that is removed after the start: the open files suffice.
pub async fn core() -> Core {
    let directory = tempfile::tempdir().unwrap();
    let data = Arc::new(DataDirectory::own(directory.path()).unwrap());
    Core::start(settings(), data, TokenTable::default()).await.unwrap()
}

/// Starts a real core with itself as the only node. Its engine is away, so the node is a member but takes no work. Its
/// journal needs the directory.
pub async fn hybrid() -> (Core, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    // The file stays when the listener is dropped, and no server answers there.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let config = format!(
        "spec:\n  node: {{ id: home, type: hybrid, tags: [home] }}\n  cluster: {{ role: hybrid, \
         cluster_grpc_port: 0 }}\n  network: {{ port: 0, grpc_port: 0 }}\n  runtime: {{ docker_socket_path: {} }}\n",
        socket.display()
    );
    let data = Arc::new(DataDirectory::own(directory.path()).unwrap());
    (Core::start(settings_of(&config), data, TokenTable::default()).await.unwrap(), directory)
}

pub fn server_of(core: Core) -> AegisServer {
    served_by(core, ToolRegistry::all())
}

/// Returns a server whose caller is the owner of the data directory.
pub fn served_by(core: Core, catalogue: ToolRegistry) -> AegisServer {
    AegisServer::new(core, Arc::new(catalogue)).entered_by(Caller::local(Door::McpSocket))
}

pub async fn server() -> AegisServer {
    server_of(core().await)
}

/// Client over a byte stream, as `aegis mcp` carries it.
pub struct Client {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    write: WriteHalf<DuplexStream>,
    notes: VecDeque<Value>,
}

impl Client {
    pub fn of(server: AegisServer) -> Self {
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        tokio::spawn(async move {
            let running = server.serve(theirs).await.unwrap();
            running.waiting().await.unwrap();
        });
        let (read, write) = tokio::io::split(ours);
        Self { lines: BufReader::new(read).lines(), write, notes: VecDeque::new() }
    }

    pub async fn send(&mut self, message: Value) {
        self.write.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await.expect("a message in time");
        serde_json::from_str(&line.unwrap().unwrap()).unwrap()
    }

    /// Returns the answer to this request; notifications in between are kept.
    pub async fn ask(&mut self, message: Value) -> Value {
        let id = message["id"].clone();
        self.send(message).await;
        self.answer(&id).await
    }

    pub async fn answer(&mut self, id: &Value) -> Value {
        loop {
            let message = self.next().await;
            if message["id"] == *id {
                return message;
            }
            self.notes.push_back(message);
        }
    }

    /// Returns the next notification of this method.
    pub async fn note(&mut self, method: &str) -> Value {
        if let Some(place) = self.notes.iter().position(|note| note["method"] == method) {
            return self.notes.remove(place).unwrap();
        }
        loop {
            let message = self.next().await;
            if message["method"] == method {
                return message;
            }
            self.notes.push_back(message);
        }
    }

    /// Returns the number of kept notifications of this method.
    pub fn heard(&self, method: &str) -> usize {
        self.notes.iter().filter(|note| note["method"] == method).count()
    }

    /// Initialises as Codex and Cursor do.
    pub async fn initialize(&mut self) -> Value {
        let answer = self
            .ask(json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"}}}))
            .await;
        self.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        answer
    }
}

/// Returns the metadata that every request of 2026-07-28 carries.
pub fn modern() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {}
    })
}

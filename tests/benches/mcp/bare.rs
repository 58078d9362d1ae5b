//! The floor: rmcp's Streamable HTTP service on axum with TCP_NODELAY, in a process of its own, with one
//! tool that answers the same JSON. No token, no log of calls, no cluster.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
};

use axum::{Router, serve::ListenerExt as _};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ListToolsResult, PaginatedRequestParams,
        ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
    transport::streamable_http_server::{StreamableHttpService, session::local::LocalSessionManager},
};
use serde_json::{Value, json};

pub const ARGUMENT: &str = "--bare-server";

/// The process, which ends with its stdin, as with this value.
pub struct Bare {
    pub address: String,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Bare {
    pub fn start(answer: &Value) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        writeln!(stdin, "{answer}").expect("it reads");
        let mut address = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut address).expect("its address");
        Self { address: address.trim().to_owned(), child, stdin: Some(stdin) }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.child.wait();
    }
}

/// The other process: reads its answer from a line of stdin, and prints where it listens.
pub fn main() {
    let mut stdin = BufReader::new(std::io::stdin());
    let mut answer = String::new();
    stdin.read_line(&mut answer).expect("an answer to give");
    let one = OneTool { answer: Arc::new(serde_json::from_str(&answer).expect("JSON")) };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.spawn(serve(one));
    let _ = stdin.read_to_end(&mut Vec::new());
    runtime.shutdown_background();
}

async fn serve(one: OneTool) {
    let service = StreamableHttpService::new(
        move || Ok(one.clone()),
        Arc::new(LocalSessionManager::default()),
        Default::default(),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    println!("{}", listener.local_addr().expect("an address"));
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY"));
    axum::serve(listener, Router::new().route_service("/mcp", service)).await.expect("it serves");
}

#[derive(Clone)]
struct OneTool {
    answer: Arc<Value>,
}

impl OneTool {
    fn tool() -> Tool {
        let schema = json!({"type": "object", "properties": {}});
        let Value::Object(schema) = schema else { unreachable!("it is an object") };
        Tool::new("list_peers", "The nodes.", Arc::new(schema))
    }
}

impl ServerHandler for OneTool {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(vec![Self::tool()]))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        (name == "list_peers").then(Self::tool)
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        Ok(CallToolResult::structured((*self.answer).clone()).into())
    }
}

//! The official Rust client, over stdio (`aegis mcp`) and over Streamable HTTP.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rmcp::{
    ErrorData, RoleClient,
    handler::client::ClientHandler,
    model::{
        CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ElicitRequestParams,
        ElicitResult, ElicitationAction, ElicitationCapability, Implementation, ProgressNotificationParam,
        ProtocolVersion,
    },
    service::{
        ClientLifecycleMode, NotificationContext, RequestContext, RunningService, serve_client_with_lifecycle,
    },
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::{cli::BINARY, controller::Controller, poll::within, transcript::Transcript};

/// Above the longest wait of a call, below the time limit of impatient clients.
const CALL_LIMIT: Duration = Duration::from_secs(58);
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// Era of the protocol that a client speaks.
#[derive(Debug, Clone, Copy)]
pub enum Era {
    /// `initialize`, as Codex and Cursor open.
    Session,
    /// `server/discover` of 2026-07-28, as Claude Code opens.
    Stateless,
}

impl Era {
    fn lifecycle(self) -> ClientLifecycleMode {
        match self {
            Era::Session => ClientLifecycleMode::Initialize,
            Era::Stateless => {
                let newest = serde_json::from_value::<ProtocolVersion>("2026-07-28".into());
                ClientLifecycleMode::Discover { preferred_versions: vec![newest.expect("a version")] }
            }
        }
    }
}

/// Person at the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Person {
    /// The client does not declare that it can ask.
    #[default]
    Nobody,
    Agrees,
    Refuses,
    /// Dismisses the question, like a client without a person.
    Ignores,
}

/// Receives progress notifications, and answers questions as its person would.
#[derive(Clone, Default)]
pub struct Listener {
    progress: Arc<Mutex<Vec<ProgressNotificationParam>>>,
    questions: Arc<Mutex<Vec<String>>>,
    person: Person,
}

impl Listener {
    /// Returns the questions to its person so far.
    pub fn questions(&self) -> Vec<String> {
        self.questions.lock().expect("no panic holds it").clone()
    }

    /// Returns the notifications so far, oldest first: counter and message.
    pub fn messages(&self) -> Vec<(f64, String)> {
        let heard = self.progress.lock().expect("no panic holds it");
        heard.iter().map(|note| (note.progress, note.message.clone().unwrap_or_default())).collect()
    }
}

impl ClientHandler for Listener {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::default();
        if self.person != Person::Nobody {
            capabilities.elicitation = Some(ElicitationCapability::default());
        }
        ClientConfig::new(capabilities, Implementation::new("aegis-e2e", "1"))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        if let ElicitRequestParams::FormElicitationParams { message, .. } = request {
            self.questions.lock().expect("no panic holds it").push(message);
        }
        Ok(match self.person {
            Person::Agrees => {
                ElicitResult::new(ElicitationAction::Accept).with_content(json!({"confirm": true}))
            }
            Person::Refuses => ElicitResult::new(ElicitationAction::Decline),
            Person::Nobody | Person::Ignores => ElicitResult::new(ElicitationAction::Cancel),
        })
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.progress.lock().expect("no panic holds it").push(params);
    }
}

pub struct Client {
    service: RunningService<RoleClient, Listener>,
    listener: Listener,
    pub transcript: Transcript,
    /// Process of stdio, which ends with the client.
    _process: Option<Child>,
}

impl Client {
    /// Starts `aegis mcp` like an assistant: it finds the daemon of the data directory, or starts one.
    pub async fn stdio(controller: &Controller, era: Era, name: &'static str) -> Self {
        Self::with_person(controller, era, name, Person::Nobody).await
    }

    pub async fn with_person(controller: &Controller, era: Era, name: &'static str, person: Person) -> Self {
        let mut process = Command::new(BINARY)
            .arg("mcp")
            .env("AEGIS_DATA_DIR", &controller.data)
            .env_remove("RUST_LOG")
            .current_dir(&controller.data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("aegis mcp starts");
        let pipes = (process.stdout.take().expect("a pipe"), process.stdin.take().expect("a pipe"));
        let listener = Listener { person, ..Listener::default() };
        let served = serve_client_with_lifecycle(listener.clone(), pipes, era.lifecycle());
        let service = within("connecting over stdio", CONNECT_LIMIT, served).await.expect("a session");
        Self { service, listener, transcript: Transcript::new(name), _process: Some(process) }
    }

    pub async fn http(controller: &Controller, era: Era, name: &'static str) -> Self {
        let address = controller.address().expect("HTTP is served");
        let config = StreamableHttpClientTransportConfig::with_uri(format!("http://{address}/mcp"))
            .auth_header(controller.token());
        let transport = StreamableHttpClientTransport::from_config(config);
        let listener = Listener::default();
        let served = serve_client_with_lifecycle(listener.clone(), transport, era.lifecycle());
        let service = within("connecting over HTTP", CONNECT_LIMIT, served).await.expect("a session");
        Self { service, listener, transcript: Transcript::new(name), _process: None }
    }

    pub fn protocol_version(&self) -> String {
        self.service.peer_info().expect("it has answered").protocol_version.to_string()
    }

    pub async fn tool_names(&self) -> Vec<String> {
        let tools = self.service.list_all_tools().await.expect("the list of tools");
        tools.into_iter().map(|tool| tool.name.into_owned()).collect()
    }

    /// Makes a call. A plan that needs confirmation is carried out, as by an assistant whose user agrees.
    async fn ask(&mut self, tool: &'static str, arguments: &Value) -> (CallToolResult, Duration) {
        let (result, took) = self.once(tool, arguments).await;
        let shown = result.structured_content.as_ref().filter(|shown| shown["state"] == "needs_confirmation");
        let Some(shown) = shown else { return (result, took) };
        let mut confirmed = arguments.clone();
        confirmed["confirm_token"] = shown["confirm_token"].clone();
        self.once(tool, &confirmed).await
    }

    /// Makes a call and returns a plan as its result.
    pub async fn unconfirmed(&mut self, tool: &'static str, arguments: Value) -> Value {
        let (result, took) = self.once(tool, &arguments).await;
        assert_ne!(result.is_error, Some(true), "{tool} {arguments}: {}", text_of(&result));
        let content = result.structured_content.unwrap_or_else(|| panic!("{tool}: no structured content"));
        self.transcript.call(tool, &arguments, took, &content);
        content
    }

    async fn once(&mut self, tool: &'static str, arguments: &Value) -> (CallToolResult, Duration) {
        let object = arguments.as_object().expect("arguments are an object").clone();
        let request = CallToolRequestParams::new(tool).with_arguments(object);
        let started = Instant::now();
        let answer = within(tool, CALL_LIMIT, self.service.call_tool(request)).await;
        (answer.unwrap_or_else(|e| panic!("{tool} {arguments}: {e}")), started.elapsed())
    }

    /// Makes a call that must succeed, and returns its structured result.
    pub async fn call(&mut self, tool: &'static str, arguments: Value) -> Value {
        let (result, took) = self.ask(tool, &arguments).await;
        assert_ne!(result.is_error, Some(true), "{tool} {arguments}: {}", text_of(&result));
        let content = result.structured_content.unwrap_or_else(|| panic!("{tool}: no structured content"));
        self.transcript.call(tool, &arguments, took, &content);
        content
    }

    /// Makes a call that must fail as a tool error, and returns its text.
    pub async fn refused(&mut self, tool: &'static str, arguments: Value) -> String {
        let (result, took) = self.ask(tool, &arguments).await;
        let text = text_of(&result);
        assert_eq!(result.is_error, Some(true), "{tool} {arguments} was not refused: {text}");
        assert!(result.structured_content.is_none(), "an error is text alone: {text}");
        self.transcript.call(tool, &arguments, took, &Value::String(text.clone()));
        text
    }

    /// Makes a call that may fail. Returns the structured result, or the error's text.
    pub async fn attempt(&mut self, tool: &'static str, arguments: Value) -> Result<Value, String> {
        let (result, took) = self.ask(tool, &arguments).await;
        let text = text_of(&result);
        match result.structured_content {
            Some(content) if result.is_error != Some(true) => {
                self.transcript.call(tool, &arguments, took, &content);
                Ok(content)
            }
            _ => {
                self.transcript.call(tool, &arguments, took, &Value::String(text.clone()));
                Err(text)
            }
        }
    }

    pub fn listener(&self) -> Listener {
        self.listener.clone()
    }
}

fn text_of(result: &CallToolResult) -> String {
    let content = serde_json::to_value(&result.content).expect("content is JSON");
    let blocks = content.as_array().into_iter().flatten();
    blocks.filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
}

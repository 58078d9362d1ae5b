//! All tools in their fixed order, and the dispatch of calls.

use std::sync::Arc;

use cluster_core::{
    config::{schema::Confirm, settings::McpSettings},
    core::Core,
    types::{
        error::{Error, ErrorCode, Result},
        secret::Secret,
    },
};
use futures::{FutureExt as _, future::BoxFuture};
use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, InputRequiredResult,
        MetaObject, Tool as Manifest, ToolAnnotations,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::{
    arguments,
    cancel_deployment::CancelDeployment,
    cancel_execution::CancelExecution,
    cancel_rollout::CancelRollout,
    deploy_edge_node::DeployEdgeNode,
    deploy_edge_nodes::DeployEdgeNodes,
    drain_node::DrainNode,
    get_deployment_status::GetDeploymentStatus,
    get_execution::GetExecution,
    get_node_logs::GetNodeLogs,
    get_rollout::GetRollout,
    list_deployments::ListDeployments,
    list_peers::ListPeers,
    progress::Progress,
    remove_edge_node::RemoveEdgeNode,
    resume_node::ResumeNode,
    rollback_edge_node::RollbackEdgeNode,
    schema,
    submit_execution::SubmitExecution,
    tool::{Call, Tool},
};
use crate::{
    caller::Caller,
    confirm::{ConfirmationEvidence, Confirmations, Plan, Verdict},
    protocol_error, text,
};

type Handler = for<'a> fn(Value, &'a mut Call) -> BoxFuture<'a, Result<Value>>;
type Planner = for<'a> fn(Value, &'a mut Call) -> BoxFuture<'a, Result<Plan>>;

#[derive(Clone)]
struct Entry {
    manifest: Manifest,
    read_only: bool,
    planner: Planner,
    handler: Handler,
}

impl Entry {
    fn of<T: Tool>() -> Self {
        let hints = T::HINTS;
        // The title is a separate field, where every client looks first.
        let annotations = ToolAnnotations::new()
            .read_only(hints.read_only)
            .destructive(hints.destructive)
            .idempotent(hints.idempotent)
            .open_world(hints.open_world);
        let mut manifest = Manifest::new(T::NAME, T::DESCRIPTION, Arc::new(schema::input::<T::Arguments>()))
            .with_title(T::TITLE)
            .with_raw_output_schema(Arc::new(schema::output::<T::Outcome>()))
            .with_annotations(annotations);
        if T::ALWAYS_LOADED {
            let mut meta = MetaObject::new();
            meta.0.insert("anthropic/alwaysLoad".to_owned(), Value::Bool(true));
            manifest = manifest.with_meta(meta);
        }
        let mut entry = Self { manifest, read_only: hints.read_only, planner: plan::<T>, handler: run::<T> };
        if T::MAY_DISRUPT {
            entry.confirmable();
        }
        entry
    }

    /// Declares that a call may return its plan instead of its result.
    fn confirmable(&mut self) {
        schema::add_confirmation(Arc::make_mut(&mut self.manifest.input_schema));
    }
}

fn run<T: Tool>(given: Value, call: &mut Call) -> BoxFuture<'_, Result<Value>> {
    async move {
        let outcome = T::call(arguments::parse(given)?, call).await?;
        serde_json::to_value(outcome)
            .map_err(|e| Error::internal("the result cannot be written as JSON").source(e))
    }
    .boxed()
}

fn plan<T: Tool>(given: Value, call: &mut Call) -> BoxFuture<'_, Result<Plan>> {
    async move { T::plan(arguments::parse(given)?, call).await }.boxed()
}

/// Tools that this node offers.
pub struct ToolRegistry {
    entries: Vec<Entry>,
    confirmations: Arc<Confirmations>,
    /// Known tools that the configuration disables.
    switched_off: Vec<&'static str>,
}

impl std::fmt::Debug for ToolRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.manifest.name)).finish()
    }
}

impl ToolRegistry {
    /// Returns every tool. The order is part of the interface, since clients cache by it.
    pub fn all() -> Self {
        Self {
            entries: vec![
                Entry::of::<DeployEdgeNode>(),
                Entry::of::<GetDeploymentStatus>(),
                Entry::of::<ListDeployments>(),
                Entry::of::<CancelDeployment>(),
                Entry::of::<RollbackEdgeNode>(),
                Entry::of::<RemoveEdgeNode>(),
                Entry::of::<GetNodeLogs>(),
                Entry::of::<DeployEdgeNodes>(),
                Entry::of::<GetRollout>(),
                Entry::of::<CancelRollout>(),
                Entry::of::<ListPeers>(),
                Entry::of::<SubmitExecution>(),
                Entry::of::<GetExecution>(),
                Entry::of::<CancelExecution>(),
                Entry::of::<DrainNode>(),
                Entry::of::<ResumeNode>(),
            ],
            confirmations: Arc::default(),
            switched_off: Vec::new(),
        }
    }

    /// Returns the tools that `spec.mcp` allows. An unknown name stops the start, since it would otherwise look like an
    /// allowed tool.
    pub fn of(settings: &McpSettings) -> Result<Self> {
        let mut all = Self::all();
        if let Some(names) = &settings.tools {
            all.check_names("spec.mcp.tools", ErrorCode::ConfigInvalid, names)?;
        }
        let allowed = |entry: &Entry| {
            (entry.read_only || !settings.read_only)
                && settings.tools.as_ref().is_none_or(|names| names.iter().any(|n| *n == entry.manifest.name))
        };
        if settings.confirm == Confirm::Always {
            all.entries.iter_mut().filter(|entry| !entry.read_only).for_each(Entry::confirmable);
        }
        let (on, off): (Vec<_>, Vec<_>) = all.entries.drain(..).partition(allowed);
        let switched_off = off
            .into_iter()
            .filter_map(|entry| match entry.manifest.name {
                std::borrow::Cow::Borrowed(name) => Some(name),
                std::borrow::Cow::Owned(_) => None,
            })
            .collect();
        Ok(Self { entries: on, confirmations: Arc::new(Confirmations::new(settings.confirm)), switched_off })
    }

    /// Checks tool names. The error for an unknown name lists all tools.
    pub fn check_names(&self, place: &str, code: ErrorCode, names: &[String]) -> Result<()> {
        let Some(unknown) = names.iter().find(|name| self.find(name).is_none()) else { return Ok(()) };
        let unknown = cluster_core::types::text::shown(unknown);
        Err(Error::new(code, format!("{place}: there is no tool \"{unknown}\""))
            .remedy(format!("the tools are {}", self.names().join(", "))))
    }

    /// Returns the confirmations, which all interfaces share.
    pub fn confirmations(&self) -> Arc<Confirmations> {
        Arc::clone(&self.confirmations)
    }

    pub fn is_offered(&self, caller: &Caller, tool: &str) -> bool {
        self.find(tool).is_some_and(|entry| caller.admits(tool, entry.read_only).is_ok())
    }

    /// Returns the tools that this caller may call.
    pub fn offered(&self, caller: &Caller) -> Vec<Manifest> {
        let entries = self.entries.iter();
        let admitted = entries.filter(|entry| caller.admits(&entry.manifest.name, entry.read_only).is_ok());
        admitted.map(|entry| entry.manifest.clone()).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| &*entry.manifest.name).collect()
    }

    pub fn manifests(&self) -> Vec<Manifest> {
        self.entries.iter().map(|entry| entry.manifest.clone()).collect()
    }

    pub fn manifest(&self, name: &str) -> Option<Manifest> {
        self.find(name).map(|entry| entry.manifest.clone())
    }

    /// Returns the answer to `tools/list`, as kept in `tools.json`.
    pub fn listing(&self) -> Value {
        json!({ "tools": self.manifests() })
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.manifest.name == name)
    }

    /// Calls a tool by its name; `None` if the tool does not exist.
    pub async fn call(
        &self,
        core: &Core,
        caller: &Caller,
        mut request: CallToolRequestParams,
        progress: Progress,
        context: &RequestContext<RoleServer>,
    ) -> Option<CallToolResponse> {
        let name = request.name.clone();
        let entry = match self.find(&name) {
            None if self.switched_off.contains(&&*name) => {
                Err(Error::new(ErrorCode::Forbidden, format!("{name} is switched off on this node"))
                    .remedy("its operator can allow it (spec.mcp.read_only, spec.mcp.tools)"))
            }
            None => return None,
            Some(entry) => caller.admits(&name, entry.read_only).map(|()| entry),
        };
        let claim = ConfirmationEvidence::take(&mut request, &caller.actor);
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let read_only = entry.as_ref().is_ok_and(|entry| entry.read_only);
        let pending = caller.begin_tool(core, &name, &arguments, read_only);
        let mut call = Call::new(core.clone(), caller.actor.identity.clone(), progress);
        let answer = match entry {
            Ok(entry) => self.answer(entry, claim, arguments, &mut call, context).await,
            Err(error) => Err(error),
        };
        if let Some(pending) = pending {
            pending.end(code_of(&answer)).await;
        }
        Some(match answer {
            Ok(Answer::Result(value) | Answer::Plan(value)) => succeeded(value, &call.secrets).into(),
            Ok(Answer::Question(question)) => (*question).into(),
            Err(error) => {
                log(&name, &error);
                failed(&error, &call.secrets).into()
            }
        })
    }

    async fn answer(
        &self,
        entry: &Entry,
        claim: ConfirmationEvidence,
        arguments: Value,
        call: &mut Call,
        context: &RequestContext<RoleServer>,
    ) -> Result<Answer> {
        if !entry.read_only {
            let mut progress = std::mem::replace(&mut call.progress, Progress::silent());
            let until = progress.deadline();
            let plan = (entry.planner)(arguments.clone(), call);
            let looked = progress.look(LOOKING, plan);
            let verdict = self.confirmations.judge(claim, Some(context), until, looked).await;
            call.progress = progress;
            match verdict? {
                Verdict::Proceed(carried) => call.confirmed = carried,
                Verdict::Show(plan) => return Ok(Answer::Plan(plan)),
                Verdict::Ask(question) => return Ok(Answer::Question(question)),
            }
        }
        (entry.handler)(arguments, call).await.map(Answer::Result)
    }
}

/// Shown while a plan is made.
const LOOKING: &str = "checking what the call would change";

/// Answer to a call.
enum Answer {
    Result(Value),
    /// Returned instead of the result, until it is confirmed.
    Plan(Value),
    Question(Box<InputRequiredResult>),
}

/// Returns the code for the audit log. A call that only requested a confirmation did nothing.
fn code_of(answer: &Result<Answer>) -> Option<ErrorCode> {
    match answer {
        Ok(Answer::Result(_)) => None,
        Ok(Answer::Plan(_) | Answer::Question(_)) => Some(ErrorCode::Unconfirmed),
        Err(error) => Some(error.code()),
    }
}

/// Builds a result. The text repeats the structured part, since clients show the model only one of them.
pub(super) fn succeeded(mut value: Value, secrets: &[Secret]) -> CallToolResult {
    text::sanitize(&mut value, secrets);
    CallToolResult::structured(value)
}

/// Builds an error as text only: some clients show nothing else of an error, and others validate structured content
/// against the schema of success.
pub(super) fn failed(error: &Error, secrets: &[Secret]) -> CallToolResult {
    let mut words = format!("{}: {}", error.code(), protocol_error::words(error));
    text::redact(&mut words, secrets);
    CallToolResult::error(vec![ContentBlock::text(words)])
}

fn log(tool: &str, error: &Error) {
    // The caller gets code, message and remedy; the causes are logged.
    if matches!(error.code(), ErrorCode::Internal | ErrorCode::Storage) {
        tracing::error!(tool, code = %error.code(), error = %error.chain(), "a tool call failed");
    } else {
        tracing::debug!(tool, code = %error.code(), error = %error, "a tool call was refused");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use cluster_core::config::schema::Auth;

    use super::*;
    use crate::cli::Cli;

    fn settings() -> McpSettings {
        McpSettings {
            http: true,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            auth: Auth::Token,
            read_only: false,
            tools: None,
            confirm: Confirm::default(),
        }
    }

    #[test]
    fn every_tool_tells_all_that_clients_use() {
        for tool in ToolRegistry::all().manifests() {
            let name = tool.name.as_ref();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            // With the server's name and two separators.
            assert!(name.len() + "mcp__aegis__".len() <= 60, "{name}");
            assert!(tool.title.is_some(), "{name}");
            let hints = tool.annotations.unwrap();
            for hint in
                [hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint]
            {
                assert!(hint.is_some(), "{name}");
            }
            assert_eq!(tool.input_schema["type"], "object", "{name}");
            for (argument, schema) in tool.input_schema["properties"].as_object().unwrap() {
                assert!(schema.get("description").is_some(), "{name}.{argument} is not described");
            }
            let output = tool.output_schema.unwrap();
            assert_eq!(output["type"], "object", "{name}");
            assert!(output["properties"].get("next_step").is_some(), "{name}");
        }
    }

    #[test]
    fn schemas_use_only_keywords_that_clients_accept() {
        let text = ToolRegistry::all().listing().to_string();
        for bad in ["\"format\"", "$ref", "$defs", "nullable", "\"null\"", "\"oneOf\"", "\"anyOf\""] {
            assert!(!text.contains(bad), "{bad}");
        }
    }

    /// Rules of model APIs that reject a whole request for one invalid schema. Each property has a type, each object
    /// has properties or typed values, each array has typed items, and each required name exists.
    fn check_types(place: &str, schema: &Value) {
        let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{place} has no type: {schema}"));
        match kind {
            "object" => match (schema["properties"].as_object(), schema.get("additionalProperties")) {
                (Some(properties), _) if !properties.is_empty() || !place.contains('.') => {
                    for (name, property) in properties {
                        check_types(&format!("{place}.{name}"), property);
                    }
                    for name in schema["required"].as_array().into_iter().flatten() {
                        assert!(properties.contains_key(name.as_str().unwrap()), "{place} lacks {name}");
                    }
                }
                (_, Some(values)) => check_types(&format!("{place}.*"), values),
                _ => panic!("{place} is an object without properties: {schema}"),
            },
            "array" => check_types(&format!("{place}[]"), &schema["items"]),
            _ => assert!(["string", "integer", "number", "boolean"].contains(&kind), "{place}: {kind}"),
        }
        if let Some(words) = schema["enum"].as_array() {
            assert_eq!(kind, "string", "{place}");
            assert!(words.iter().all(Value::is_string), "{place}: {schema}");
        }
    }

    #[test]
    fn every_property_and_every_nested_object_is_typed() {
        for tool in ToolRegistry::all().manifests() {
            check_types(&tool.name, &Value::Object((*tool.input_schema).clone()));
            check_types(&tool.name, &Value::Object((*tool.output_schema.unwrap()).clone()));
        }
    }

    #[test]
    fn hints_follow_what_a_call_may_do() {
        for entry in ToolRegistry::all().entries {
            let hints = entry.manifest.annotations.unwrap();
            let may_confirm =
                entry.manifest.input_schema["properties"].get(crate::confirm::ARGUMENT).is_some();
            let name = &entry.manifest.name;
            assert!(!may_confirm || hints.destructive_hint == Some(true), "{name} disrupts");
            assert_eq!(hints.read_only_hint, Some(entry.read_only), "{name}");
        }
        let hints =
            ToolRegistry::all().manifest("submit_execution").and_then(|tool| tool.annotations).unwrap();
        assert_eq!(hints.idempotent_hint, Some(false), "each call without a key runs the work again");
    }

    #[test]
    fn the_two_that_are_always_needed_are_loaded_at_once() {
        let loaded: Vec<_> = ToolRegistry::all()
            .manifests()
            .into_iter()
            .filter(|tool| tool.meta.is_some())
            .map(|tool| tool.name)
            .collect();
        assert_eq!(loaded, ["deploy_edge_node", "list_peers"]);
    }

    #[test]
    fn every_change_names_a_command_that_exists() {
        fn check<T: Tool>(given: Value) {
            let command = T::command(&arguments::parse(given).unwrap());
            let parsed = Cli::try_parse_from(command.split(' '));
            assert!(parsed.is_ok(), "{}: {command}: {:?}", T::NAME, parsed.err());
        }
        let deployment = json!({"deployment_id": "comet-edge-node-1711446000000-1"});
        check::<DeployEdgeNode>(json!({"host": "edge1"}));
        check::<DeployEdgeNodes>(json!({"hosts": [{"host": "edge1"}, {"host": "edge2"}]}));
        check::<CancelDeployment>(deployment.clone());
        check::<RollbackEdgeNode>(json!({"node_id": "n", "to": deployment["deployment_id"]}));
        check::<RemoveEdgeNode>(json!({"node_id": "n", "host_gone": true}));
        check::<CancelRollout>(json!({"rollout_id": "rollout-1711446000000-1"}));
        check::<SubmitExecution>(json!({"image": "busybox:1.36", "command": ["echo", "hi"]}));
        check::<SubmitExecution>(json!({"agent": "code-review@3"}));
        check::<CancelExecution>(json!({"execution_id": "exec-7k2m9q4x8w"}));
        check::<DrainNode>(json!({"node_id": "n", "deadline_seconds": 5, "on_deadline": "cancel"}));
        check::<ResumeNode>(json!({"node_id": "n"}));
    }

    #[test]
    fn a_read_only_node_offers_only_reading() {
        let catalogue = ToolRegistry::of(&McpSettings { read_only: true, ..settings() }).unwrap();
        assert_eq!(
            catalogue.names(),
            [
                "get_deployment_status",
                "list_deployments",
                "get_node_logs",
                "get_rollout",
                "list_peers",
                "get_execution"
            ]
        );
        assert!(catalogue.switched_off.contains(&"drain_node"));
    }

    #[test]
    fn a_filter_keeps_the_order_and_refuses_unknown_names() {
        let tools = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let filtered = McpSettings { tools: tools(&["resume_node", "list_peers"]), ..settings() };
        assert_eq!(ToolRegistry::of(&filtered).unwrap().names(), ["list_peers", "resume_node"]);
        let unknown = McpSettings { tools: tools(&["list_peer"]), ..settings() };
        assert_eq!(ToolRegistry::of(&unknown).unwrap_err().code(), ErrorCode::ConfigInvalid);
    }
}

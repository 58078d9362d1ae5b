//! Confirmation of REST requests: the policy and the plans that the tools have.
//!
//! A disruptive request is answered 409 with its plan and a `confirm_token`. The same request with that token, in
//! its JSON body or in the query of a request without a body, is carried out. A person's requests come over the
//! socket of the data directory and need no confirmation.

use std::time::Duration;

use axum::{
    Json,
    body::{Body, Bytes, to_bytes},
    extract::{FromRequestParts as _, RawPathParams, Request},
    response::{IntoResponse as _, Response},
};
use cluster_core::{
    controller::audit::Arguments,
    types::error::{Error, ErrorCode, Result},
};
use futures::{FutureExt as _, future::BoxFuture};
use http::{Method, StatusCode, Uri, request::Parts, uri::PathAndQuery};
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{
    Api,
    error::{Problem, body_too_large},
};
use crate::{
    caller::Caller,
    confirm::{ARGUMENT, ConfirmationEvidence, Impact, Plan, Verdict},
    rest::body::BODY_BYTES_MAX,
    tools::{
        Call, Progress, Tool, deploy_edge_node::DeployEdgeNode, deploy_edge_nodes::DeployEdgeNodes,
        drain_node::DrainNode, parse, remove_edge_node::RemoveEdgeNode, rollback_edge_node::RollbackEdgeNode,
    },
};

/// Time for the body of a request to arrive.
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Plan that a request was confirmed with, such as the digest of a deployment's plan.
#[derive(Debug, Clone, Default)]
pub struct Confirmed(pub Option<String>);

/// Disruptive routes, each with the plan that a person is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Deploy,
    DeployMany,
    RemoveDeployed,
    RollBack,
    Drain,
    RemoveNode,
    ShutDownNode,
    /// Changes something that `confirm: always` alone asks about.
    Other,
}

impl Action {
    fn of(method: &Method, route: &str) -> Self {
        match (method.as_str(), route) {
            ("POST", "/deploy/edge-node") => Self::Deploy,
            ("POST", "/deploy/edge-nodes") => Self::DeployMany,
            ("DELETE", "/deploy/edge-node/{node}") => Self::RemoveDeployed,
            ("POST", "/deploy/edge-node/{node}/rollback") => Self::RollBack,
            ("POST", "/v1/cluster/nodes/{id}/drain") => Self::Drain,
            ("DELETE", "/v1/cluster/nodes/{id}") => Self::RemoveNode,
            ("POST", "/v1/cluster/nodes/{id}/shutdown") => Self::ShutDownNode,
            _ => Self::Other,
        }
    }

    fn plan<'a>(self, asked: &'a Asked, call: &'a mut Call) -> BoxFuture<'a, Result<Plan>> {
        match self {
            Self::Deploy => plan_of::<DeployEdgeNode>(asked.body.clone(), call),
            Self::DeployMany => plan_of::<DeployEdgeNodes>(asked.body.clone(), call),
            Self::RemoveDeployed => {
                // Volumes are removed for a person alone: the handler refuses that to everybody else.
                if asked.query.get("volumes").is_some_and(|volumes| *volumes != Value::Bool(false)) {
                    return std::future::ready(Ok(Plan::nothing())).boxed();
                }
                let mut arguments = asked.for_node("node");
                arguments.remove("volumes");
                plan_of::<RemoveEdgeNode>(arguments, call)
            }
            Self::RollBack => plan_of::<RollbackEdgeNode>(asked.for_node("node"), call),
            Self::Drain => plan_of::<DrainNode>(asked.for_node("id"), call),
            Self::RemoveNode => {
                asked.of_node("remove", "its key is revoked; running work is cancelled at the deadline")
            }
            Self::ShutDownNode => {
                asked.of_node("shutdown", "its process ends and does not come back by itself")
            }
            Self::Other => {
                let command = "see `aegis --help`".to_owned();
                let plan =
                    Plan { weight: Impact::Routine, summary: asked.name.clone(), command, ..Plan::default() };
                std::future::ready(Ok(plan)).boxed()
            }
        }
    }
}

fn plan_of<T: Tool>(arguments: Map<String, Value>, call: &mut Call) -> BoxFuture<'_, Result<Plan>> {
    async move { T::plan(parse(Value::Object(arguments))?, call).await }.boxed()
}

/// Parts of a request, without its token.
#[derive(Debug, Default)]
struct Asked {
    /// Method and path.
    name: String,
    path: Map<String, Value>,
    query: Map<String, Value>,
    body: Map<String, Value>,
}

impl Asked {
    /// Returns the arguments of the tool that does the same to a node.
    fn for_node(&self, parameter: &str) -> Map<String, Value> {
        let mut arguments = self.query.clone();
        arguments.extend(self.body.clone());
        arguments.insert("node_id".to_owned(), self.path.get(parameter).cloned().unwrap_or_default());
        arguments
    }

    fn of_node(&self, verb: &str, fact: &str) -> BoxFuture<'_, Result<Plan>> {
        let node = self.path.get("id").and_then(Value::as_str).unwrap_or_default();
        let plan = Plan {
            weight: Impact::Disruptive,
            summary: format!("{verb} {node}"),
            facts: vec![fact.to_owned()],
            carries: None,
            command: format!("aegis node {verb} {node}"),
        };
        std::future::ready(Ok(plan)).boxed()
    }

    /// Returns everything that a confirmation is bound to.
    fn bound(&self) -> Map<String, Value> {
        [("path", &self.path), ("query", &self.query), ("body", &self.body)]
            .map(|(name, part)| (name.to_owned(), Value::Object(part.clone())))
            .into_iter()
            .collect()
    }
}

/// Returns the request, without its token and with what was confirmed, where its call may go ahead.
///
/// # Errors
///
/// Returns the response instead of the handler's: the plan with a token, or a rejection.
pub async fn confirm(
    api: &Api,
    caller: &Caller,
    route: &str,
    request: Request,
) -> std::result::Result<Request, Response> {
    if api.confirmations.is_off() {
        return Ok(request);
    }
    let action = Action::of(request.method(), route);
    let (mut parts, body) = request.into_parts();
    let bytes = read(body).await?;
    let (asked, token, bytes) = take_token(&mut parts, bytes).await;
    let claim = ConfirmationEvidence::of_request(&caller.actor, &asked.name, &asked.bound(), token);
    let mut call = Call::new(api.core.clone(), caller.actor.identity.clone(), Progress::silent());
    let until = call.progress.deadline();
    let mut progress = Progress::silent();
    let plan = progress.look("checking what the request would change", action.plan(&asked, &mut call));
    let verdict = api.confirmations.judge(claim, None, until, plan).await;
    if let Ok(Verdict::Proceed(carried)) = verdict {
        parts.extensions.insert(Confirmed(carried));
        return Ok(Request::from_parts(parts, Body::from(bytes)));
    }
    // The handler, which notes the arguments of a call for the audit log, is not reached.
    if let Some(arguments) = parts.extensions.get::<Arguments>().filter(|_| !asked.body.is_empty()) {
        arguments.note(&Value::Object(asked.body.clone()));
    }
    match verdict {
        Ok(Verdict::Show(plan)) => Err(shown(&plan)),
        // Only a client of MCP is asked.
        Ok(Verdict::Ask(_) | Verdict::Proceed(_)) => {
            Err(Problem(Error::internal("a REST client was asked")).into_response())
        }
        Err(error) => Err(Problem(error).into_response()),
    }
}

async fn read(body: Body) -> std::result::Result<Bytes, Response> {
    match tokio::time::timeout(BODY_READ_TIMEOUT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(body_too_large()),
        Err(_) => Err(Problem(
            Error::new(ErrorCode::Timeout, "the body did not arrive in time")
                .remedy("send the request again"),
        )
        .into_response()),
    }
}

/// Takes the token out of the query and the body, which the handler reads without it.
async fn take_token(parts: &mut Parts, bytes: Bytes) -> (Asked, Option<String>, Bytes) {
    let mut asked = Asked { name: format!("{} {}", parts.method, parts.uri.path()), ..Asked::default() };
    if let Ok(parameters) = RawPathParams::from_request_parts(parts, &()).await {
        asked.path = parameters.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    }
    let mut token = None;
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        if name == ARGUMENT {
            token = Some(value.into_owned());
            continue;
        }
        query.append_pair(&name, &value);
        // Numbers and words of JSON mean the same here; everything else is text.
        let typed =
            serde_json::from_str(&value).ok().filter(|value: &Value| value.is_u64() || value.is_boolean());
        asked.query.insert(name.into_owned(), typed.unwrap_or_else(|| Value::String(value.into_owned())));
    }
    if token.is_some() {
        parts.uri = with_query(&parts.uri, &query.finish());
    }
    let Ok(Value::Object(mut body)) = serde_json::from_slice(&bytes) else {
        // An agent's manifest may be YAML: bound as it is.
        if !bytes.is_empty() {
            asked.body.insert("text".to_owned(), String::from_utf8_lossy(&bytes).into());
        }
        return (asked, token, bytes);
    };
    let bytes = match body.remove(ARGUMENT) {
        Some(given) => {
            token = given.as_str().map(str::to_owned).or(token);
            Bytes::from(Value::Object(body.clone()).to_string())
        }
        None => bytes,
    };
    asked.body = body;
    (asked, token, bytes)
}

fn with_query(uri: &Uri, query: &str) -> Uri {
    let path = if query.is_empty() { uri.path().to_owned() } else { format!("{}?{query}", uri.path()) };
    let mut parts = uri.clone().into_parts();
    match path.parse::<PathAndQuery>() {
        Ok(path) => {
            parts.path_and_query = Some(path);
            Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
        }
        Err(_) => uri.clone(),
    }
}

/// Answers with the plan and its token, as an error that names what to do.
fn shown(plan: &Value) -> Response {
    let body = json!({
        "code": ErrorCode::Unconfirmed,
        "message": "this request must be confirmed; nothing was done",
        "remedy": "show the plan to the user; if they agree, send the same request within 5 minutes with \
                   confirm_token in its JSON body, or in the query where it has none",
        "plan": plan["plan"],
        "confirm_token": plan[ARGUMENT],
    });
    let mut response = (StatusCode::CONFLICT, Json(body)).into_response();
    // The audit log reads the code here.
    response.extensions_mut().insert(ErrorCode::Unconfirmed);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disruptive_route_has_a_plan_of_its_own() {
        let disruptive = [
            ("POST", "/deploy/edge-node"),
            ("POST", "/deploy/edge-nodes"),
            ("DELETE", "/deploy/edge-node/{node}"),
            ("POST", "/deploy/edge-node/{node}/rollback"),
            ("POST", "/v1/cluster/nodes/{id}/drain"),
            ("DELETE", "/v1/cluster/nodes/{id}"),
            ("POST", "/v1/cluster/nodes/{id}/shutdown"),
        ];
        for (method, route) in disruptive {
            assert_ne!(Action::of(&method.parse().unwrap(), route), Action::Other, "{method} {route}");
        }
        assert_eq!(Action::of(&Method::POST, "/v1/executions"), Action::Other);
    }

    async fn taken(uri: &str, body: &str) -> (Asked, Option<String>, Uri, Bytes) {
        let (mut parts, ()) = http::Request::delete(uri).body(()).unwrap().into_parts();
        let (asked, token, bytes) = take_token(&mut parts, Bytes::copy_from_slice(body.as_bytes())).await;
        (asked, token, parts.uri, bytes)
    }

    #[tokio::test]
    async fn token_is_taken_from_query_and_body() {
        let (asked, token, uri, _) =
            taken("/n?host_gone=true&confirm_token=abc&deadline_seconds=5", "").await;
        assert_eq!(token.as_deref(), Some("abc"));
        assert_eq!(uri.to_string(), "/n?host_gone=true&deadline_seconds=5");
        assert_eq!(asked.query["deadline_seconds"], 5);
        assert_eq!(asked.query["host_gone"], true);
        let (asked, token, uri, bytes) = taken("/n", "{\"a\": 1, \"confirm_token\": \"abc\"}").await;
        assert_eq!((token.as_deref(), uri.to_string().as_str()), (Some("abc"), "/n"));
        assert_eq!((bytes.as_ref(), asked.body.len()), (&b"{\"a\":1}"[..], 1));
    }

    #[tokio::test]
    async fn confirmation_is_bound_to_the_whole_request() {
        let bound = async |uri, body| taken(uri, body).await.0.bound();
        let one = bound("/n?deadline_seconds=5", "{}").await;
        assert_eq!(bound("/n?deadline_seconds=5&confirm_token=x", "{}").await, one);
        for (uri, body) in
            [("/n?deadline_seconds=6", "{}"), ("/n?deadline_seconds=5", "{\"a\": 1}"), ("/n", "x: y")]
        {
            assert_ne!(bound(uri, body).await, one, "{uri} {body}");
        }
    }
}

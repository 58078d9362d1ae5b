//! Scope check and audit entry of each route, applied after authentication.

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use cluster_core::{
    controller::audit::Arguments,
    types::{
        error::{Error, ErrorCode},
        principal::Origin,
        scope::Scope,
    },
};
use http::{HeaderValue, Method, Uri, header};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::{Api, confirm::confirm, error::Problem};
use crate::{caller::Caller, rest::health::is_open};

/// Paths below which reading requires the admin scope too.
const ADMIN: [&str; 6] =
    ["/v1/tokens", "/v1/audit", "/v1/secrets", "/v1/hosts", "/v1/cluster/enrolment-tokens", "/v1/shutdown"];
/// Paths below which changes require the admin scope.
const ADMIN_TO_CHANGE: [&str; 4] =
    ["/v1/config", "/v1/cluster/token-keys", "/v1/cluster/nodes/{id}/tenant", "/v1/node"];

/// Returns the scope that a request needs. `route` is the matched pattern; empty if no route matched.
pub(crate) fn needed(method: &Method, route: &str, uri: &Uri) -> Scope {
    let below = |paths: &[&str]| {
        paths
            .iter()
            .any(|path| route.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    match reads(method) {
        _ if below(&ADMIN) => Scope::Admin,
        true => Scope::Read,
        // The content of a volume is lost permanently.
        false if below(&ADMIN_TO_CHANGE) || takes_volumes(uri) => Scope::Admin,
        false => Scope::Operate,
    }
}

fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Parsed as in the handler, so that no spelling is missed.
fn takes_volumes(uri: &Uri) -> bool {
    query(uri).any(|(name, value)| name == "volumes" && value != "false")
}

fn query(uri: &Uri) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
}

/// Middleware around every route.
pub async fn gate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    if is_open(request.uri().path()) {
        return next.run(request).await;
    }
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return Problem(Error::internal("nobody knows who makes this request")).into_response();
    };
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("", MatchedPath::as_str).to_owned();
    let needed = needed(request.method(), &route, request.uri());
    // Without a matching path nothing can change.
    let pending = match reads(request.method()) || route.is_empty() {
        true => None,
        false => {
            let arguments = arguments(request.uri());
            // The reader of the body records the arguments there.
            request.extensions_mut().insert(arguments.clone());
            let action = format!("{} {}", request.method(), request.uri().path());
            caller.begin(&api.core, action, arguments)
        }
    };
    let asks = api.origin == Origin::Assistant && !reads(request.method()) && !route.is_empty();
    let response = match caller.scope.admits(needed) {
        Ok(()) if asks => match confirm(&api, &caller, &route, request).await {
            Ok(request) => next.run(request).await,
            Err(response) => response,
        },
        Ok(()) => next.run(request).await,
        Err(error) => too_small(error, needed),
    };
    if let Some(pending) = pending {
        pending.end(failure(&response)).await;
    }
    response
}

fn arguments(uri: &Uri) -> Arguments {
    let arguments = Arguments::default();
    let given: Map<String, Value> =
        query(uri).map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect();
    if !given.is_empty() {
        arguments.note(&Value::Object(given));
    }
    arguments
}

/// RFC 6750, section 3.1.
fn too_small(error: Error, needed: Scope) -> Response {
    let mut response = Problem(error).into_response();
    let challenge = format!("Bearer realm=\"aegis\", error=\"insufficient_scope\", scope=\"{needed}\"");
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// Returns the error code of a response.
fn failure(response: &Response) -> Option<ErrorCode> {
    let told = response.extensions().get::<ErrorCode>().copied();
    // A rejection by the framework has a status alone.
    match response.status() {
        status if status.is_client_error() => Some(told.unwrap_or(ErrorCode::InvalidArgument)),
        status if status.is_server_error() => Some(told.unwrap_or(ErrorCode::Internal)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use Scope::{Admin, Operate, Read};

    use super::*;

    #[test]
    fn every_kind_of_route_needs_its_scope() {
        for (method, route, query, scope) in [
            ("GET", "/v1/cluster/nodes", "", Read),
            ("HEAD", "/deployments/{id}", "", Read),
            ("GET", "/metrics", "", Read),
            ("GET", "/v1/config/layers/{*scope}", "", Read),
            ("GET", "/v1/cluster/token-keys", "", Read),
            ("GET", "", "", Read),
            ("POST", "/deploy/edge-node", "", Operate),
            ("POST", "/v1/executions", "", Operate),
            ("POST", "/v1/executions/{id}/cancel", "", Operate),
            ("POST", "/v1/cluster/nodes/{id}/drain", "", Operate),
            ("DELETE", "/v1/cluster/nodes/{id}", "", Operate),
            ("POST", "/v1/agents", "", Operate),
            ("PATCH", "/v1/nothing-yet", "", Operate),
            ("DELETE", "/deploy/edge-node/{node}", "", Operate),
            ("DELETE", "/deploy/edge-node/{node}", "volumes=false&host_gone=true", Operate),
            ("DELETE", "/deploy/edge-node/{node}", "volumes=true", Admin),
            ("DELETE", "/deploy/edge-node/{node}", "host_gone=true&v%6Flumes=tru%65", Admin),
            ("DELETE", "/deploy/edge-node/{node}", "volumes=false&volumes=true", Admin),
            ("GET", "/v1/tokens", "", Admin),
            ("POST", "/v1/tokens", "", Admin),
            ("DELETE", "/v1/tokens/{name}", "", Admin),
            ("GET", "/v1/audit", "", Admin),
            ("GET", "/v1/secrets", "", Admin),
            ("PUT", "/v1/secrets/{name}", "", Admin),
            ("POST", "/v1/hosts", "", Admin),
            ("DELETE", "/v1/hosts/{host}/{port}", "", Admin),
            ("POST", "/v1/cluster/enrolment-tokens", "", Admin),
            ("GET", "/v1/cluster/enrolment-tokens", "", Admin),
            ("PUT", "/v1/config/layers/{*scope}", "", Admin),
            ("PUT", "/v1/cluster/nodes/{id}/tenant", "", Admin),
            ("POST", "/v1/cluster/token-keys/rotate", "", Admin),
            ("POST", "/v1/shutdown", "", Admin),
            ("POST", "/v1/node/rotate-key", "", Admin),
            ("POST", "/v1/tokens-of-another-kind", "", Operate),
        ] {
            let uri: Uri = format!("/x?{query}").parse().unwrap();
            assert_eq!(needed(&method.parse().unwrap(), route, &uri), scope, "{method} {route}?{query}");
        }
    }
}

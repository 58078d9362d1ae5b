//! Reference of the REST API, from the table of routes below.
//!
//! axum's router cannot be asked for its routes, so that they are listed here once more. A test compares the
//! list with the source of the router.

use cluster_core::types::scope::Scope;
use http::{Method, Uri};

use super::markdown::{code, head, section, table};
use crate::rest::gate;

/// Listeners that serve a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// HTTP and the socket of the data directory.
    Everywhere,
    /// The socket of the data directory only.
    Socket,
    /// The socket of a plain worker's data directory only.
    WorkerSocket,
    /// Served everywhere, and over HTTP without a token.
    Open,
}

struct Route {
    method: &'static str,
    path: &'static str,
    text: &'static str,
}

const fn route(method: &'static str, path: &'static str, text: &'static str) -> Route {
    Route { method, path, text }
}

struct Group {
    title: &'static str,
    text: &'static str,
    served: Served,
    routes: &'static [Route],
}

const GROUPS: &[Group] = &[
    Group {
        title: "Deployments",
        text: "A request that starts something answers 202 with an id. The work continues on the controller.",
        served: Served::Everywhere,
        routes: &[
            route(
                "POST",
                "/deploy/edge-node",
                "Deploy a machine. `dry_run: true` answers 200 with the plan.",
            ),
            route(
                "GET",
                "/deployments",
                "List deployments, newest first. Query: `state`, `host`, `limit`, `offset`.",
            ),
            route("GET", "/deployments/{id}", "Show one deployment with its steps."),
            route("POST", "/deployments/{id}/cancel", "Cancel a deployment, rollback or removal."),
            route(
                "GET",
                "/deployments/{id}/events",
                "Stream the deployment as server-sent events, from `after` or `Last-Event-ID`.",
            ),
            route(
                "DELETE",
                "/deploy/edge-node/{node}",
                "Remove a deployed node from its host and the cluster. Only the operator may pass `volumes=true`.",
            ),
            route("POST", "/deploy/edge-node/{node}/rollback", "Return a node to an earlier release."),
            route("GET", "/deploy/edge-node/{node}/releases", "List the releases that the host keeps."),
        ],
    },
    Group {
        title: "Rollouts",
        text: "Deployments of up to 100 machines by one request.",
        served: Served::Everywhere,
        routes: &[
            route("POST", "/deploy/edge-nodes", "Start a rollout."),
            route("GET", "/rollouts", "List rollouts, newest first."),
            route("GET", "/rollouts/{id}", "Show one rollout with its hosts."),
            route("POST", "/rollouts/{id}/cancel", "Cancel a rollout."),
            route("GET", "/rollouts/{id}/events", "Stream the rollout as server-sent events."),
        ],
    },
    Group {
        title: "Cluster",
        text: "",
        served: Served::Everywhere,
        routes: &[
            route(
                "GET",
                "/v1/cluster/status",
                "Show the cluster id, the health of the parts, and the nodes.",
            ),
            route("GET", "/v1/cluster/nodes", "List nodes with state, tags, free resources and problems."),
            route("GET", "/v1/cluster/nodes/{id}/drain", "Show what still runs on a node that drains."),
            route("POST", "/v1/cluster/nodes/{id}/drain", "Drain a node."),
            route("POST", "/v1/cluster/nodes/{id}/resume", "Undo a drain."),
            route("POST", "/v1/cluster/nodes/{id}/shutdown", "End the node's process."),
            route("DELETE", "/v1/cluster/nodes/{id}", "Remove a node: drain it, then revoke its key."),
            route("GET", "/v1/cluster/nodes/{id}/config", "Show the pushed configuration of a node."),
            route(
                "GET",
                "/v1/cluster/nodes/{id}/logs",
                "Show the newest log lines of a deployed node's services.",
            ),
            route("GET", "/v1/cluster/events", "Stream what happens to nodes as server-sent events."),
            route("GET", "/v1/cluster/enrolment-tokens", "List enrolment tokens."),
            route(
                "POST",
                "/v1/cluster/enrolment-tokens",
                "Create an enrolment token. The answer shows it once.",
            ),
            route("DELETE", "/v1/cluster/enrolment-tokens/{id}", "Revoke an enrolment token."),
            route("GET", "/v1/cluster/token-keys", "List the keys that verify node tokens."),
            route("GET", "/v1/config/layers", "List the configuration layers."),
            route("GET", "/v1/config/layers/{*scope}", "Show a layer: `global`, `tenant/SLUG` or `node/ID`."),
        ],
    },
    Group {
        title: "Executions and agents",
        text: "",
        served: Served::Everywhere,
        routes: &[
            route(
                "GET",
                "/v1/executions",
                "List executions by states, labels, node or agent; `before` pages.",
            ),
            route("POST", "/v1/executions", "Submit an execution."),
            route("GET", "/v1/executions/{id}", "Show one execution."),
            route(
                "GET",
                "/v1/executions/{id}/events",
                "Stream output and state as server-sent events, from a sequence number.",
            ),
            route(
                "GET",
                "/v1/executions/{id}/artifacts",
                "Download the kept artifacts as a gzipped tar archive.",
            ),
            route("POST", "/v1/executions/{id}/cancel", "Cancel an execution."),
            route("GET", "/v1/agents", "List agents."),
            route("POST", "/v1/agents", "Register an agent, or a new version of it."),
            route("GET", "/v1/agents/{name}", "Show an agent; `version` selects one."),
            route("DELETE", "/v1/agents/{name}", "Delete an agent, or one `version` of it."),
        ],
    },
    Group {
        title: "Access and audit",
        text: "",
        served: Served::Everywhere,
        routes: &[
            route("GET", "/v1/tokens", "List access tokens with scope, end and last use."),
            route("POST", "/v1/tokens", "Create an access token. The answer shows it once."),
            route("DELETE", "/v1/tokens/{name}", "Revoke an access token."),
            route("GET", "/v1/audit", "Read the audit log."),
        ],
    },
    Group {
        title: "Health",
        text: "These routes need no token, except `/metrics`. `/health` shows ids, versions and causes only to \
               callers with a token.",
        served: Served::Open,
        routes: &[
            route("GET", "/health", "Show each part of the node."),
            route("GET", "/health/live", "Answer 200 while the process serves requests."),
            route("GET", "/health/ready", "Answer 200 when all parts are ready, otherwise 503."),
            route("GET", "/metrics", "Show the counters in the text format of Prometheus."),
        ],
    },
    Group {
        title: "Operator only",
        text: "Only the socket `api.sock` of a controller's data directory serves these routes, to the user who \
               owns the directory.",
        served: Served::Socket,
        routes: &[
            route("PUT", "/v1/cluster/nodes/{id}/tenant", "Assign a node to a tenant."),
            route("POST", "/v1/cluster/token-keys/rotate", "Replace the key that signs node tokens."),
            route("GET", "/v1/config", "Show the effective configuration."),
            route("PUT", "/v1/config/layers/{*scope}", "Store a configuration layer and push it."),
            route("DELETE", "/v1/config/layers/{*scope}", "Delete a configuration layer."),
            route("POST", "/v1/trial", "Run one small container on this node."),
            route("GET", "/v1/hosts", "List approved hosts."),
            route("POST", "/v1/hosts", "Approve a host and pin its key."),
            route("POST", "/v1/hosts/probe", "Read a host's key without approving the host."),
            route("DELETE", "/v1/hosts/{host}/{port}", "Withdraw the approval of a host."),
            route("GET", "/v1/secrets", "List the names of secrets."),
            route("PUT", "/v1/secrets/{name}", "Set a secret."),
            route("DELETE", "/v1/secrets/{name}", "Delete a secret."),
            route("POST", "/v1/shutdown", "Stop the daemon."),
        ],
    },
    Group {
        title: "Plain workers",
        text: "A plain worker serves health over HTTP. Its own socket also serves `GET /v1/config`, \
               `POST /v1/shutdown` and these routes.",
        served: Served::WorkerSocket,
        routes: &[
            route("POST", "/v1/node/leave", "Leave the cluster."),
            route("POST", "/v1/node/rotate-key", "Change the node's key."),
        ],
    },
];

pub fn page() -> String {
    let mut page = head(
        "REST API",
        "the table of routes",
        "HTTP listens on `http://127.0.0.1:8088` by default; `aegis status` shows the address. Requests need \
         `Authorization: Bearer TOKEN`. The token in `http.token` of the data directory has the scope `admin`. Over \
         the socket `api.sock` the caller is the operator and needs no token. Bodies and answers are JSON. An error \
         has the fields `code`, `message` and `remedy`; its HTTP status follows from the [code](errors.md).\n\n\
         A disruptive request is answered 409 with its plan and a `confirm_token`. Send the request again with \
         `confirm_token` in its JSON body, or in the query of a `DELETE`. `/mcp` on the same port serves MCP over \
         Streamable HTTP.",
    );
    for group in GROUPS {
        section(&mut page, group.title, group.text);
        page.push('\n');
        let rows: Vec<_> = group.routes.iter().map(|route| row(group.served, route)).collect();
        table(&mut page, ["method", "path", "scope", "what it does"], &rows);
    }
    page
}

fn row(served: Served, route: &Route) -> [String; 4] {
    let scope = match served {
        Served::Socket | Served::WorkerSocket => "operator".to_owned(),
        Served::Open if route.path != "/metrics" => "none".to_owned(),
        Served::Open | Served::Everywhere => scope(route).to_string(),
    };
    [code(route.method), code(route.path), scope, route.text.to_owned()]
}

fn scope(route: &Route) -> Scope {
    let method = Method::from_bytes(route.method.as_bytes()).unwrap_or_default();
    gate::needed(&method, route.path, &Uri::from_static("/"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Returns `METHOD path` of every `.route("path", method(..).method(..))` of a source text.
    fn routes_of(source: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for call in source.split(".route(").skip(1) {
            let Some(rest) = call.trim_start().strip_prefix('"') else { continue };
            let Some((path, rest)) = rest.split_once('"') else { continue };
            let end = rest.find(".route(").or(rest.find(".merge(")).or(rest.find(';')).unwrap_or(rest.len());
            for method in ["get", "post", "put", "delete"] {
                let called = [format!(" {method}("), format!(".{method}(")];
                if called.iter().any(|call| rest[..end].contains(call.as_str())) {
                    found.insert(format!("{} {path}", method.to_uppercase()));
                }
            }
        }
        found
    }

    #[test]
    fn table_lists_every_route_of_the_router() {
        let listed: BTreeSet<_> = GROUPS
            .iter()
            .flat_map(|group| group.routes)
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        assert_eq!(
            listed,
            routes_of(include_str!("../../rest/mod.rs")),
            "see GROUPS in cli/reference/rest.rs"
        );
    }

    #[test]
    fn source_reader_finds_chained_methods() {
        let source = r#"x.route("/a", get(f).post(g)) .route("/b/{id}",
            delete(h)) .merge(i()) .route(C, any(j));"#;
        let found: Vec<_> = routes_of(source).into_iter().collect();
        assert_eq!(found, ["DELETE /b/{id}", "GET /a", "POST /a"]);
    }
}

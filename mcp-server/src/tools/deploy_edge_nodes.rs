//! `deploy_edge_nodes`: deploys many machines in one call. Shared arguments are those of `deploy_edge_node`, and are
//! parsed by the same code.

use cluster_core::{
    deploy::{
        DeploymentRequest, RolloutPlan, RolloutRequest,
        rollout::{PlannedHost, all_or_every_problem},
    },
    types::{
        error::{Error, Result},
        principal::Origin,
        secret::Secret,
    },
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    arguments::{check_secret, parse, wait},
    deploy_edge_node,
    disruption::on_host,
    progress::whole,
    rollout::{Line, Outcome, followed},
    schema,
};
use crate::{
    confirm::{Impact, Plan},
    tools::{
        arguments::WAIT_SECONDS_DEFAULT,
        tool::{Call, Hints, Tool},
    },
};

/// Arguments of one host's deployment that cannot be shared.
const NOT_SHARED: [&str; 6] =
    ["host", "identity", "dry_run", "plan_digest", "idempotency_key", "wait_seconds"];

pub struct DeployEdgeNodes;

/// One machine, and where it differs from the others.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    host: String,
    #[serde(default)]
    identity: Option<String>,
    /// Added to the shared tags.
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    ssh_port: Option<u32>,
    #[serde(default)]
    ssh_user: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The machines, 1-100.
    hosts: Vec<Host>,
    /// Arguments of deploy_edge_node for every host.
    #[serde(default)]
    #[schemars(schema_with = "shared_schema")]
    shared: Map<String, Value>,
    /// Hosts deployed at the same time, 1-100. Default: the operator's setting.
    #[serde(default)]
    max_parallel: Option<u32>,
    /// Start no further host after this many failures (default 1; 0: never stop).
    #[serde(default)]
    max_failures: Option<u32>,
    /// true only checks the hosts and returns the plans.
    #[serde(default)]
    pub dry_run: bool,
    /// Makes retries safe: same key and arguments, same result.
    #[serde(default)]
    idempotency_key: Option<String>,
    /// Seconds to wait for the end, 0-45 (default 20).
    #[serde(default)]
    wait_seconds: Option<u64>,
}

/// Returns the schema of `shared`: the arguments of `deploy_edge_node` that may be shared, without their
/// descriptions.
fn shared_schema(_: &mut SchemaGenerator) -> Schema {
    let mut properties =
        schema::input::<deploy_edge_node::Arguments>().remove("properties").unwrap_or_default();
    if let Value::Object(properties) = &mut properties {
        properties.retain(|name, _| !NOT_SHARED.contains(&name.as_str()));
        for property in properties.values_mut().filter_map(Value::as_object_mut) {
            property.remove("description");
        }
    }
    json_schema!({"type": "object", "properties": properties})
}

impl Arguments {
    /// Combines the shared arguments with each host's own, which win. References to secrets are for persons only.
    pub fn check(self, origin: Origin) -> Result<RolloutRequest> {
        if let Some(name) = NOT_SHARED.iter().find(|name| self.shared.contains_key(**name)) {
            return Err(Error::invalid(format!("shared: {name} cannot count for every host"))
                .remedy("host, identity, tags, ssh_port and ssh_user may stand with each host"));
        }
        let hosts = self.hosts.into_iter().map(|host| {
            let name = host.host.clone();
            (name, one(&self.shared, host, origin))
        });
        Ok(RolloutRequest {
            hosts: all_or_every_problem(hosts)?,
            max_parallel: self.max_parallel,
            max_failures: self.max_failures,
            idempotency_key: self.idempotency_key,
        })
    }

    /// Returns the token, to be redacted in all answers.
    fn tunnel_token(&self) -> Option<Secret> {
        self.shared.get("tunnel_token").and_then(Value::as_str).map(Secret::new)
    }
}

fn one(shared: &Map<String, Value>, host: Host, origin: Origin) -> Result<DeploymentRequest> {
    let mut arguments = shared.clone();
    arguments.insert("host".to_owned(), host.host.into());
    let own = [
        ("identity", host.identity.map(Value::from)),
        ("ssh_port", host.ssh_port.map(Value::from)),
        ("ssh_user", host.ssh_user.map(Value::from)),
    ];
    for (name, value) in own {
        if let Some(value) = value {
            arguments.insert(name.to_owned(), value);
        }
    }
    let mut arguments: deploy_edge_node::Arguments = parse(Value::Object(arguments))?;
    arguments.tags.extend(host.tags);
    if origin == Origin::Assistant {
        arguments.tunnel_token = check_secret("tunnel_token", arguments.tunnel_token)?;
    }
    arguments.check()
}

fn plan_line(planned: PlannedHost) -> Line {
    let mut detail = match (&planned.plan, &planned.failure) {
        (Some(plan), _) => plan.to_string(),
        (None, Some(failure)) => format!("{}: {}", failure.code, failure.message),
        (None, None) => String::new(),
    };
    for finding in &planned.findings {
        detail.push_str(&format!("\n{finding}"));
    }
    Line::planned(planned.host, planned.node_id, crate::text::clean(&detail).into_owned())
}

impl From<RolloutPlan> for Outcome {
    fn from(plan: RolloutPlan) -> Self {
        let (can, total) = (plan.hosts.iter().filter(|host| host.can_deploy).count(), plan.hosts.len());
        let lines = plan.hosts.into_iter().map(plan_line).collect();
        let summary = format!("{can} of {total} hosts would get past their checks");
        Self::of(summary, lines, None, format!("Nothing was changed. {}", plan.next_step))
    }
}

impl Tool for DeployEdgeNodes {
    const NAME: &'static str = "deploy_edge_nodes";
    const TITLE: &'static str = "Deploy many edge nodes";
    const DESCRIPTION: &'static str = "Deploy 1-100 machines in one call, several at a time. All arguments \
are validated first: if a host is invalid or not approved, nothing starts. Returns a rollout_id; follow it with \
get_rollout. First deployments, and updates while work runs there, return needs_confirmation first.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        let hosts = arguments.hosts.iter().map(|host| host.host.as_str()).collect::<Vec<_>>();
        format!("aegis deploy {}", hosts.join(" "))
    }

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<Plan> {
        wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        call.hide(arguments.tunnel_token().as_ref());
        let (dry_run, command) = (arguments.dry_run, Self::command(&arguments));
        let request = arguments.check(Origin::Assistant)?;
        if dry_run || call.core.knows_rollout_key(request.idempotency_key.as_deref()).await? {
            return Ok(Plan::nothing());
        }
        let count = request.hosts.len();
        let (mut new, mut busy) = (Vec::new(), Vec::new());
        // No confirmation is requested for hosts that would be rejected.
        call.core.check_rollout(&request, Origin::Assistant).await?;
        for host in request.hosts {
            match on_host(&call.core, &host.host).await? {
                None => new.push(host.host),
                Some(executions) if !executions.is_empty() => busy.push(host.host),
                Some(_) => {}
            }
        }
        let weight = if new.is_empty() && busy.is_empty() { Impact::Routine } else { Impact::Disruptive };
        let told = |words: &str, hosts: Vec<String>| {
            (!hosts.is_empty()).then(|| format!("{words}: {}", hosts.join(", ")))
        };
        let facts = [told("for the first time", new), told("while they run work", busy)];
        Ok(Plan {
            weight,
            summary: format!("deploy to {count} hosts"),
            facts: facts.into_iter().flatten().collect(),
            carries: None,
            command,
        })
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        call.hide(arguments.tunnel_token().as_ref());
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let dry_run = arguments.dry_run;
        let request = arguments.check(Origin::Assistant)?;
        let core = call.core.clone();
        if dry_run {
            let look = async move { core.plan_rollout(request, Origin::Assistant).await };
            return call.progress.look("checking the hosts", look).await.map(Outcome::from);
        }
        let begun = whole(async move { core.roll_out(request, Origin::Assistant).await }).await?;
        followed(call, begun, wait).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: Value) -> Result<RolloutRequest> {
        parse::<Arguments>(value)?.check(Origin::Assistant)
    }

    #[test]
    fn a_hosts_own_arguments_win_and_its_tags_are_added() {
        let request = check(json!({
            "hosts": [{"host": "a"}, {"host": "b", "identity": "x", "tags": ["gpu"], "ssh_user": "ops"}],
            "shared": {"ssh_user": "ubuntu", "tags": ["edge"], "services": "node"},
            "max_parallel": 2
        }))
        .unwrap();
        let [a, b] = request.hosts.as_slice() else { panic!("two hosts") };
        assert_eq!(
            (a.ssh_user.as_deref(), a.tags.as_slice()),
            (Some("ubuntu"), ["edge".to_owned()].as_slice())
        );
        assert_eq!((b.ssh_user.as_deref(), b.identity.as_deref()), (Some("ops"), Some("x")));
        assert_eq!((b.tags.join(" ").as_str(), b.services.as_deref()), ("edge gpu", Some("node")));
    }

    #[test]
    fn unshared_arguments_and_bad_hosts_are_named() {
        for name in NOT_SHARED {
            let error = check(json!({"hosts": [{"host": "a"}], "shared": {name: "x"}})).unwrap_err();
            assert!(error.message().contains(name), "{error}");
        }
        let error = check(json!({"hosts": [{"host": "a", "ssh_port": 0}, {"host": "b"}, {"host": ""}]}));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("2 of 3") && text.contains("a: ssh_port: 0") && text.contains(": host: "),
            "{text}"
        );
        assert!(check(json!({"hosts": [{"host": "a"}], "shared": {"servces": "x"}})).is_err());
    }

    #[test]
    fn a_secret_is_never_repeated() {
        for bad in [json!("env:HOME"), json!(123_456_789)] {
            let error =
                check(json!({"hosts": [{"host": "a"}], "shared": {"tunnel_token": bad}})).unwrap_err();
            assert!(
                !error.to_string().contains("123456789") && !error.to_string().contains("HOME"),
                "{error}"
            );
        }
    }
}

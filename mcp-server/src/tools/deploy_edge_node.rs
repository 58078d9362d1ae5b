//! `deploy_edge_node`: makes a machine that is reachable by SSH a node.

use std::time::Duration;

use cluster_core::{
    core::Core,
    deploy::{
        DeploymentRequest, DeploymentState, DeploymentView, Finding, PlanView, StepState, model::plan::Plan,
    },
    types::{
        error::{Error, Failure, Result},
        ids::{DeploymentId, NodeId},
        principal::Origin,
        secret::Secret,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::{ResponseFormat, check_range, check_secret, secret, wait},
    disruption::{on_host, running},
    progress::{Followed, whole},
    steps::{Step, steps},
};
use crate::{
    confirm::{self, Impact},
    tools::tool::{Call, Hints, Tool},
};

const WAIT_SECONDS_DEFAULT: u64 = 20;
/// Digest of a plan that was not confirmed; no plan has this digest.
const UNCONFIRMED: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Length limit of DNS names; IPv6 addresses are shorter.
const HOST_LENGTH_MAX: usize = 253;
const PATH_LENGTH_MAX: usize = 4096;
const TAGS_MAX: usize = 32;
const NAMES_MAX: usize = 16;

pub struct DeployEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// DNS name, IP address, or a Host alias of the controller's ~/.ssh/config. Not this machine itself.
    pub host: String,
    /// Default: ~/.ssh/config, else 22.
    #[serde(default)]
    pub ssh_port: Option<u32>,
    /// Default: ~/.ssh/config, else root.
    #[serde(default)]
    pub ssh_user: Option<String>,
    /// Private key file on the controller, inside the directories that the operator allows.
    #[serde(default)]
    pub ssh_key_path: Option<String>,
    /// Node id: 1-63 lowercase letters, digits, hyphens. Default: derived from host.
    #[serde(default)]
    pub identity: Option<String>,
    /// Labels for executions to select on, such as gpu or zone=eu. At most 32; replaces earlier tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Comma-separated Compose services. Default: node,ollama, or those of the operator's compose file.
    /// node alone runs no local LLM.
    #[serde(default)]
    pub services: Option<String>,
    /// Compose profiles to enable in the operator's compose file.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// false starts the stack without making the machine a node. Default true.
    #[serde(default)]
    pub join: Option<bool>,
    /// Ollama models to pull, such as llama3.2. At most 16.
    #[serde(default)]
    pub models: Vec<String>,
    /// Seconds that services may take to become healthy, 10-3600 (default 180).
    #[serde(default)]
    pub health_timeout_seconds: Option<u32>,
    /// Cloudflare tunnel token, preferably secret:NAME. Default: the operator's.
    #[serde(default, deserialize_with = "secret")]
    #[schemars(with = "Option<String>")]
    pub tunnel_token: Option<Secret>,
    /// http(s) URL given to executions on this node as AEGIS_REMOTE_LLM_URL.
    #[serde(default)]
    pub remote_llm_url: Option<String>,
    /// Image of the edge application: replaces the build of the operator's compose file, or adds the service
    /// aithernode. Not the image of the Aegis node.
    #[serde(default)]
    pub image: Option<String>,
    /// ssh (default) needs only the SSH port; direct needs a controller address that the node can reach.
    #[serde(default)]
    pub link: Option<String>,
    /// true only checks the host and returns the plan.
    #[serde(default)]
    pub dry_run: bool,
    /// Digest of a dry run's plan: the deployment is refused if its plan differs.
    #[serde(default)]
    pub plan_digest: Option<String>,
    /// Seconds to wait for another deployment of the host, 0-600.
    #[serde(default)]
    pub lock_wait_seconds: Option<u64>,
    /// Replaces another cluster's node. Refused to assistants.
    #[serde(default)]
    #[schemars(skip)]
    pub take_over: bool,
    /// Makes retries safe: same key and arguments, same result.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Seconds to wait for the end, 0-45 (default 20).
    #[serde(default)]
    pub wait_seconds: Option<u64>,
}

impl Arguments {
    /// Checks the bounds; the deployment parses each value.
    pub fn check(self) -> Result<DeploymentRequest> {
        if self.host.is_empty() || self.host.len() > HOST_LENGTH_MAX {
            return Err(Error::invalid(format!("host: it must have 1 to {HOST_LENGTH_MAX} characters"))
                .remedy("name the machine: its DNS name or IP address"));
        }
        if let Some(port) = self.ssh_port {
            check_range("ssh_port", port, 1..=u32::from(u16::MAX))?;
        }
        if self.tags.len() > TAGS_MAX {
            return Err(Error::invalid(format!("tags: at most {TAGS_MAX} are taken")));
        }
        for (name, list) in [("profiles", &self.profiles), ("models", &self.models)] {
            if list.len() > NAMES_MAX {
                return Err(Error::invalid(format!("{name}: at most {NAMES_MAX} are taken")));
            }
        }
        if let Some(seconds) = self.health_timeout_seconds {
            check_range("health_timeout_seconds", seconds, 10..=3600)?;
        }
        for (name, value) in [
            ("ssh_key_path", &self.ssh_key_path),
            ("services", &self.services),
            ("remote_llm_url", &self.remote_llm_url),
        ] {
            if value.as_ref().is_some_and(|text| text.len() > PATH_LENGTH_MAX) {
                return Err(Error::invalid(format!("{name}: it has more than {PATH_LENGTH_MAX} characters")));
            }
        }
        // The published examples pass empty strings for omitted values.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(DeploymentRequest {
            host: self.host,
            ssh_port: self.ssh_port,
            ssh_user: given(self.ssh_user),
            ssh_key_path: given(self.ssh_key_path),
            identity: given(self.identity),
            tags: self.tags,
            services: given(self.services),
            profiles: self.profiles,
            join: self.join,
            health_timeout_seconds: self.health_timeout_seconds,
            models: self.models,
            tunnel_token: self.tunnel_token.filter(|token| !token.is_empty()),
            remote_llm_url: given(self.remote_llm_url),
            image: given(self.image),
            link: given(self.link),
            plan_digest: given(self.plan_digest),
            lock_wait_seconds: self.lock_wait_seconds,
            take_over: self.take_over,
            idempotency_key: self.idempotency_key,
        })
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    /// Valid for as long as the controller keeps its database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<DeploymentId>,
    /// planned (also for a dry run), running, ready, started (join was false), failed, rolled_back,
    /// cancelled or interrupted.
    pub state: DeploymentState,
    pub host: String,
    pub node_id: NodeId,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// Pass as since_event to get_deployment_status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Actual or possible problems, each with its fix.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    pub next_step: String,
}

impl Followed for DeploymentView {
    async fn change(&self, core: &Core, wait: Duration) -> Result<Self> {
        core.await_deployment_change(&self.deployment_id, self.event, wait).await
    }

    fn describe(&self) -> String {
        let under_way = |state| matches!(state, StepState::Running | StepState::Rechecking);
        let current = self.steps.iter().find(|step| under_way(step.state));
        let done = self.steps.iter().filter(|step| step.state == StepState::Done).count();
        match current {
            Some(step) => match &step.message {
                Some(message) => {
                    format!("{}: {} ({done}/{}) {message}", self.host, step.name, self.steps.len())
                }
                None => format!("{}: {} ({done}/{})", self.host, step.name, self.steps.len()),
            },
            None => format!("{}: {} ({done}/{})", self.host, self.state, self.steps.len()),
        }
    }
}

impl From<DeploymentView> for Outcome {
    fn from(view: DeploymentView) -> Self {
        Self {
            deployment_id: Some(view.deployment_id),
            state: view.state,
            host: view.host,
            node_id: view.node_id,
            steps: steps(view.steps, ResponseFormat::Concise),
            event: Some(view.event),
            plan: None,
            findings: view.findings,
            failure: view.failure,
            next_step: view.next_step,
        }
    }
}

impl From<PlanView> for Outcome {
    fn from(plan: PlanView) -> Self {
        Self {
            deployment_id: None,
            state: DeploymentState::Planned,
            host: plan.plan.target.clone(),
            node_id: plan.plan.node_id.clone(),
            steps: Vec::new(),
            event: None,
            plan: Some(plan.plan),
            findings: plan.findings,
            failure: None,
            next_step: match plan.can_deploy {
                true => {
                    "Nothing was changed. Call deploy_edge_node again without dry_run to carry it out; with \
                     plan_digest, the plan's digest, this plan or nothing."
                        .to_owned()
                }
                false => format!("Nothing was changed. {}", plan.next_step),
            },
        }
    }
}

fn asked(mut arguments: Arguments, call: &mut Call) -> Result<DeploymentRequest> {
    call.hide(arguments.tunnel_token.as_ref());
    arguments.tunnel_token = check_secret("tunnel_token", arguments.tunnel_token)?;
    arguments.check()
}

impl Tool for DeployEdgeNode {
    const NAME: &'static str = "deploy_edge_node";
    const TITLE: &'static str = "Deploy an edge node";
    const DESCRIPTION: &'static str = "Turn a machine reachable over SSH into a cluster node, or update a \
node deployed earlier. Checks the host, uploads a Docker Compose stack, starts it, and ends in state ready once \
the node has joined the cluster and run a test container. Takes one to several minutes: returns a \
deployment_id; follow it with get_deployment_status. A person must have approved the host (aegis host approve \
HOST). The first deployment to a host, and an update while work runs there, returns needs_confirmation and \
changes nothing until it is confirmed.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    const ALWAYS_LOADED: bool = true;
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        format!("aegis deploy {}", arguments.host)
    }

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<confirm::Plan> {
        wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let (dry_run, host) = (arguments.dry_run, arguments.host.clone());
        let command = Self::command(&arguments);
        let request = asked(arguments, call)?;
        if dry_run || call.core.knows_deployment_key(request.idempotency_key.as_deref()).await? {
            return Ok(confirm::Plan::nothing());
        }
        let running_there = on_host(&call.core, &host).await?;
        if running_there.as_ref().is_some_and(Vec::is_empty) {
            let summary = format!("deploy to {host} again");
            return Ok(confirm::Plan { summary, command, ..confirm::Plan::default() });
        }
        let planned = call.core.plan_deployment(request, Origin::Assistant).await?;
        if !planned.can_deploy {
            // The deployment rejects the host with its findings. If the checks pass by then, the unconfirmed plan must
            // still not be carried out, so no plan has this digest.
            return Ok(confirm::Plan { carries: Some(UNCONFIRMED.to_owned()), ..confirm::Plan::nothing() });
        }
        let mut facts = planned.plan.to_string().lines().map(str::to_owned).collect::<Vec<_>>();
        let summary = match running_there {
            None => format!("make {} a node of this cluster, for the first time", planned.plan.target),
            Some(executions) => {
                facts.splice(0..0, running(&executions));
                format!("deploy to {} again, which runs work", planned.plan.target)
            }
        };
        Ok(confirm::Plan {
            weight: Impact::Disruptive,
            summary,
            facts,
            carries: Some(planned.plan.digest),
            command,
        })
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let dry_run = arguments.dry_run;
        let mut request = asked(arguments, call)?;
        // Only the confirmed plan is carried out.
        request.plan_digest = request.plan_digest.or(call.confirmed.take());
        let core = call.core.clone();
        if dry_run {
            let look = async move { core.plan_deployment(request, Origin::Assistant).await };
            return call.progress.look("checking the host", look).await.map(Outcome::from);
        }
        let started = {
            let core = core.clone();
            whole(async move { core.deploy(request, Origin::Assistant).await }).await?
        };
        let view = call.progress.follow(&core, started, wait, |view| view.state.is_final()).await?;
        Ok(view.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn arguments(value: serde_json::Value) -> Result<Arguments> {
        super::super::parse(value)
    }

    #[test]
    fn the_seeds_body_is_read_and_its_empty_strings_mean_not_given() {
        let request = arguments(json!({
            "host": "192.168.1.50", "ssh_user": "ubuntu", "ssh_key_path": "/home/user/.ssh/edge_key",
            "tunnel_token": "", "identity": "genesis", "remote_llm_url": "http://primary:8150"
        }))
        .and_then(Arguments::check)
        .unwrap();
        assert_eq!(request.host, "192.168.1.50");
        assert!(request.tunnel_token.is_none());
        assert_eq!(request.identity.as_deref(), Some("genesis"));
    }

    #[test]
    fn bounds_are_checked_before_anything_is_touched() {
        for bad in [
            json!({"host": ""}),
            json!({"host": "a".repeat(300)}),
            json!({"host": "a", "ssh_port": 0}),
            json!({"host": "a", "ssh_port": 65_536}),
            json!({"host": "a", "tags": vec!["t"; 33]}),
            json!({"host": "a", "models": vec!["m"; 17]}),
            json!({"host": "a", "profiles": vec!["p"; 17]}),
            json!({"host": "a", "health_timeout_seconds": 9}),
        ] {
            assert!(arguments(bad.clone()).and_then(Arguments::check).is_err(), "{bad}");
        }
    }
}

//! `deploy_edge_node`: any machine reachable by SSH becomes a node.

use std::time::Duration;

use cluster_core::{
    Error, Failure, Result,
    core::Core,
    deploy::{
        DeploymentRequest, DeploymentState, DeploymentView, Finding, Origin, PlanView, Secret, StepState,
        StepView, plan::Plan,
    },
    ids::{DeploymentId, NodeId},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::{check_range, check_secret, secret, wait},
    catalogue::{Call, Hints, Tool},
    progress::{Followed, whole},
};

const WAIT_SECONDS_DEFAULT: u64 = 20;
/// A DNS name is no longer; an IPv6 address is shorter.
const HOST_LENGTH_MAX: usize = 253;
const PATH_LENGTH_MAX: usize = 4096;
const TAGS_MAX: usize = 32;
const NAMES_MAX: usize = 16;

pub struct DeployEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Address or name of the machine, 1 to 253 characters. Loopback addresses are
    /// refused.
    pub host: String,
    /// SSH port, 1 to 65535. Default: that of ~/.ssh/config, else 22.
    #[serde(default)]
    pub ssh_port: Option<u32>,
    /// Login name. Default: that of ~/.ssh/config, else root.
    #[serde(default)]
    pub ssh_user: Option<String>,
    /// Private key file on the controller's machine, in one of its configured key directories.
    /// Default: the ssh agent and the usual keys.
    #[serde(default)]
    pub ssh_key_path: Option<String>,
    /// The node's id: 1 to 63 of a-z, 0-9 and '-'. Default: made from host.
    #[serde(default)]
    pub identity: Option<String>,
    /// Tags for placement, like gpu or zone=eu; at most 32.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Services to start, comma-separated. Default: node,ollama (and cloudflared where there is a tunnel
    /// token). Where the operator has a compose file of their own: names of its services, by default
    /// all without a profile.
    #[serde(default)]
    pub services: Option<String>,
    /// Profiles of the operator's compose file; at most 16.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// False: start the stack only; the machine becomes no node, and the deployment ends as started.
    /// Default: true.
    #[serde(default)]
    pub join: Option<bool>,
    /// Models that Ollama is to have, like llama3.2 or qwen2.5:0.5b; at most 16.
    #[serde(default)]
    pub models: Vec<String>,
    /// How long the stack may take to become healthy: 10 to 3600. Default: the operator's, else 180.
    #[serde(default)]
    pub health_timeout_seconds: Option<u32>,
    /// Cloudflare tunnel token: secret:NAME for one that the operator keeps, or a value. Leave it out to
    /// use the operator's default, if there is one.
    #[serde(default, deserialize_with = "secret")]
    #[schemars(with = "Option<String>")]
    pub tunnel_token: Option<Secret>,
    /// LLM server for the node's agent containers: http or https, not link-local.
    #[serde(default)]
    pub remote_llm_url: Option<String>,
    /// Container image of the node's stack, instead of the one made from the controller.
    #[serde(default)]
    pub image: Option<String>,
    /// How node and controller reach each other: ssh (default), or direct, which needs the controller's
    /// spec.cluster.advertise_address. Deploying again with the other one moves the node.
    #[serde(default)]
    pub link: Option<String>,
    /// True: check the host and return the plan; change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Digest of the plan that a dry run showed: that plan is carried out, or nothing when the host or the
    /// arguments changed since.
    #[serde(default)]
    pub plan_digest: Option<String>,
    /// How long to wait for another deployment of the host to end: 0 to 600, default 0.
    #[serde(default)]
    pub lock_wait_seconds: Option<u64>,
    /// For a person only: replace another cluster's node.
    #[serde(default)]
    #[schemars(skip)]
    pub take_over: bool,
    /// 1 to 128 characters: the same key with the same arguments gives the same deployment.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// How long to wait for the end before answering with the state so far: 0 to 45, default 20. The
    /// deployment goes on either way.
    #[serde(default)]
    pub wait_seconds: Option<u64>,
}

impl Arguments {
    /// The bounds; the grammar of each value is the deployment's own.
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
        // The seed's examples pass empty strings for "not given".
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
    pub steps: Vec<StepView>,
    /// For since_event of get_deployment_status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// What stands in the way, or might, each with its fix.
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

/// Evidence of all steps together: with the rest of a result below its 20 KB.
const EVIDENCE_BYTES_MAX: usize = 10 * 1024;

/// Cuts the evidence to so many lines a step and to what fits into a result.
pub fn bound_evidence(steps: &mut [StepView], lines_max: usize) {
    let mut left = EVIDENCE_BYTES_MAX;
    for step in steps {
        let Some(evidence) = step.evidence.take() else { continue };
        let lines = evidence.lines().take(lines_max).take_while(|line| {
            let fits = line.len() <= left;
            left = if fits { left - line.len() } else { 0 };
            fits
        });
        let kept = lines.map(super::text::clean).collect::<Vec<_>>().join("\n");
        step.evidence = (!kept.is_empty()).then_some(kept);
    }
}

/// Evidence that a concise answer shows of each step.
pub const EVIDENCE_LINES_CONCISE: usize = 2;

impl From<DeploymentView> for Outcome {
    fn from(mut view: DeploymentView) -> Self {
        bound_evidence(&mut view.steps, EVIDENCE_LINES_CONCISE);
        Self {
            deployment_id: Some(view.deployment_id),
            state: view.state,
            host: view.host,
            node_id: view.node_id,
            steps: view.steps,
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
            next_step: format!("Nothing was changed. {}", plan.next_step),
        }
    }
}

impl Tool for DeployEdgeNode {
    const NAME: &'static str = "deploy_edge_node";
    const TITLE: &'static str = "Deploy an edge node";
    const DESCRIPTION: &'static str = "Turn a machine reachable by SSH into a cluster node: checks the host, \
uploads and starts the node's compose stack, waits until the node has joined and has run a container. Needs \
only port 22 and Docker with Compose v2 on the host. Returns a deployment_id quickly; the deployment goes on \
by itself: follow it with get_deployment_status. A host that no person has approved is refused with the \
command that approves it (aegis host approve HOST). Deploying again to the same host updates it and touches \
only what changed. Use dry_run to see the plan first.";
    const HINTS: Hints = Hints { read_only: false, destructive: false, idempotent: true, open_world: true };
    const ALWAYS_LOADED: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(mut arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        call.hide(arguments.tunnel_token.as_ref());
        arguments.tunnel_token = check_secret("tunnel_token", arguments.tunnel_token)?;
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let dry_run = arguments.dry_run;
        let request = arguments.check()?;
        let core = call.core.clone();
        if dry_run {
            return core.plan_deployment(request, Origin::Assistant).await.map(Outcome::from);
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

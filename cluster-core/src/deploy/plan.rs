//! What will be done, decided before it is done: a pure function of specification and facts, a value
//! that can be printed, bound by its digest.

use std::fmt;

use super::{
    checks::HostFacts,
    env_file::EnvFile,
    hex_digest, node_config,
    release::{Goal, NodeService, ReleaseFiles},
    secret::Secret,
    spec::{DeploymentSpec, Service},
    stack::{self, OLLAMA_PORT, Stack},
    tunnel::TunnelSource,
    view::StepName,
};
use crate::{error::Result, ids::NodeId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Create,
    Update,
    Unchanged,
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct FileChange {
    pub name: String,
    pub change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageAction {
    Present,
    /// Made here and sent over the connection.
    Load,
    Pull,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct ImagePlan {
    pub reference: String,
    pub action: ImageAction,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct PlannedStep {
    pub name: StepName,
    pub action: String,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Plan {
    /// `user@host:port`
    pub target: String,
    pub node_id: NodeId,
    pub base_dir: String,
    pub first_deployment: bool,
    pub services: Vec<String>,
    pub tunnel_token_from: TunnelSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_llm_url: Option<String>,
    pub files: Vec<FileChange>,
    pub images: Vec<ImagePlan>,
    pub steps: Vec<PlannedStep>,
    /// Of everything above and of the files' contents.
    pub digest: String,
}

/// A plan with what carrying it out needs. The files may hold a secret.
#[derive(Debug)]
pub struct Prepared {
    pub plan: Plan,
    pub goal: Goal,
    pub stack: Stack,
    pub files: ReleaseFiles,
}

impl Prepared {
    pub fn changes_files(&self) -> bool {
        self.plan.files.iter().any(|file| file.change != Change::Unchanged)
    }
}

/// Everything the plan follows from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub spec: &'a DeploymentSpec,
    pub facts: &'a HostFacts,
    pub foreign: Option<&'a str>,
    pub tunnel_token: Option<&'a Secret>,
    pub node_image: &'a str,
    pub controller_key: &'a [u8; 32],
}

pub fn prepare(inputs: &Inputs<'_>) -> Result<Prepared> {
    let Inputs { spec, facts, .. } = inputs;
    let gpu = !facts.gpus.is_empty() && facts.nvidia_runtime;
    let stack = stack::build(spec, inputs.foreign, gpu)?;
    let config = node_config::render(spec, facts, stack.node_port, inputs.controller_key)?;
    let env = environment(inputs, &config)?;
    let files = ReleaseFiles::new(&stack.compose, stack.override_file.as_deref(), &env, &config);
    let plan = decide(inputs, &stack, &files);
    let goal = Goal {
        services: stack.services.clone(),
        node: Some(NodeService {
            service: stack.node_service.clone(),
            port: stack.node_port,
            image: inputs.node_image.to_owned(),
        }),
        images: plan.images.iter().map(|image| image.reference.clone()).collect(),
    };
    Ok(Prepared { plan, goal, stack, files })
}

fn environment(inputs: &Inputs<'_>, config: &str) -> Result<EnvFile> {
    let Inputs { spec, facts, .. } = inputs;
    let remote = spec.remote_llm_url.clone().unwrap_or_default();
    let local = match spec.services.contains(&Service::Ollama) {
        true => format!("http://127.0.0.1:{OLLAMA_PORT}"),
        false => String::new(),
    };
    let socket = facts.docker_socket.clone().unwrap_or_else(|| "/var/run/docker.sock".to_owned());
    let mut env = EnvFile::default();
    env.set("AEGIS_NODE_ID", spec.node.as_str())?;
    env.set("AEGIS_NODE_IMAGE", inputs.node_image)?;
    env.set("AEGIS_NODE_USER", format!("{}:{}", facts.uid, facts.gid))?;
    env.set("AEGIS_DOCKER_GID", facts.docker_gid.to_string())?;
    env.set("AEGIS_DOCKER_SOCKET", socket)?;
    env.set("AEGIS_BASE_DIR", spec.base_dir.as_str())?;
    env.set("AEGIS_CONFIG_DIGEST", hex_digest(config.as_bytes()))?;
    env.set("AEGIS_REMOTE_LLM_URL", remote.as_str())?;
    env.set("AEGIS_LOCAL_LLM_URL", local)?;
    // The names that an operator's own stack is likely to know.
    env.set("REMOTE_LLM_URL", remote)?;
    if let Some(token) = inputs.tunnel_token {
        env.set("CLOUDFLARE_TUNNEL_TOKEN", token.reveal())?;
        env.set("TUNNEL_TOKEN", token.reveal())?;
    }
    if let Some(image) = &spec.image {
        env.set("AITHER_EDGE_IMAGE", image.as_str())?;
    }
    Ok(env)
}

fn decide(inputs: &Inputs<'_>, stack: &Stack, files: &ReleaseFiles) -> Plan {
    let Inputs { spec, facts, .. } = inputs;
    let digests = files.digests();
    let before = facts.release.as_ref().map(|release| &release.files);
    let mut changes: Vec<FileChange> = digests
        .iter()
        .map(|(name, digest)| FileChange {
            name: name.clone(),
            change: match before.and_then(|before| before.get(name)) {
                None => Change::Create,
                Some(old) if old == digest => Change::Unchanged,
                Some(_) => Change::Update,
            },
        })
        .collect();
    let gone = before.into_iter().flatten().map(|(name, _)| name).filter(|name| !digests.contains_key(*name));
    changes.extend(gone.map(|name| FileChange { name: name.clone(), change: Change::Remove }));
    let mut images = vec![image(facts, inputs.node_image, ImageAction::Load)];
    images.extend(stack.images.iter().map(|reference| image(facts, reference, ImageAction::Pull)));
    let steps = steps(spec, &changes, &images, stack);
    let mut plan = Plan {
        target: spec.target.to_string(),
        node_id: spec.node.clone(),
        base_dir: spec.base_dir.clone(),
        first_deployment: facts.release.is_none(),
        services: stack.services.clone(),
        tunnel_token_from: spec.tunnel,
        remote_llm_url: spec.remote_llm_url.clone(),
        files: changes,
        images,
        steps,
        digest: String::new(),
    };
    let text = serde_json::to_string(&(&plan, &digests)).unwrap_or_default();
    plan.digest = hex_digest(text.as_bytes());
    plan
}

fn image(facts: &HostFacts, reference: &str, otherwise: ImageAction) -> ImagePlan {
    let action = if facts.images.contains(reference) { ImageAction::Present } else { otherwise };
    ImagePlan { reference: reference.to_owned(), action }
}

fn steps(
    spec: &DeploymentSpec,
    files: &[FileChange],
    images: &[ImagePlan],
    stack: &Stack,
) -> Vec<PlannedStep> {
    let changed: Vec<&str> =
        files.iter().filter(|file| file.change != Change::Unchanged).map(|file| file.name.as_str()).collect();
    let upload = match changed.is_empty() {
        true => "nothing: all files on the host are equal".to_owned(),
        false => format!("send a new release ({}) and switch to it", changed.join(", ")),
    };
    let fetch: Vec<String> = images
        .iter()
        .filter_map(|image| match image.action {
            ImageAction::Present => None,
            ImageAction::Load => Some(format!("send {}", image.reference)),
            ImageAction::Pull => Some(format!("pull {}", image.reference)),
        })
        .collect();
    let fetch =
        if fetch.is_empty() { "nothing: all images are on the host".to_owned() } else { fetch.join(", ") };
    [
        (StepName::Upload, upload),
        (StepName::Images, fetch),
        (
            StepName::Start,
            format!("docker compose up -d: {}; only what changed is recreated", stack.services.join(", ")),
        ),
        (
            StepName::Health,
            format!("wait until all are healthy, and 127.0.0.1:{}/health answers", stack.node_port),
        ),
        (
            StepName::Join,
            format!("pin the key of {} over this connection, wait until it is Active", spec.node),
        ),
        (StepName::Proof, "run one container on the node".to_owned()),
    ]
    .into_iter()
    .map(|(name, action)| PlannedStep { name, action })
    .collect()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.first_deployment { "first deployment" } else { "redeployment" };
        writeln!(f, "{kind} of {} to {} ({})", self.node_id, self.target, self.base_dir)?;
        writeln!(f, "services: {}", self.services.join(", "))?;
        for step in &self.steps {
            writeln!(f, "  {:<8} {}", step.name.name(), step.action)?;
        }
        write!(f, "plan {}", &self.digest[..12.min(self.digest.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        deploy::{DeploySettings, DeploymentRequest, Origin, release::ReleaseNote},
        ids::DeploymentId,
    };

    fn spec(change: impl FnOnce(&mut DeploymentRequest)) -> DeploymentSpec {
        let mut request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        change(&mut request);
        request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec
    }

    fn prepared(spec: &DeploymentSpec, facts: &HostFacts, token: Option<&Secret>) -> Prepared {
        let inputs = Inputs {
            spec,
            facts,
            foreign: None,
            tunnel_token: token,
            node_image: "aegis-node:0123456789ab",
            controller_key: &[7; 32],
        };
        prepare(&inputs).unwrap()
    }

    fn deployed(first: &Prepared, node: &NodeId) -> HostFacts {
        HostFacts {
            release: Some(ReleaseNote {
                deployment_id: DeploymentId::mint(1, 1),
                node_id: node.clone(),
                files: first.files.digests(),
                services: Vec::new(),
                cluster: None,
                goal: None,
            }),
            images: first.plan.images.iter().map(|image| image.reference.clone()).collect(),
            ..HostFacts::default()
        }
    }

    #[test]
    fn the_llm_address_reaches_the_env_file() {
        let spec = spec(|request| request.remote_llm_url = Some("http://primary:8150".into()));
        let first = prepared(&spec, &HostFacts::default(), None);
        let env = first.files.iter().find(|(name, _)| *name == ".env").unwrap().1;
        assert!(String::from_utf8_lossy(env).contains("AEGIS_REMOTE_LLM_URL=\"http://primary:8150\""));
    }

    #[test]
    fn a_redeploy_that_changes_nothing_plans_nothing() {
        let spec = spec(|_| {});
        let first = prepared(&spec, &HostFacts::default(), None);
        assert!(first.changes_files() && first.plan.first_deployment);
        let again = prepared(&spec, &deployed(&first, &spec.node), None);
        assert!(!again.changes_files(), "{:?}", again.plan.files);
        assert!(again.plan.images.iter().all(|image| image.action == ImageAction::Present));
        let other = self::spec(|request| request.tags = vec!["gpu".into()]);
        let changed = prepared(&other, &deployed(&first, &spec.node), None);
        let updated: Vec<_> =
            changed.plan.files.iter().filter(|file| file.change == Change::Update).collect();
        assert_eq!(updated.len(), 2, "configuration and its digest in .env: {updated:?}");
        assert_ne!(changed.plan.digest, again.plan.digest);
    }

    #[test]
    fn no_plan_tells_a_secret() {
        let token = Secret::new("hunter2");
        let spec = spec(|request| request.tunnel_token = Some(token.clone()));
        let plan = prepared(&spec, &HostFacts::default(), Some(&token)).plan;
        assert_eq!(plan.tunnel_token_from, TunnelSource::Argument);
        assert!(!format!("{plan} {}", serde_json::to_string(&plan).unwrap()).contains("hunter2"));
        assert_ne!(
            plan.digest,
            prepared(&spec, &HostFacts::default(), Some(&Secret::new("other"))).plan.digest
        );
    }

    #[test]
    fn the_nodes_configuration_is_what_a_worker_needs() {
        let spec = spec(|request| request.tags = vec!["gpu".into()]);
        let facts = HostFacts { cpus: 4, memory_total_mb: 8000, ..Default::default() };
        let prepared = prepared(&spec, &facts, None);
        let config = prepared.files.iter().find(|(name, _)| *name == "aegis-config.yaml").unwrap().1;
        let config: serde_json::Value = serde_saphyr::from_str(std::str::from_utf8(config).unwrap()).unwrap();
        assert_eq!(config["apiVersion"], "100monkeys.ai/v1");
        assert_eq!(config["spec"]["node"]["type"], "edge");
        assert_eq!(config["spec"]["node"]["tags"][0], "gpu");
        assert_eq!(config["spec"]["node"]["resources"]["memory_gb"], 7);
        assert_eq!(config["spec"]["cluster"]["role"], "worker");
        assert_eq!(config["spec"]["cluster"]["controller"]["endpoint"], "unix:///run/aegis/controller.sock");
        assert_eq!(config["spec"]["network"]["port"], 8090);
    }
}

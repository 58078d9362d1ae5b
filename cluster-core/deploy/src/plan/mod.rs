//! Plan of a deployment: a pure function of specification and facts. A plan can be printed, and its digest identifies
//! it.

pub mod node_config;

use std::time::Duration;

use aegis_types::{error::Result, link::NodeLink, secret::Secret};

use super::{
    env_file::EnvFile,
    hex_digest, link,
    release::{self, ReleaseFiles},
    stack::{self, CustomStack, Stack},
};
use crate::{
    images::local::LocalImages,
    link::link_note,
    model::{
        drift::{DriftKind, drift},
        facts::HostFacts,
        names::ModelName,
        operation::Action,
        plan::{Change, FileChange, ImageAction, ImagePlan, Plan, PlannedStep, few},
        release::{NodeService, ReleaseContents},
        spec::DeploymentSpec,
        state::StepName,
    },
};

/// Plan with the data to carry it out. The files may hold a secret.
#[derive(Debug)]
pub struct Prepared {
    pub plan: Plan,
    pub goal: ReleaseContents,
    pub stack: Stack,
    pub files: ReleaseFiles,
    /// Secrets that the host's services may print, to be redacted.
    pub secrets: Vec<Secret>,
}

impl Prepared {
    pub fn changes_files(&self) -> bool {
        self.plan.files.iter().any(|file| file.change != Change::Unchanged)
    }
}

/// Inputs that determine the plan.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub spec: &'a DeploymentSpec,
    pub facts: &'a HostFacts,
    pub operator: Option<&'a CustomStack>,
    pub tunnel_token: Option<&'a Secret>,
    pub node_image: &'a str,
    pub local_images: &'a LocalImages,
    pub controller_key: &'a [u8; 32],
    /// Thumbprints of the node's revoked keys.
    pub revoked_keys: &'a [String],
    pub link: &'a NodeLink,
    /// Interval at which the controller expects heartbeats of the node.
    pub heartbeat_interval: Duration,
}

pub fn prepare(inputs: &Inputs<'_>) -> Result<Prepared> {
    let Inputs { spec, facts, .. } = inputs;
    let gpu = !facts.usable_gpus().is_empty();
    let stack = stack::build(spec, inputs.operator, gpu)?;
    let config = match &stack.node {
        Some(node) => Some(node_config::render(
            spec,
            facts,
            node.port,
            &node_config::Joining {
                controller_key: inputs.controller_key,
                revoked_keys: inputs.revoked_keys,
                link: inputs.link,
                heartbeat_interval: inputs.heartbeat_interval,
            },
        )?),
        None => None,
    };
    let env = environment(inputs, &stack, config.as_deref())?;
    let bundle = inputs.operator.map(|operator| operator.bundle().clone()).unwrap_or_default();
    let mut files = ReleaseFiles::new(&stack, &env, config.as_deref(), bundle);
    if let Some(note) = link_note(inputs.link)? {
        files = files.with(link::FILE, note);
    }
    let gone_or_changed = drift(facts)
        .into_iter()
        .filter(|drift| matches!(drift.kind, DriftKind::FileChanged | DriftKind::FileMissing));
    let names: Vec<String> = gone_or_changed.map(|drift| drift.name).collect();
    let files = files.repairing(&names.iter().map(String::as_str).collect());
    let plan = decide(inputs, &stack, &files);
    let mut secrets = inputs.operator.map(CustomStack::secrets).unwrap_or_default();
    secrets.extend(inputs.tunnel_token.filter(|token| !token.is_empty()).cloned());
    let goal = ReleaseContents {
        services: stack.services.clone(),
        node: stack.node.as_ref().map(|node| NodeService {
            service: node.service.clone(),
            port: node.port,
            image: inputs.node_image.to_owned(),
        }),
        images: plan.images.iter().map(|image| image.reference.clone()).collect(),
        cloudflared: stack.cloudflared,
    };
    Ok(Prepared { plan, goal, stack, files, secrets })
}

fn environment(inputs: &Inputs<'_>, stack: &Stack, config: Option<&str>) -> Result<EnvFile> {
    let Inputs { spec, facts, .. } = inputs;
    let remote = spec.remote_llm_url.clone().unwrap_or_default();
    let local = match stack.ollama.as_ref().and_then(|ollama| ollama.port) {
        Some(port) => format!("http://127.0.0.1:{port}"),
        None => String::new(),
    };
    let socket = facts.docker_socket.clone().unwrap_or_else(|| "/var/run/docker.sock".to_owned());
    let mut env = EnvFile::default();
    env.set("AEGIS_NODE_ID", spec.node.as_str())?;
    if let Some(config) = config {
        env.set("AEGIS_NODE_IMAGE", inputs.node_image)?;
        env.set("AEGIS_NODE_USER", format!("{}:{}", facts.uid, facts.gid))?;
        env.set("AEGIS_DOCKER_GID", facts.docker_gid.to_string())?;
        env.set("AEGIS_DOCKER_SOCKET", socket)?;
        env.set("AEGIS_CONFIG_DIGEST", hex_digest(config.as_bytes()))?;
    }
    env.set("AEGIS_BASE_DIR", spec.base_dir.as_str())?;
    // Read by the script that starts the services.
    env.set("AEGIS_SERVICES", stack.services.join(" "))?;
    env.steer_compose(&release::compose_files(stack), &stack.profiles)?;
    env.set("AEGIS_REMOTE_LLM_URL", remote.as_str())?;
    env.set("AEGIS_LOCAL_LLM_URL", local)?;
    // Names that an operator's own stack probably uses.
    env.set("REMOTE_LLM_URL", remote)?;
    if let Some(token) = inputs.tunnel_token {
        env.set("CLOUDFLARE_TUNNEL_TOKEN", token.reveal())?;
        env.set("TUNNEL_TOKEN", token.reveal())?;
    }
    if let Some(image) = &spec.image {
        env.set("AITHER_EDGE_IMAGE", image.as_str())?;
    }
    if let Some(operator) = inputs.operator {
        for (key, value) in operator.environment() {
            if !env.contains(key) {
                env.set(key, value.reveal())?;
            }
        }
        env.note_left_out(operator.left_out());
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
                // A file that was changed or removed by hand is sent again.
                Some(old) if old == digest => match has_drifted(facts, name, digest) {
                    true => Change::Update,
                    false => Change::Unchanged,
                },
                Some(_) => Change::Update,
            },
        })
        .collect();
    // An older release listed files that belong to the containers as its own.
    let is_gone = |name: &&String| !digests.contains_key(*name) && !files.is_of_containers(name);
    let gone = before.into_iter().flatten().map(|(name, _)| name).filter(is_gone);
    changes.extend(gone.map(|name| FileChange { name: name.clone(), change: Change::Remove }));
    let mut images: Vec<ImagePlan> =
        stack.node.iter().map(|_| node_image(facts, inputs.node_image)).collect();
    images.extend(stack.images.iter().map(|reference| image(facts, reference, inputs.local_images)));
    let steps = steps(spec, facts, &changes, &images, stack);
    let mut plan = Plan {
        target: spec.target.to_string(),
        node_id: spec.node.clone(),
        base_dir: spec.base_dir.clone(),
        first_deployment: facts.release.is_none() && facts.look.containers.is_empty(),
        services: stack.services.clone(),
        profiles: stack.profiles.clone(),
        tunnel_token_from: spec.tunnel.clone(),
        remote_llm_url: spec.remote_llm_url.clone(),
        models: spec.models.iter().map(ToString::to_string).collect(),
        files: changes,
        node_image: stack.node.as_ref().map(|_| inputs.node_image.to_owned()),
        images,
        steps,
        gpus: facts.usable_gpus().to_vec(),
        drift: drift(facts),
        digest: String::new(),
    };
    let text = serde_json::to_string(&(&plan, &digests)).unwrap_or_default();
    plan.digest = hex_digest(text.as_bytes());
    plan
}

fn has_drifted(facts: &HostFacts, name: &str, digest: &str) -> bool {
    !facts.files.is_empty() && facts.files.get(name).is_none_or(|found| found != digest)
}

fn node_image(facts: &HostFacts, reference: &str) -> ImagePlan {
    let present = facts.images.contains(reference);
    let action = if present { ImageAction::Present } else { ImageAction::Load };
    ImagePlan { reference: reference.to_owned(), action, content: None }
}

fn image(facts: &HostFacts, reference: &str, local: &LocalImages) -> ImagePlan {
    let action = local.action(reference, facts.images.contains(reference));
    let sent = local.get(reference).filter(|_| action == ImageAction::Push);
    ImagePlan { reference: reference.to_owned(), action, content: sent.map(|image| image.content.digest()) }
}

/// Returns the steps of a deployment that change something, as a person reads them.
fn steps(
    spec: &DeploymentSpec,
    facts: &HostFacts,
    files: &[FileChange],
    images: &[ImagePlan],
    stack: &Stack,
) -> Vec<PlannedStep> {
    let action = |name: StepName| match name {
        // These precede the plan or change nothing that runs.
        StepName::Plan | StepName::Connect | StepName::Check | StepName::Settle => None,
        StepName::Upload => Some(upload_action(facts, files)),
        StepName::Images => Some(images_action(images)),
        StepName::Start => Some(format!(
            "docker compose up -d: {}; only what changed is recreated",
            stack.services.join(", ")
        )),
        StepName::Health => Some(match &stack.node {
            Some(node) => format!("wait until all are healthy, and 127.0.0.1:{}/health answers", node.port),
            None => "wait until all are healthy".to_owned(),
        }),
        StepName::Models => {
            let models: Vec<&str> = spec.models.iter().map(ModelName::as_str).collect();
            Some(format!("have Ollama pull what it lacks of {}", models.join(", ")))
        }
        StepName::Join => {
            Some(format!("pin the key of {} over this connection, wait until it is Active", spec.node))
        }
        StepName::Proof => Some("run one container on the node".to_owned()),
        // Steps of other operations.
        StepName::Switch | StepName::Drain | StepName::Stop | StepName::Forget | StepName::Rollback => None,
    };
    let steps = Action::Deploy.steps(spec).into_iter();
    steps.filter_map(|name| Some(PlannedStep { name, action: action(name)? })).collect()
}

fn upload_action(facts: &HostFacts, files: &[FileChange]) -> String {
    let changed: Vec<&str> =
        files.iter().filter(|file| file.change != Change::Unchanged).map(|file| file.name.as_str()).collect();
    let replaced: Vec<&str> = facts.replaced.iter().map(String::as_str).collect();
    match changed.is_empty() {
        true if !replaced.is_empty() => format!(
            "put the files of the release back in the place of {}, which are kept as NAME.edited-N",
            few(&replaced)
        ),
        true => "nothing: all files on the host are equal".to_owned(),
        false => format!("send a new release ({}) and switch to it", few(&changed)),
    }
}

fn images_action(images: &[ImagePlan]) -> String {
    let fetch = images.iter().filter_map(|image| match image.action {
        ImageAction::Present => None,
        ImageAction::Load | ImageAction::Push => Some(format!("send {}", image.reference)),
        ImageAction::Pull => Some(format!("pull {}", image.reference)),
    });
    let fetch = fetch.collect::<Vec<_>>();
    if fetch.is_empty() { "nothing: all images are on the host".to_owned() } else { fetch.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TunnelSource;
    use crate::{DeploySettings, DeploymentRequest, model::release::ReleaseManifest};
    use aegis_types::ids::NodeId;
    use aegis_types::{ids::DeploymentId, principal::Origin};

    fn spec(change: impl FnOnce(&mut DeploymentRequest)) -> DeploymentSpec {
        let mut request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        change(&mut request);
        request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec
    }

    fn prepared(spec: &DeploymentSpec, facts: &HostFacts, token: Option<&Secret>) -> Prepared {
        let inputs = Inputs {
            spec,
            facts,
            operator: None,
            tunnel_token: token,
            node_image: "aegis-node:0123456789ab",
            local_images: &LocalImages::default(),
            controller_key: &[7; 32],
            revoked_keys: &[],
            link: &NodeLink::Sockets,
            heartbeat_interval: Duration::from_secs(30),
        };
        prepare(&inputs).unwrap()
    }

    fn deployed(first: &Prepared, node: &NodeId) -> HostFacts {
        HostFacts {
            release: Some(ReleaseManifest {
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

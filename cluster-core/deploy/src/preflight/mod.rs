//! Gathers the facts of a host and derives the plan. A dry run does nothing else, and a deployment does so before it
//! changes anything.

pub mod direct;
pub mod findings;
pub mod gather;

use std::sync::Arc;

use aegis_engine::node_image::ImageSource;
use aegis_ssh::Connection;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    link::{LinkMode, NodeLink},
    secret::Secret,
};

use super::{
    images::NodeImages,
    plan::{self, Inputs, Prepared},
    stack::{self, CustomProject, CustomStack},
};
use crate::{
    host::{HostSession, access::HostAccess},
    images::local::LocalImages,
    link::choose_link,
    model::{facts::HostFacts, spec::DeploymentSpec},
    ports::{Journal, Membership},
    preflight::findings::Wanted,
};

/// Dependencies that all deployments share.
pub(super) struct Context {
    pub hosts: HostAccess,
    pub journal: Arc<dyn Journal>,
    pub membership: Arc<dyn Membership>,
    pub images: NodeImages,
}

/// Facts of a host and the plan that follows from them.
pub(super) struct Examined {
    pub facts: HostFacts,
    pub prepared: Prepared,
    pub findings: Vec<crate::Finding>,
    pub source: Option<ImageSource>,
    /// Images of the local engine when the plan was made.
    pub local: LocalImages,
}

/// Examines a host without changes. A host without an image for its architecture gets a finding and still a plan.
pub(super) async fn examine(
    context: &Context,
    connection: &Connection,
    spec: &DeploymentSpec,
    token: Option<&Secret>,
) -> Result<Examined> {
    let operator = read_operator(connection, spec, token).await?;
    // Unknown nodes and nodes that joined by hand are reported by the identity check.
    let recorded = context.membership.deployed(&spec.node).await.ok();
    let stack::Stack { images: mut wanted, mut always_pulled, .. } =
        stack::build(spec, operator.as_ref(), false)?;
    if context.hosts.settings().always_pull {
        // The content of a digest never changes.
        always_pulled.extend(wanted.iter().filter(|reference| !reference.contains('@')).cloned());
    }
    let own = context.images.reference(&ImageSource::Own).await?;
    wanted.push(own.clone());
    let mut facts = gather::gather(connection, &spec.base_dir, &wanted, now_ms() / 1000).await?;
    if let (Some(operator), Some(version)) = (&operator, &facts.compose_version)
        && operator.is_unread()
    {
        return Err(Error::new(
            ErrorCode::HostCheckFailed,
            format!("docker compose {version} runs by sudo, and not as {}", facts.user),
        )
        .remedy(
            "install the Compose plugin for all users of the host: apt-get install docker-compose-plugin",
        ));
    }
    let source = context.images.source_for(&facts.os, &facts.arch);
    let node_image = match &source {
        Some(source) => context.images.reference(source).await?,
        None => own,
    };
    let offer = &context.hosts.settings().direct;
    let link = match spec.link {
        LinkMode::Ssh => link_of(&facts)?,
        LinkMode::Direct => {
            // A direct link needs no forwarding.
            facts.forwarding_error = None;
            offer.link(connection)?
        }
    };
    let named = spec.image.as_deref();
    let local = LocalImages::find(context.hosts.settings().engine.as_ref(), &wanted, named).await;
    let local = local.with_always_pulled(always_pulled).without_unfit(&facts);
    let local = on_host(connection, spec, &facts, local).await?;
    let controller_key = context.membership.controller_public_key();
    let revoked_keys = context.membership.revoked_keys(&spec.node).await?;
    let prepared = plan::prepare(&Inputs {
        spec,
        facts: &facts,
        operator: operator.as_ref(),
        tunnel_token: token,
        node_image: &node_image,
        local_images: &local,
        controller_key: &controller_key,
        revoked_keys: &revoked_keys,
        link: &link,
        heartbeat_interval: context.hosts.settings().heartbeat_interval,
    })?;
    let wanted = Wanted {
        stack: &prepared.stack,
        has_node_binary: source.is_some(),
        cluster: &context.hosts.settings().owner,
        has_files: !prepared.files.bundle().is_empty(),
        recorded_base: recorded.as_ref().map(|deployed| deployed.base_dir.as_str()),
    };
    let mut findings = findings::findings(&facts, spec, wanted);
    findings.extend(direct::findings(connection, &facts, &link).await?);
    findings.extend(local.findings(&facts));
    Ok(Examined { facts, prepared, findings, source, local })
}

/// Reads the contents that the host has under the names of the local images.
async fn on_host(
    connection: &Connection,
    spec: &DeploymentSpec,
    facts: &HostFacts,
    local: LocalImages,
) -> Result<LocalImages> {
    let present: Vec<String> =
        local.references().into_iter().filter(|reference| facts.images.contains(reference)).collect();
    let elevated = facts.sudo.then(|| connection.elevated());
    let connection = elevated.as_ref().unwrap_or(connection);
    let contents = HostSession { connection, base: &spec.base_dir }.image_contents(&present).await?;
    Ok(local.with_host(contents))
}

/// Reads an operator's stack: its files from this machine, and their interpretation from Compose on the host.
async fn read_operator(
    connection: &Connection,
    spec: &DeploymentSpec,
    token: Option<&Secret>,
) -> Result<Option<CustomStack>> {
    let asked = spec.clone();
    let Some(project) = blocking(move || CustomProject::read(&asked)).await? else { return Ok(None) };
    let remote = HostSession { connection, base: &spec.base_dir };
    let Some(output) = remote.compose_config(&project, spec, token).await? else {
        return Ok(Some(CustomStack::unread(project)));
    };
    let (asked, token) = (spec.clone(), token.cloned());
    blocking(move || CustomStack::new(project, &output, &asked, token.as_ref())).await.map(Some)
}

/// Reads files on a blocking thread, since up to 64 MiB may be read.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("the task that reads the compose file died").source(error))?
}

/// Chooses the link. A host that forwards nothing gets a finding, and still a plan with the default link.
fn link_of(facts: &HostFacts) -> Result<NodeLink> {
    match &facts.forwarding_error {
        None => choose_link(facts),
        Some(_) => Ok(NodeLink::default()),
    }
}

//! Facts of a host and the plan that follows from them: all that a dry run does, and what a deployment
//! does before it changes anything.

use std::sync::Arc;

use super::{
    checks::{self, HostFacts},
    findings::{self, Wanted},
    hosts::Hosts,
    image::ImageSource,
    images::NodeImages,
    now_ms,
    plan::{self, Inputs, Prepared},
    secret::Secret,
    spec::DeploymentSpec,
    stack,
    world::{Journal, Membership},
};
use crate::{error::Result, ssh::Connection};

/// What every deployment shares.
pub(super) struct Context {
    pub hosts: Hosts,
    pub journal: Arc<dyn Journal>,
    pub membership: Arc<dyn Membership>,
    pub images: NodeImages,
}

/// The facts of a host and the plan that follows from them.
pub(super) struct Examined {
    pub facts: HostFacts,
    pub prepared: Prepared,
    pub findings: Vec<findings::Finding>,
    pub source: Option<ImageSource>,
}

/// Reads only. A host without an image for its architecture gets a finding and a plan all the same.
pub(super) async fn examine(
    context: &Context,
    connection: &Connection,
    spec: &DeploymentSpec,
    token: Option<&Secret>,
) -> Result<Examined> {
    let foreign = stack::read_foreign(spec.compose_file.as_deref())?;
    let mut wanted = stack::build(spec, foreign.as_deref(), false)?.images;
    let own = context.images.reference(&ImageSource::Own).await?;
    wanted.push(own.clone());
    let facts = checks::gather(connection, &spec.base_dir, &wanted, now_ms() / 1000).await?;
    let source = context.images.source_for(&facts.os, &facts.arch);
    let node_image = match &source {
        Some(source) => context.images.reference(source).await?,
        None => own,
    };
    let controller_key = context.membership.controller_public_key();
    let prepared = plan::prepare(&Inputs {
        spec,
        facts: &facts,
        foreign: foreign.as_deref(),
        tunnel_token: token,
        node_image: &node_image,
        controller_key: &controller_key,
    })?;
    let wanted = Wanted { node_port: prepared.stack.node_port, has_node_binary: source.is_some() };
    let findings = findings::findings(&facts, spec, wanted);
    Ok(Examined { facts, prepared, findings, source })
}
